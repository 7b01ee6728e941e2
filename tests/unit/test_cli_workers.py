"""What a person sees of several workers: lines, the live view, and `status`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from optimizer.analysis.summary import DisturbanceSummary
from optimizer.measurement.disturbance import DisturbanceCheck, WorkerRate
from optimizer.report.study_outcome import disturbance_sentence
from optimizer.study.directory import StudyDirectory
from optimizer.study.event_text import event_lines, warnings_of
from optimizer.study.events import (
    DisturbanceCheckStarted,
    Event,
    LevelFinished,
    LevelStarted,
    PhaseStarted,
    StepStarted,
    TrialFinished,
    TrialStarted,
    WorkerEvent,
    WorkerLost,
    WorkersStarted,
)
from tests.unit.studies import found_by, level, ok, record_of
from tests.unit.test_cli import drawn, words
from tests.unit.test_run_state import A, B

ON_SLOT_1 = replace(record_of(3, A, ok(130)), workers=("slot-0", "slot-1"))
LOST = WorkerLost("slot-1", 3, "its process ended with signal SIGKILL")


@pytest.mark.parametrize(
    ("event", "lines"),
    [
        (WorkersStarted({"a": "cores 0", "b": "cores 1"}), ["  a: cores 0", "  b: cores 1"]),
        (TrialStarted(3, 2, 12, A, worker="a"),
         ["  2/12 on a: openvino fp32, no batching, 1 x 1 thread"]),
        (WorkerEvent("a", 3, LevelFinished(level(0.3, 45.67))),
         ["      a: 150/s: 150/s served, p95 45.7 ms"]),
        (WorkerEvent("a", 3, StepStarted("loading the model")), []),
        (TrialFinished(ON_SLOT_1, None), ["    slot-1: ok: 130/s, $0.7692 per million"]),
        (TrialFinished(replace(ON_SLOT_1, workers=("local",)), None),
         ["    ok: 130/s, $0.7692 per million"]),
        (DisturbanceCheckStarted(A, 2),
         ["  baseline alone, then on 2 workers at once: openvino fp32, no batching, 1 x 1 thread"]),
        (LOST, []),
    ],
)  # fmt: skip
def test_lines_tell_which_worker_they_are_of(event: Event, lines: Sequence[str]) -> None:
    assert event_lines(event) == lines


def test_the_log_has_the_steps_of_every_worker() -> None:
    step = WorkerEvent("a", 3, StepStarted("loading the model"))
    assert event_lines(step, verbose=True) == ["      a: loading the model"]


def test_a_workers_warning_is_one() -> None:
    hot = replace(level(0.3, 45.67), warnings=("it is hot",))
    assert list(warnings_of(WorkerEvent("a", 3, LevelFinished(hot)))) == ["it is hot"]


def of_workers(count: int) -> list[Event]:
    """A search in which every worker has a trial, but for the last."""
    best = found_by(record_of(0, B, ok(130)))
    names = [f"gpu-{n}" for n in range(count)]
    events: list[Event] = [
        PhaseStarted("search", 40),
        WorkersStarted(dict.fromkeys(names, "cores 0")),
        TrialFinished(best.trial, best),
    ]
    for number, name in enumerate(names[:-1], 1):
        events += [
            TrialStarted(number, number + 1, 40, A, worker=name),
            WorkerEvent(name, number, LevelStarted(100.0 + number, 4.0)),
        ]
    return events


def test_the_live_view_has_a_line_for_each_worker() -> None:
    text = drawn(80, *of_workers(3), WorkerLost("gpu-2", None, "gone"))
    assert (
        "│ gpu-0    trial 1, offering 101/s for 4 s: openvino fp32, no batching, 1 x 1… │" in text
    )
    assert "│ gpu-1    trial 2, offering 102/s for 4 s:" in text
    assert "│ gpu-2    idle; lost 1 time" in text
    assert "now" not in words(text)
    assert "1/40" in text
    assert "best openvino fp32" in words(text)


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("count", [2, 8, 64])
def test_the_live_view_of_many_workers_fits_the_terminal(width: int, count: int) -> None:
    text = drawn(width, *of_workers(count), height=24)
    assert {len(line) for line in text.splitlines()} == {width}
    if width >= 80:
        assert len(text.splitlines()) <= 24
        assert "best" in text
    if count == 64 and width >= 80:
        assert "more workers, 5" in text


def test_while_the_baseline_is_measured_alone_the_live_view_shows_it() -> None:
    text = drawn(
        200,
        PhaseStarted("search", 40),
        WorkersStarted({"gpu-0": "cores 0", "gpu-1": "cores 1"}),
        DisturbanceCheckStarted(A, 2),
        WorkerEvent("gpu-0", 0, LevelStarted(None, 3.0)),
    )
    assert "now baseline alone, then on 2 workers at once: openvino fp32" in words(text)
    assert "saturating for 3 s" in words(text)


def test_the_report_says_whether_trials_disturbed_each_other() -> None:
    rate = WorkerRate("a", 100.0, 99.0, 101.0)
    quiet = DisturbanceCheck(1.0, rate, (rate, rate))
    loud = DisturbanceCheck(2.0, rate, (rate, replace(rate, per_second=80.0, high=81.0)))
    assert DisturbanceSummary.of([]) is None
    said = []
    for checks in ([quiet], [quiet, loud, quiet]):
        summary = DisturbanceSummary.of(checks)
        assert summary is not None
        said.append(disturbance_sentence(summary))
    assert said == [
        "Trials ran on 2 workers at the same time, without notable disturbance.",
        "Trials ran on 2 workers at the same time, and slowed each other down by up to 20%: trials "
        "differ by as much. Confirmations ran alone.",
    ]


def test_the_log_of_a_trial_is_that_of_its_worker(tmp_path: Path) -> None:
    study = StudyDirectory(tmp_path)
    assert study.server_log_of(ON_SLOT_1) == study.server_log, "a worker elsewhere has its own"
    own = tmp_path / "logs" / "server.slot-1.log"
    own.parent.mkdir()
    own.touch()
    assert study.server_log_of(ON_SLOT_1) == own
    assert study.server_log_of(replace(ON_SLOT_1, workers=("local",))) == study.server_log
    assert study.of_worker("slot-1").repository == tmp_path / "server" / "slot-1" / "repository"
