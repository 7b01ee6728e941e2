from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from optimizer.cli import commands
from optimizer.commands.simulate import (
    SHARES,
    SimulateOptions,
    SimulateResult,
    simulate_configuration,
)
from optimizer.errors import UsageError
from optimizer.search.calibrate import CalibratePhase
from optimizer.search.recorded.evaluator import RecordedEvaluator
from optimizer.search.running_tasks import RunningTasks
from optimizer.search.worker_pool import InlinePool
from optimizer.simulator.calibration import calibration_points
from optimizer.study.directory import StudyDirectory
from optimizer.study.searched_space import SearchedSpace, read_searched, write_searched
from tests.unit.studies import (
    DEMAND,
    LIMIT_MS,
    PRICE,
    SETTING,
    begin_study,
    capacity_of,
    small_space,
)
from tests.unit.tables import WORKLOAD, recorded_table

pytestmark = pytest.mark.usefixtures("fast_disk")
SPACE = small_space()
SEARCHED = SearchedSpace("calibrated", SPACE, WORKLOAD, PRICE, DEMAND)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with a study that has been calibrated and no trial."""
    directory = StudyDirectory(tmp_path / "calibrated")
    begin_study(directory, SEARCHED)
    evaluator = RecordedEvaluator(recorded_table(SPACE), np.random.default_rng(0))
    tasks = RunningTasks(InlinePool(evaluator, SETTING.slot), lambda _: None)
    phase = CalibratePhase(tasks, directory, SETTING, lambda _: None)
    phase.run([SPACE.config(point) for point in calibration_points(SPACE)])
    return tmp_path


def predicted(results: Path, **settings: str) -> SimulateResult:
    return simulate_configuration(SimulateOptions("calibrated", settings, results=results))


def test_what_is_searched_comes_back_from_its_file(tmp_path: Path) -> None:
    directory = StudyDirectory(tmp_path)
    write_searched(directory, SEARCHED)
    assert read_searched(directory) == SEARCHED


def test_a_configuration_that_was_never_served_is_predicted(results: Path) -> None:
    found = predicted(
        results,
        runtime="openvino",
        precision="int8",
        batching="true",
        max_batch_size="8",
        instance_count="2",
        intra_op_threads="1",
    )
    [own] = found.prediction.streams
    saturation = own.saturation_per_second
    # The truth of the table is no affine service time, so this is no question of per cent.
    assert saturation == pytest.approx(1.05 * capacity_of(found.config), rel=0.3)
    assert 0 < own.capacity_per_second <= 0.95 * saturation + 1e-6
    assert found.runs == 7
    assert found.measured is None
    rates = [level.offered_per_second for level in own.levels]
    assert rates == pytest.approx([share * saturation for share in SHARES])
    p95s = [level.latency_ms(95.0) for level in own.levels]
    assert p95s[-1] > p95s[0], "latency rises with the load"
    assert own.at_capacity is not None
    assert own.at_capacity.latency_ms(95.0) <= 1.2 * LIMIT_MS
    assert max(own.at_capacity.batches) <= 8


def test_what_is_not_set_is_the_baselines(results: Path) -> None:
    assert predicted(results).config == SPACE.config(SPACE.baseline)


def test_mistakes_name_the_study_or_the_setting(results: Path) -> None:
    with pytest.raises(UsageError, match="study 'other' not found"):
        simulate_configuration(SimulateOptions("other", {}, results=results))
    with pytest.raises(UsageError, match="precision"):
        predicted(results, precision="int9")
    directory = StudyDirectory(results / "fresh")
    begin_study(directory, SEARCHED)
    with pytest.raises(UsageError, match="study fresh has no measurement at saturation yet"):
        simulate_configuration(SimulateOptions("fresh", {}, results=results))


def test_the_command_prints_levels_the_limit_and_the_batches(results: Path) -> None:
    options = ["--set", "batching=true", "--set", "max_batch_size=8", "--results", str(results)]
    ran = CliRunner().invoke(commands, ["simulate", "calibrated", *options])
    assert ran.exit_code == 0, ran.output
    assert "predicted from 7 saturated runs of calibrated; nothing was served" in ran.output
    assert "Predicted load levels of bert, ms" in ran.output
    assert "the limit of 100 ms (p95) is met up to" in ran.output
    assert "Predicted batches at" in ran.output
