from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import optimizer
from optimizer import api
from optimizer.analysis.study_reading import read_study
from optimizer.analysis.summary import StudySummary
from optimizer.cluster.choice import ClusterChoice
from optimizer.commands.measure import MeasureOptions
from optimizer.commands.run import RunResult
from optimizer.commands.run_options import RunOptions
from optimizer.errors import UsageError
from optimizer.files.atomic import write_json
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Event, Note, Watcher
from optimizer.study.trial_records import measured_record
from tests.unit.studies import SETTING, capacity_of, failed
from tests.unit.test_simulating import SPACE as SIMULATED
from tests.unit.test_simulating import results as calibrated
from tests.unit.whole_studies import WholeStudy, configs, of_file

__all__ = ["calibrated"]

pytestmark = pytest.mark.usefixtures("fast_disk")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def study(tmp_path: Path) -> optimizer.Study:
    """Four trials, of which the third missed the limits and the winner was confirmed."""
    capacities = {0: 100.0, 1: 180.0, 2: 0.0, 3: 300.0}
    directory = WholeStudy(
        tmp_path / "one", capacities, {3: (290.0, 280.0), 0: (100.0, 99.0)}, pace=None
    ).written()
    space = read_study(tmp_path, "one").searched.search_space
    broken = measured_record(4, configs(space)[2], failed("it broke"), SETTING)
    directory.trials.write(broken)
    summary = directory.read_json(directory.summary)
    write_json(directory.summary, {**summary, "trials": {"ok": 4, "failed": 1}})
    return optimizer.Study("one", results=tmp_path)


def test_importing_the_package_imports_nothing_else() -> None:
    heavy = (
        "{'aiohttp', 'grpc', 'numpy', 'onnx', 'optuna', 'pandas', 'plotly', 'pydantic', 'torch'}"
    )
    code = (
        "import sys, optimizer\n"
        f"assert not {heavy} & set(sys.modules), set(sys.modules)\n"
        "assert {'run', 'Study', '__version__'} <= set(dir(optimizer))\n"
        "try:\n    optimizer.walk\nexcept AttributeError as error:\n    print(error)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "module 'optimizer' has no attribute 'walk'"


def test_the_names_of_the_package_are_those_of_the_api() -> None:
    for name in ("Study", "load_space", "measure", "run", "simulate"):
        assert getattr(optimizer, name) is getattr(api, name)
        assert getattr(api, name).__doc__


def test_trials_have_a_row_each_with_parameters_and_units(study: optimizer.Study) -> None:
    trials = study.trials().set_index("number")
    assert list(trials.outcome) == ["ok", "ok", "infeasible", "ok", "failed"]
    assert list(trials.precision) == ["fp32", "fp32", "int8", "int8", "int8"]
    assert list(trials.instance_count) == [1, 2, 1, 2, 1]
    assert not trials.batching.any()
    assert trials.max_queue_delay_us.isna().all(), "without batching it has no effect"
    assert "cuda_graphs" in trials
    best = trials.loc[3]
    assert best.capacity_per_second == pytest.approx(300.0)
    assert (best.capacity_low_per_second, best.capacity_high_per_second) == pytest.approx(
        (294.0, 306.0)
    )
    assert best.usd_per_million_at_capacity == pytest.approx(1 / 3)
    assert (best.replicas, best.fleet_usd_per_hour) == (2, pytest.approx(0.72))
    assert (best.p95_ms_at_capacity, best.measuring_seconds) == (50.0, 2.0)
    for number in (2, 4):
        missing = trials.loc[number, ["capacity_per_second", "replicas", "p95_ms_at_capacity",
                                      "usd_per_million_at_capacity"]]  # fmt: skip
        assert missing.isna().all()
    assert trials.loc[2].saturation_per_second == pytest.approx(80.0)
    assert np.isnan(trials.loc[4].saturation_per_second)
    assert trials.loc[4].reason == "it broke"


def test_levels_have_a_row_for_each_stream(study: optimizer.Study) -> None:
    levels = study.levels()
    assert list(levels.columns[:4]) == ["trial", "level", "kind", "stream"]
    own = levels[levels.trial == 3]
    assert list(own.kind) == ["saturation", "open_loop", "open_loop"]
    assert list(own.offered_per_second) == pytest.approx([315.0, 300.0, 150.0])
    assert list(own.p95_ms) == [50.0, 50.0, 20.0]
    assert list(own.p50_ms) == [25.0, 25.0, 10.0]
    assert list(own.p99_ms) == pytest.approx([60.0, 60.0, 24.0])
    assert set(own.limit_ms) == {100.0}
    assert 4 not in set(levels.trial), "what failed has no levels"
    rounds = study.levels("confirmations")
    assert set(rounds.trial) == {0, 1, 2, 3}
    assert study.levels("calibration").empty
    assert list(study.levels("calibration").columns) == list(levels.columns)


def test_the_best_and_the_baseline_carry_confirmed_figures(study: optimizer.Study) -> None:
    best, baseline = study.best, study.baseline
    assert best is not None
    assert baseline is not None
    assert best.confirmed
    assert best.number == 3
    assert best.capacity_per_second == pytest.approx(280.0), "the worse of two rounds"
    assert (best.precision, best.instance_count, best.replicas) == ("int8", 2, 2)
    assert best.p95_ms_at_capacity == 60.0
    assert baseline.capacity_per_second == pytest.approx(99.0)
    assert baseline.precision == "fp32"
    assert study.summary is not None
    assert study.summary.study == "one"
    rounds = study.confirmations()
    assert list(rounds.capacity_per_second) == pytest.approx([290.0, 280.0, 100.0, 99.0])
    assert list(rounds.trial) == [3, 3, 0, 0]
    assert "replicas" not in rounds


def test_a_study_that_has_found_nothing_says_so(tmp_path: Path) -> None:
    WholeStudy(tmp_path / "slow", {0: 0.0}).written()
    study = optimizer.Study(tmp_path / "slow")
    assert (study.best, study.baseline, study.summary) == (None, None, None)
    assert len(study.trials()) == 1
    for figure in (study.figure_cost_latency(), study.figure_load_latency()):
        assert figure.to_dict()["layout"]["title"]["text"]
    with pytest.raises(UsageError, match="study 'none' not found"):
        optimizer.Study("none", results=tmp_path)


def test_what_if_takes_values_as_python_has_them(calibrated: Path) -> None:
    settings: dict[str, api.ParameterValue] = {
        "runtime": "openvino", "precision": "int8", "batching": True, "bert.max_batch_size": 8,
    }  # fmt: skip
    found = optimizer.simulate("calibrated", settings, results=calibrated)
    assert found.configuration.startswith("openvino int8, max_batch_size 8, queue delay 0 us")
    [capacity] = found.capacities().to_dict("records")
    assert capacity["stream"] == "bert"
    assert capacity["capacity_per_second"] <= 0.95 * capacity["saturation_per_second"] + 1e-6
    levels = found.levels()
    assert levels.p95_ms.iloc[-1] > levels.p95_ms.iloc[0]
    assert levels.offered_per_second.is_monotonic_increasing
    again = optimizer.Study("calibrated", results=calibrated).simulate(settings)
    pd.testing.assert_frame_equal(again.levels(), levels)
    assert found.measured is None
    with pytest.raises(UsageError, match="precision"):
        optimizer.simulate("calibrated", {"precision": "int9"}, results=calibrated)


def test_run_hands_on_what_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[RunOptions] = []
    heard: list[Event] = []
    space = of_file(tmp_path / "file")

    def run_study(request: RunOptions, watch: Watcher) -> RunResult:
        asked.append(request)
        watch(Note("it goes on"))
        return RunResult(
            StudyDirectory(tmp_path / "one"),
            StudySummary(ended="", trials={}, best=None),
            was_finished=False,
        )

    WholeStudy(tmp_path / "one", {0: 100.0}).written()
    monkeypatch.setattr(api, "run_study", run_study)
    monkeypatch.setenv("OPTIMIZER_CACHE", str(tmp_path / "cache"))
    study = optimizer.run(space, results=tmp_path, trials=3, sampler="gp", watch=heard.append)
    assert study.folder == tmp_path / "one"
    assert heard == [Note("it goes on")]
    optimizer.run("space.yaml", cache=tmp_path / "mine")
    first, second = asked
    assert first.space is space
    assert (first.trials, first.sampler, first.study) == (3, "gp", None)
    assert first.cache is None
    assert (second.space, second.results) == (Path("space.yaml"), Path("results"))
    assert second.cache == tmp_path / "mine"


def test_measure_hands_on_settings_as_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[MeasureOptions] = []
    found: Any = object()

    def measure_configuration(request: MeasureOptions, _: Watcher) -> Any:
        asked.append(request)
        return found

    monkeypatch.setattr(api, "measure_configuration", measure_configuration)
    space = of_file(tmp_path)
    settings: dict[str, api.ParameterValue] = {
        "batching": True,
        "instance_count": 2,
        "precision": "int8",
    }
    assert optimizer.measure(space, settings, curve=True).result is found
    assert asked[0].settings == {
        "batching": "true", "instance_count": "2", "precision": '"int8"',
    }  # fmt: skip
    assert asked[0].curve
    with pytest.raises(
        UsageError, match="give one of --curve, --rate, --users, not --curve and --rate"
    ):
        optimizer.measure(space, curve=True, rate_per_second=5.0)


def test_the_truth_of_the_simulated_space_is_within_reach(calibrated: Path) -> None:
    """Of the baseline, which was calibrated with."""
    [capacity] = optimizer.simulate("calibrated", results=calibrated).capacities().itertuples()
    truth = 1.05 * capacity_of(SIMULATED.config(SIMULATED.baseline))
    assert capacity.saturation_per_second == pytest.approx(truth, rel=0.3)


def test_a_study_of_each_accelerator_is_returned_by_name(
    study: optimizer.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tests/e2e/test_cluster.py runs the same function on a cluster."""
    pytest.importorskip("ray")
    from optimizer.commands import each_accelerator
    from optimizer.commands.each_accelerator import EachResult

    error, given = UsageError("no price"), list[RunOptions]()

    def run_each_type(options: RunOptions, watch_study: Callable[[str], Watcher]) -> EachResult:
        given.append(options)
        watch_study("one")(Note("told"))
        return EachResult(("one",), {"two": error}, None)

    monkeypatch.setattr(each_accelerator, "run_each_type", run_each_type)
    events: list[Event] = []
    ended = optimizer.run_each_accelerator_type(
        "space.yaml",
        cluster="auto",
        worker_resources={"tuning": 1},
        trials=3,
        results=tmp_path,
        watch_study=lambda _: events.append,
    )
    assert given == [
        RunOptions(
            Path("space.yaml"),
            trials=3,
            cluster=ClusterChoice("auto", (("tuning", 1),)),
            results=tmp_path,
        )
    ]
    assert ended.studies["one"].summary == study.summary
    assert (ended.errors, ended.comparison, events) == ({"two": error}, None, [Note("told")])
