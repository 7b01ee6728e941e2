from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from optimizer.configuration.model_graph import ComposedModel, ModelGraph, in_sequence
from optimizer.configuration.serving_config import (
    ArtifactSpec,
    ModelServing,
    ServingConfig,
    describe,
)
from optimizer.machine.slots import Slot
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.trial_record import Seconds, TrialRecord
from optimizer.search.calibrate import CalibratePhase
from optimizer.search.recorded.virtual_pool import VirtualPool
from optimizer.search.running_tasks import RunningTasks
from optimizer.search.worker_pool import InlinePool, TaskEnd
from optimizer.simulator.calibration import parts_alone
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Event, Note, PhaseStarted, TrialStarted
from optimizer.workload.streams import LatencyLimit, Payloads, Stream, Workload
from tests.unit.studies import SETTING, FakeEvaluator, bounded, failed, small_space

pytestmark = pytest.mark.usefixtures("fast_disk")
SPACE = small_space()
CONFIGS = [SPACE.config(SPACE.at(row)) for row in (0, 5, 9)]


def calibrated(
    folder: Path, configs: list[ServingConfig], pace: Evaluation, events: list[Event]
) -> FakeEvaluator:
    evaluator = FakeEvaluator(pace=lambda _: pace)
    tasks = RunningTasks(InlinePool(evaluator, SETTING.slot), events.append)
    phase = CalibratePhase(tasks, StudyDirectory(folder), SETTING, events.append)
    phase.run(configs)
    assert phase.complete
    assert [record.config for record in phase.records] == CONFIGS[: len(phase.records)]
    return evaluator


def test_every_configuration_is_saturated_once_and_kept(tmp_path: Path) -> None:
    events: list[Event] = []
    evaluator = calibrated(tmp_path, CONFIGS, bounded(100), events)
    assert evaluator.saturated == CONFIGS
    assert events[0] == PhaseStarted("calibrate", 3)
    assert [event.measured for event in events if isinstance(event, TrialStarted)] == [1, 2, 3]
    kept = StudyDirectory(tmp_path).calibration.read_all()
    assert [record.config for record in kept.values()] == CONFIGS
    assert all(record.measurement is not None for record in kept.values())


def test_a_study_that_goes_on_saturates_only_what_is_missing(tmp_path: Path) -> None:
    calibrated(tmp_path, CONFIGS[:2], bounded(100), [])
    again = calibrated(tmp_path, CONFIGS, bounded(100), [])
    assert again.saturated == CONFIGS[2:]


def test_only_some_get_a_light_load_too(tmp_path: Path) -> None:
    light: list[ServingConfig] = []

    class Evaluator(FakeEvaluator):
        def calibrate(self, config: ServingConfig, slot: Slot) -> Evaluation:
            light.append(config)
            return super().calibrate(config, slot)

    evaluator = Evaluator(pace=lambda _: bounded(100))
    tasks = RunningTasks(InlinePool(evaluator, SETTING.slot), lambda _: None)
    phase = CalibratePhase(tasks, StudyDirectory(tmp_path), SETTING, lambda _: None)
    configs = [SPACE.config(SPACE.at(row)) for row in range(5)]
    phase.run(configs, light=[configs[0], configs[4]])
    assert [record.config for record in phase.records] == evaluator.saturated == configs
    assert light == [configs[0], configs[4]]


def test_targets_that_share_no_model_are_calibrated_alone_too() -> None:
    artifact = ArtifactSpec("m", "repository", "python", "as_deployed")
    one, two, three = (ModelServing(name, artifact) for name in ("one", "two", "three"))
    pair = ServingConfig((one, two))
    assert parts_alone(pair) == (ServingConfig((one,)), ServingConfig((two,)))
    assert parts_alone(ServingConfig((one,))) == ()
    pipeline = ComposedModel("three", "ensemble", in_sequence(["one", "two"]))
    assert parts_alone(ServingConfig((one, two, three), ModelGraph((pipeline,)))) == ()


def test_a_part_is_sent_its_own_requests_alone() -> None:
    one, two = (
        Stream(name, name, "poisson", Payloads(()), LatencyLimit(95, 50), 10.0) for name in "ab"
    )
    whole = Workload((one, two))
    assert whole.to(["b"]).streams == (two,)
    assert whole.to(["a", "b"]) is whole


def test_a_failure_is_kept_and_not_tried_again(tmp_path: Path) -> None:
    events: list[Event] = []
    calibrated(tmp_path, CONFIGS, failed("it broke"), events)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert notes == [
        f"calibration run of {describe(config)} failed: it broke" for config in CONFIGS
    ]
    again = calibrated(tmp_path, CONFIGS, bounded(100), [])
    assert again.saturated == []
    reasons = {r.reason for r in StudyDirectory(tmp_path).calibration.read_all().values()}
    assert reasons == {"it broke"}


def started_on(pool: VirtualPool, folder: Path) -> tuple[CalibratePhase, RunningTasks]:
    tasks = RunningTasks(pool, lambda _: None)
    phase = CalibratePhase(tasks, StudyDirectory(folder), SETTING, lambda _: None)
    phase.run(CONFIGS)
    return phase, tasks


def completed_on(pool: VirtualPool, folder: Path) -> Sequence[TrialRecord]:
    """As by a search, which receives the results of all tasks."""
    phase, tasks = started_on(pool, folder)
    while len(tasks):
        tasks.receive(1.0)
    assert phase.complete
    assert [record.number for record in phase.records] == list(range(len(phase.records)))
    return phase.records


def on_workers(evaluator: FakeEvaluator, folder: Path, workers: int) -> VirtualPool:
    pool = VirtualPool(evaluator, SETTING.slot, workers)
    records = completed_on(pool, folder)
    assert {record.config for record in records} == set(CONFIGS)
    assert len(records) == len(CONFIGS)
    return pool


def test_several_workers_run_side_by_side(tmp_path: Path) -> None:
    durations = iter([9.0, 2.0, 5.0])

    def pace(_: int) -> Evaluation:
        return replace(bounded(100), seconds=Seconds(measuring=next(durations)))

    assert on_workers(FakeEvaluator(pace=pace), tmp_path, workers=2).seconds == 9.0


@pytest.mark.parametrize(("workers", "ended"), [(1, 3), (2, 2), (3, 1), (4, 0)])
def test_the_search_begins_on_the_first_worker_that_no_run_is_left_for(
    tmp_path: Path, workers: int, ended: int
) -> None:
    durations = iter([9.0, 2.0, 5.0])

    def pace(_: int) -> Evaluation:
        return replace(bounded(100), seconds=Seconds(measuring=next(durations)))

    pool = VirtualPool(FakeEvaluator(pace=pace), SETTING.slot, workers)
    phase, tasks = started_on(pool, tmp_path)
    assert len(phase.records) == ended
    assert phase.complete == (ended == 3)
    assert tasks.idle > 0


def test_what_was_measured_before_a_kill_is_not_measured_again(tmp_path: Path) -> None:
    class KilledError(Exception):
        """Stands for a kill -9 while a run is still going on."""

    class KilledPool(VirtualPool):
        def next_end(self, timeout_seconds: float | None = None) -> TaskEnd | None:
            if len(StudyDirectory(tmp_path).calibration.read_all()) == 2:
                raise KilledError
            return super().next_end(timeout_seconds)

    evaluator = FakeEvaluator(pace=lambda _: bounded(100))
    pool = KilledPool(evaluator, SETTING.slot, 3)
    with pytest.raises(KilledError):
        completed_on(pool, tmp_path)
    again = FakeEvaluator(pace=lambda _: bounded(100))
    on_workers(again, tmp_path, workers=3)
    assert len(again.saturated) == 1


def test_a_transient_failure_is_retried_while_others_run(tmp_path: Path) -> None:
    evaluator = FakeEvaluator(pace=lambda run: failed(transient=True) if run == 1 else bounded(100))
    pool = VirtualPool(evaluator, SETTING.slot, 2)
    records = completed_on(pool, tmp_path)
    assert [record.outcome for record in records] == ["failed", "bounded", "bounded", "bounded"]
    assert [record.attempt for record in records if record.config == CONFIGS[0]] == [1, 2]
