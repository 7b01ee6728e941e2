"""What the events of a run add up to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from optimizer.measurement.trial_record import Seconds
from optimizer.study.decision import ConfirmedCapacity
from optimizer.study.events import (
    ArtifactReady,
    DisturbanceCheckStarted,
    DriftRunStarted,
    Event,
    LevelFinished,
    LevelStarted,
    Phase,
    PhaseStarted,
    SearchStatusChanged,
    StepStarted,
    TrialFinished,
    TrialStarted,
    WorkerEvent,
    WorkerLost,
    WorkersStarted,
)
from optimizer.study.progress import TimeLeft
from optimizer.study.run_state import RunState
from optimizer.study.search_status import ExpectedCost, SearchStatus
from tests.unit.studies import (
    bounded,
    failed,
    found_by,
    four_points,
    infeasible,
    level,
    ok,
    record_of,
)

SPACE = four_points()
A, B, C, D = (SPACE.config(SPACE.at(row)) for row in range(4))
EXPECTED = ExpectedCost("the largest saving", 0.5, 0.4, 0.625, 0.9, 0.05, 20.0)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def state_after(events: Iterable[Event], clock: Clock | None = None) -> RunState:
    state = RunState(clock or Clock())
    for event in events:
        state.watch(event)
    return state


def test_a_trial_is_followed_from_its_beginning_to_its_end() -> None:
    best = found_by(record_of(0, B, ok(130)))
    state = state_after(
        [
            PhaseStarted("search", 12, 600.0),
            TrialStarted(0, 1, 12, B),
            TrialFinished(best.trial, best),
            TrialStarted(1, 2, 12, A, EXPECTED),
            StepStarted("loading the model"),
            LevelStarted(None, 3.0),
            LevelFinished(replace(level(0.4, 40.0, kind="saturation"), warnings=("it is hot",))),
            LevelFinished(level(0.3, 30.0)),
            LevelStarted(142.5, 4.0),
        ]
    )
    assert (state.phase, state.done, state.steps) == ("search", 1, 12)
    assert state.now.number == 1
    assert state.now.configuration == "openvino fp32, no batching, 1 x 1 thread"
    assert state.now.doing == "offering 142/s for 4 s"
    assert state.now.expected == (
        "$0.5000 per million (0.4000 to 0.6250), saving 5.0%, "
        "90% likely within the limits, measured in 20 s; reason: the largest saving"
    )
    assert (state.now.rates, state.now.p95s_ms) == ([200.0, 150.0], [40.0, 30.0])
    assert state.now.warnings == ("it is hot",)
    assert state.best == best
    state.watch(TrialStarted(2, 3, 12, C))
    assert (len(state.now.levels), len(state.now.rates), len(state.now.warnings)) == (0, 0, 0)
    assert state.now.expected == ""


def test_trials_are_counted_by_outcome_after_those_of_earlier_runs() -> None:
    known = {0: record_of(0, A, ok(100)), 1: record_of(1, B, failed())}
    state = RunState(Clock(), known)
    state.watch(PhaseStarted("search", 12))
    for number, evaluation in enumerate((bounded(50), infeasible(80), ok(200)), start=2):
        state.watch(TrialFinished(record_of(number, C, evaluation), None))
    assert state.trials == {"ok": 2, "infeasible": 1, "bounded": 1, "failed": 1}
    assert list(state.capacities) == [100.0, 0.0, 0.0, 0.0, 200.0]


def test_what_other_phases_measure_is_no_trial() -> None:
    again = replace(record_of(0, A, ok(100)), score=None)
    state = state_after(
        [PhaseStarted("confirm", 4), TrialStarted(0, 1, 2, A), TrialFinished(again, None)]
    )
    assert sum(state.trials.values()) == 0
    assert state.now.number is None
    assert state.done == 1


def test_the_best_is_what_the_search_and_the_confirm_phase_say_last() -> None:
    best = found_by(record_of(0, B, ok(130)))
    state = RunState(Clock(), {}, best)
    broken = record_of(0, A, failed())
    phases: list[tuple[Phase, ConfirmedCapacity | None]] = [("calibrate", best), ("confirm", None)]
    for phase, kept in phases:
        state.watch(PhaseStarted(phase, 4))
        state.watch(TrialFinished(broken, None))
        assert state.best == kept


def test_calibration_runs_that_go_on_beside_the_first_trials_keep_their_levels() -> None:
    events: list[Event] = [WorkersStarted({"a": "slot 0", "b": "slot 1"})]
    events += [PhaseStarted("calibrate", 1), TrialStarted(0, 1, 1, A, worker="a")]
    events += [PhaseStarted("search", 12), TrialStarted(0, 1, 12, B, worker="b")]
    events += [WorkerEvent("a", 0, LevelFinished(level(0.4, 40.0)))]
    state = state_after(events)
    calibration, trial = (state.workers[name].measurement for name in "ab")
    assert calibration is not None
    assert trial is not None
    assert (len(calibration.levels), len(trial.levels)) == (1, 0)
    assert (calibration.number, trial.number, state.done) == (None, 0, 0)


def test_the_reference_is_no_trial_either() -> None:
    state = state_after([PhaseStarted("search", 4), DriftRunStarted(A)])
    assert state.now.configuration.startswith("baseline rerun: ")


def test_the_time_left_follows_the_steps_and_the_clock() -> None:
    clock = Clock()
    state = state_after([PhaseStarted("prepare", 4)], clock)
    assert state.time_left() == TimeLeft(None, None)
    clock.now += 10
    state.watch(ArtifactReady("x", "y", dropped=False))
    assert state.time_left() == TimeLeft(by_steps=30.0, by_clock=None)
    state.watch(PhaseStarted("search", 5, 100.0))
    assert state.time_left() == TimeLeft(None, by_clock=100.0)
    clock.now += 40
    for number, total in enumerate((10.0, 30.0, 20.0)):
        record = replace(record_of(number, A, ok(100)), seconds=Seconds(total=total))
        state.watch(TrialFinished(record, found_by(record)))
    assert state.time_left() == TimeLeft(by_steps=40.0, by_clock=60.0)
    assert state.time_left().at_most == 40.0
    clock.now += 50
    assert state.time_left().at_most == 10.0
    clock.now += 50
    assert state.time_left().at_most == 0.0


def test_the_trials_of_earlier_runs_tell_how_long_one_takes() -> None:
    known = {n: record_of(n, A, ok(100)) for n in range(3)}  # Each took 4 s.
    state = RunState(Clock(), known)
    state.watch(PhaseStarted("search", 10))
    state.watch(TrialStarted(3, 4, 10, B))
    assert state.time_left().by_steps == pytest.approx(28.0)


def test_what_may_still_be_found_is_kept() -> None:
    state = state_after([SearchStatusChanged(SearchStatus(regret_bound=0.25))])
    assert state.regret_bound == 0.25


WORKERS = WorkersStarted({"slot-0": "cores 0", "slot-1": "cores 1"})


def of(worker: str, number: int, event: Event) -> WorkerEvent:
    return WorkerEvent(worker, number, event)


def test_each_worker_is_followed_with_its_own_trial() -> None:
    state = state_after(
        [
            PhaseStarted("search", 12),
            WORKERS,
            TrialStarted(4, 5, 12, A, EXPECTED, worker="slot-1"),
            TrialStarted(5, 6, 12, B, worker="slot-0"),
            of("slot-1", 4, LevelStarted(None, 3.0)),
            of("slot-0", 5, LevelStarted(142.5, 4.0)),
            of("slot-1", 4, LevelFinished(level(0.4, 40.0, kind="saturation"))),
        ]
    )
    first, second = state.workers["slot-0"].measurement, state.workers["slot-1"].measurement
    assert first is not None
    assert second is not None
    assert (first.number, first.doing, first.rates) == (5, "offering 142/s for 4 s", [])
    assert (second.number, second.doing, second.rates) == (4, "saturating for 3 s", [200.0])
    assert second.expected.startswith("$0.5000")
    assert state.done == 4, "those that run are not done"
    state.watch(TrialFinished(replace(record_of(4, A, ok(100)), workers=("slot-1",)), None))
    assert state.done == 5
    assert state.workers["slot-1"].measurement is None
    assert state.workers["slot-0"].measurement is first


def test_a_lost_worker_is_idle_and_its_loss_is_counted() -> None:
    state = state_after(
        [
            PhaseStarted("search", 12),
            WORKERS,
            TrialStarted(0, 1, 12, A, worker="slot-1"),
            WorkerLost("slot-1", 0, "its process ended with signal SIGKILL"),
            TrialStarted(0, 1, 12, A, worker="slot-0"),
        ]
    )
    assert [own.losses for own in state.workers.values()] == [0, 1]
    assert state.workers["slot-1"].measurement is None
    assert state.workers["slot-0"].measurement is not None
    state.watch(WorkersStarted({"slot-2": "cores 2"}))
    assert [own.losses for own in state.workers.values()] == [0, 1, 0], "one has joined"


def test_a_run_of_the_baseline_on_a_worker_is_what_is_measured_now() -> None:
    state = state_after([PhaseStarted("search", 12), WORKERS, DisturbanceCheckStarted(A, 2)])
    state.watch(of("slot-1", 0, LevelStarted(None, 3.0)))
    assert state.now.configuration.startswith("baseline alone, then on 2 workers at once: ")
    assert state.now.doing == "saturating for 3 s"
    assert state.now.number is None


def test_what_follows_the_search_has_no_workers() -> None:
    state = state_after([PhaseStarted("search", 2), WORKERS, PhaseStarted("confirm", 4)])
    assert state.workers == {}


def test_trials_at_the_same_time_take_less_time_together() -> None:
    known = {n: record_of(n, A, ok(100)) for n in range(3)}  # Each took 4 s.
    state = RunState(Clock(), known)
    state.watch(PhaseStarted("search", 11))
    state.watch(WORKERS)
    state.watch(TrialStarted(3, 4, 11, A, worker="slot-0"))
    state.watch(TrialStarted(4, 5, 11, B, worker="slot-1"))
    assert state.time_left().by_steps == pytest.approx(8 * 4 / 2)
