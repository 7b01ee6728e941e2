"""A guided search on a real server: its calibration, its end, and what it can predict then."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from optimizer.cli import commands
from optimizer.commands.run_context import open_space
from optimizer.simulator.calibration import LIGHT_RUNS, calibration_points
from optimizer.study.directory import StudyDirectory
from tests.e2e import tiny
from tests.e2e.conftest import StartOptimizer

pytestmark = pytest.mark.timeout(300)

SPACE = tiny.space(
    parameters={"max_batch_size": [4, 16], "instance_count": [1, 2], "intra_op_threads": [1, 2]},
    budget={"trials": 6},
)


@pytest.mark.slow
def test_a_guided_search_calibrates_once_and_predicts_what_it_has_not_served(
    start: StartOptimizer, tmp_path: Path
) -> None:
    space = tiny.write_space(tmp_path, SPACE)
    first = start(space, "--sampler", "guided", "--trials", 2)
    needed = len(calibration_points(open_space(space).search_space))
    first.wait_for(f"calibrate: up to {needed - 1} steps")
    assert first.wait() == 0, first.errors
    study = StudyDirectory(tmp_path / "results" / "tiny")
    calibration = study.calibration.read_all()
    assert len(calibration) == needed - 1 >= LIGHT_RUNS
    baseline = study.trials.read_all()[0].config
    assert len({baseline, *(record.config for record in calibration.values())}) == needed
    levels = [r.measurement.levels for r in calibration.values() if r.measurement is not None]
    saturated = ["saturation"] * (needed - 1 - LIGHT_RUNS)
    assert [own[-1].kind for own in levels] == ["open_loop"] * LIGHT_RUNS + saturated
    summary = study.read_json(study.summary)
    assert summary["remaining_gap"] is None, "no bound is stated after two trials"
    assert summary["measuring_seconds"] > sum(r.seconds.measuring for r in calibration.values())

    second = start(space, "--sampler", "guided", "--trials", 4)
    assert second.wait() == 0, second.errors
    assert study.calibration.read_all() == calibration, "what is known is not measured again"
    trials = study.trials.read_all().values()
    assert 2 <= len(trials) <= 4
    assert len({record.config for record in trials}) == len(trials)

    options = ["--results", str(tmp_path / "results"), "--set", "batching=true"]
    predicted = CliRunner().invoke(commands, ["simulate", "tiny", *options])
    assert predicted.exit_code == 0, predicted.output
    assert "nothing was served" in predicted.output
