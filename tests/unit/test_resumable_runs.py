from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.evaluation import Evaluation
from optimizer.search.resumable_runs import ResumableRuns
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Event, PhaseStarted, TrialFinished, TrialStarted
from tests.unit.studies import SETTING, bounded, failed, ok, small_space

pytestmark = pytest.mark.usefixtures("fast_disk")
SPACE = small_space()
CONFIGS = [SPACE.config(SPACE.at(row)) for row in (0, 5, 9)]


class Bench:
    """Runs whose records lie in a folder; a function of how often it was asked answers."""

    def __init__(self, folder: Path, answer: Callable[[int], Evaluation]) -> None:
        self.answer = answer
        self.asked: list[ServingConfig] = []
        self.events: list[Event] = []
        self.runs = ResumableRuns(StudyDirectory(folder).trials, SETTING, self.events.append)

    def measure(self, config: ServingConfig) -> Evaluation:
        self.asked.append(config)
        return self.answer(self.asked.count(config))


def test_each_is_measured_kept_and_told(tmp_path: Path) -> None:
    bench = Bench(tmp_path, lambda _: ok(100))
    found = bench.runs.measure_missing("baseline", CONFIGS, bench.measure)
    assert bench.asked == list(found) == CONFIGS
    assert bench.events[0] == PhaseStarted("baseline", 3)
    started = [event for event in bench.events if isinstance(event, TrialStarted)]
    assert [(each.number, each.measured, each.of) for each in started] == [
        (0, 1, 3), (1, 2, 3), (2, 3, 3),
    ]  # fmt: skip
    ended = [event for event in bench.events if isinstance(event, TrialFinished)]
    assert [each.record for each in ended] == list(found.values())
    assert all(each.best is not None for each in ended)
    assert list(StudyDirectory(tmp_path).trials.read_all().values()) == list(found.values())


def test_what_an_earlier_run_has_measured_is_not_measured_again(tmp_path: Path) -> None:
    first = Bench(tmp_path, lambda _: ok(100))
    first.runs.measure_missing("advanced", CONFIGS[:2], first.measure)
    second = Bench(tmp_path, lambda _: ok(200))
    found = second.runs.measure_missing("advanced", CONFIGS, second.measure)
    assert second.asked == CONFIGS[2:]
    assert [record.number for record in found.values()] == [0, 1, 2]


def test_a_failure_that_may_pass_is_tried_once_more(tmp_path: Path) -> None:
    bench = Bench(tmp_path, lambda n: failed("shaky", transient=True) if n == 1 else ok(100))
    found = bench.runs.measure_missing("advanced", CONFIGS[:1], bench.measure)
    assert bench.asked == CONFIGS[:1] * 2
    [record] = found.values()
    assert (record.outcome, record.attempt, record.number) == ("ok", 2, 1)
    hopeless = Bench(tmp_path / "other", lambda _: failed("shaky", transient=True))
    hopeless.runs.measure_missing("advanced", CONFIGS[:1], hopeless.measure)
    assert len(hopeless.asked) == 2


def test_what_must_run_out_of_memory_too_is_decided_by_what_did(tmp_path: Path) -> None:
    sizes = small_space(runtime=("openvino",), precision=("fp32",), intra_op_threads=(1,),
                        max_queue_delay_us=(0,), batching=(True,), max_batch_size=(8,))  # fmt: skip
    one, two = sorted(
        (sizes.config(sizes.at(row)) for row in range(len(sizes))),
        key=lambda config: config.models[0].instance_count,
    )
    bench = Bench(tmp_path, lambda _: failed("out of memory", out_of_memory=True))
    found = bench.runs.measure_missing("baseline", [one, two], bench.measure)
    assert bench.asked == [one]
    assert found[two] == found[one]


def test_a_saturation_alone_is_not_told_as_a_find(tmp_path: Path) -> None:
    bench = Bench(tmp_path, lambda _: bounded(100))
    bench.runs.measure_missing("calibrate", CONFIGS, bench.measure)
    assert not any(isinstance(event, TrialFinished) for event in bench.events)


def test_what_there_is_no_time_for_is_left_out(tmp_path: Path) -> None:
    bench = Bench(tmp_path, lambda _: ok(100))
    found = bench.runs.measure_missing(
        "advanced", CONFIGS, bench.measure, go_on=lambda: len(bench.asked) < 2
    )
    assert list(found) == bench.asked == CONFIGS[:2]
