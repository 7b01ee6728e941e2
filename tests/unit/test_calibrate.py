from __future__ import annotations

from pathlib import Path

import pytest

from optimizer.configuration.model_graph import ComposedModel, ModelGraph, in_sequence
from optimizer.configuration.serving_config import ArtifactSpec, ModelServing, ServingConfig
from optimizer.machine.slots import Slot
from optimizer.measurement.evaluation import Evaluation
from optimizer.search.calibrate import CalibratePhase
from optimizer.simulator.calibration import parts_alone
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Event, PhaseStarted, TrialFinished, TrialStarted
from optimizer.workload.streams import LatencyLimit, Payloads, Stream, Workload
from tests.unit.studies import SETTING, FakeEvaluator, bounded, failed, small_space

pytestmark = pytest.mark.usefixtures("fast_disk")
SPACE = small_space()
CONFIGS = [SPACE.config(SPACE.at(row)) for row in (0, 5, 9)]


def calibrated(
    folder: Path, configs: list[ServingConfig], pace: Evaluation, events: list[Event]
) -> FakeEvaluator:
    evaluator = FakeEvaluator(pace=lambda _: pace)
    phase = CalibratePhase(evaluator, StudyDirectory(folder), SETTING, events.append)
    records = phase.run(configs)
    assert [record.config for record in records] == CONFIGS[: len(records)]
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


def test_parts_are_measured_after_the_others_with_a_light_load(tmp_path: Path) -> None:
    light: list[ServingConfig] = []

    class Evaluator(FakeEvaluator):
        def calibrate(self, config: ServingConfig, slot: Slot) -> Evaluation:
            light.append(config)
            return super().calibrate(config, slot)

    evaluator = Evaluator(pace=lambda _: bounded(100))
    phase = CalibratePhase(evaluator, StudyDirectory(tmp_path), SETTING, lambda _: None)
    configs = [SPACE.config(SPACE.at(row)) for row in range(5)]
    records = phase.run(configs[:4], configs[4:])
    assert [record.config for record in records] == evaluator.saturated == configs
    assert light == [*configs[:3], configs[4]]


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
    told = [event.record.reason for event in events if isinstance(event, TrialFinished)]
    assert told == ["it broke"] * 3
    again = calibrated(tmp_path, CONFIGS, bounded(100), [])
    assert again.saturated == []
    reasons = {r.reason for r in StudyDirectory(tmp_path).calibration.read_all().values()}
    assert reasons == {"it broke"}
