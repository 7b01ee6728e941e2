"""When the winner is measured further, for how long, and that it is measured once."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optimizer.configuration.serving_config import ServingConfig
from optimizer.errors import ServerFailure
from optimizer.machine.time_limit import TimeLimit
from optimizer.search import winner_phase
from optimizer.search.winner_phase import (
    WINNER_TESTS,
    WinnerPhase,
    reserved_seconds,
    seconds_by_itself,
)
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Event, Note, PhaseStarted, StepFinished
from optimizer.study.run_state import RunState
from tests.unit.studies import found_by, ok, record_of, small_space
from tests.unit.winners import bursts, cold_start, transports

pytestmark = pytest.mark.usefixtures("fast_disk")
SPACE = small_space()
CONFIG = SPACE.config(SPACE.baseline)
WINNER = found_by(record_of(0, CONFIG, ok(100.0))).candidate


class NoServer:
    """Runs tests that are replaced by functions without an evaluator."""

    def run_winner_test(self, test: Callable[..., Any], *task: Any) -> Any:
        return test(None, *task)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that each test was given."""
    given: list[float] = []

    def instead(result: Callable[[ServingConfig], object]) -> Callable[..., object]:
        def measure(_: object, config: Any, load_factor: float, seconds: float) -> object:
            assert load_factor == WINNER.measurement.load_factor
            given.append(seconds)
            return result(config)

        return measure

    monkeypatch.setattr(winner_phase, "measure_cold_start", instead(cold_start))
    monkeypatch.setattr(winner_phase, "compare_transports", instead(transports))
    monkeypatch.setattr(winner_phase, "measure_bursts", instead(bursts))
    return given


def run(folder: Path, *asked_for: Any, measured: float = 0.0, left: float = 1e4) -> list[Event]:
    events: list[Event] = []
    phase = WinnerPhase(NoServer(), StudyDirectory(folder), events.append)
    phase.run(WINNER, asked_for, measured, TimeLimit(left, lambda: 0.0))
    return events


def test_by_itself_it_takes_a_tenth_of_the_load_tests_at_most() -> None:
    assert seconds_by_itself(300.0) == 0.0
    assert seconds_by_itself(900.0) == 90.0
    assert seconds_by_itself(1e5) <= 400.0


def test_the_search_leaves_it_time() -> None:
    assert reserved_seconds(210.0, ()) == 0.0
    assert reserved_seconds(8 * 3600.0, ()) == seconds_by_itself(8 * 3600.0) > 0
    assert 0 < reserved_seconds(60.0, WINNER_TESTS) < 60.0


def test_a_short_study_is_not_lengthened_unless_it_was_asked_to(
    tmp_path: Path, measured: list[float]
) -> None:
    assert run(tmp_path, measured=100.0) == []
    assert measured == []
    started = run(tmp_path, "cold-start", measured=100.0, left=40.0)
    assert started[0] == PhaseStarted("winner", 1, 40.0)
    assert measured == [pytest.approx(40.0, abs=1.0)]


def test_what_was_measured_once_is_not_measured_again(
    tmp_path: Path, measured: list[float]
) -> None:
    run(tmp_path, "cold-start")
    assert run(tmp_path, "cold-start") == []
    assert len(measured) == 1
    run(tmp_path, measured=1e4)
    assert len(measured) == 3, "the transports and the bursts were missing"


def test_all_of_it_shares_the_time(tmp_path: Path, measured: list[float]) -> None:
    [begun, *_] = run(tmp_path, measured=900.0)
    assert begun == PhaseStarted("winner", 3, 90.0)
    assert sum(measured) == pytest.approx(90.0, abs=2.0)
    assert measured[0] > measured[1] > measured[2] > 0


def test_the_progress_counts_the_tests_that_are_over(
    tmp_path: Path, measured: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ServerFailure("it died")

    monkeypatch.setattr(winner_phase, "compare_transports", fail)
    state = RunState(time.monotonic)
    done = []
    for event in run(tmp_path, measured=900.0):
        state.watch(event)
        done.append((state.done, state.steps))
    assert done[0] == (0, 3)
    assert done[-1] == (3, 3)
    assert {(1, 3), (2, 3)} <= {*done}


def test_the_time_limit_goes_before_what_was_asked_for(
    tmp_path: Path, measured: list[float]
) -> None:
    [note] = run(tmp_path, "cold-start", left=3.0)
    assert isinstance(note, Note)
    assert note.warning
    assert "cold-start: not measured, as 3 s of the time are left" in note.text
    assert measured == []


@pytest.mark.parametrize(
    ("transient", "left", "attempts"), [(True, 100.0, 2), (True, 10.0, 1), (False, 100.0, 1)]
)
def test_a_failure_is_told_and_the_study_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    transient: bool,
    left: float,
    attempts: int,
) -> None:
    failures: list[None] = []

    def fail(*_: object) -> None:
        failures.append(None)
        raise ServerFailure("it broke", transient=transient)

    monkeypatch.setattr(winner_phase, "measure_cold_start", fail)
    events = run(tmp_path, "cold-start", left=left)
    assert events[-2:] == [Note("cold-start: not measured: it broke", True), StepFinished()]
    assert StudyDirectory(tmp_path).cold_start.read(CONFIG) is None
    assert len(failures) == attempts
