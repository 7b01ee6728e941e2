"""The last phase of a run: what the winner's users will see besides its capacity.

A study measures it once for a configuration, within the time of the run: by itself where that
lengthens a study by no more than a tenth, and otherwise where it was asked for.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Literal, get_args

from optimizer.configuration.serving_config import ServingConfig, describe
from optimizer.errors import TimeIsUpError, TrialFailure
from optimizer.machine.time_limit import TimeLimit
from optimizer.measurement.cost import Candidate
from optimizer.search.bursts import measure_bursts
from optimizer.search.cold_start import measure_cold_start
from optimizer.search.evaluator import WinnerTester
from optimizer.search.transport_costs import compare_transports
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Note, PhaseStarted, StepFinished, StepStarted, Watcher
from optimizer.study.history import MAX_ATTEMPTS

WinnerTest = Literal["cold-start", "transports", "bursts"]
WINNER_TESTS: tuple[WinnerTest, ...] = get_args(WinnerTest)

_LONGEST_SECONDS: Mapping[WinnerTest, float] = {
    "cold-start": 150.0,
    "transports": 120.0,
    "bursts": 100.0,
}
_SHORTEST_SECONDS = 10.0
_SHORTEST_BY_ITSELF_SECONDS = 60.0
_SHARE_BY_ITSELF = 0.1
_SHARE_ON_REQUEST = 0.5


def seconds_by_itself(measured_seconds: float) -> float:
    """Return how long the phase may take unasked, after so many seconds of load tests."""
    seconds = min(_longest_seconds(WINNER_TESTS), _SHARE_BY_ITSELF * measured_seconds)
    return seconds if seconds >= _SHORTEST_BY_ITSELF_SECONDS else 0.0


def _longest_seconds(tests: Collection[WinnerTest]) -> float:
    return sum(_LONGEST_SECONDS[test] for test in tests)


def reserved_seconds(wall_clock_seconds: float, asked_for: Collection[WinnerTest]) -> float:
    """Return the part of a time limit that the search leaves to this phase."""
    if asked_for:
        return min(_longest_seconds(set(asked_for)), _SHARE_ON_REQUEST * wall_clock_seconds)
    return seconds_by_itself(wall_clock_seconds)


def missing_tests(
    directory: StudyDirectory, config: ServingConfig | None, tests: Collection[WinnerTest]
) -> list[WinnerTest]:
    """Return those of some tests that a configuration has no results of.

    Raises:
        StorageError: when a file of results is damaged.
    """
    results: Mapping[WinnerTest, object | None] = {
        "cold-start": directory.cold_start.read(config),
        "transports": directory.transports.read(config),
        "bursts": directory.bursts.read(config),
    }
    return [test for test in WINNER_TESTS if test in tests and results[test] is None]


class WinnerPhase:
    """Measures the winner of a study further."""

    def __init__(self, evaluator: WinnerTester, directory: StudyDirectory, watch: Watcher) -> None:
        self._evaluator = evaluator
        self._directory = directory
        self._watch = watch

    def run(
        self,
        winner: Candidate,
        asked_for: Collection[WinnerTest],
        measured_seconds: float,
        limit: TimeLimit,
    ) -> None:
        """Measure what is missing. A failure is told, and is none of the study.

        Args:
            asked_for: tests that are wanted in any case.
            measured_seconds: load tests of the study so far.
            limit: of the run's time; what is measured when it ends is cut off.

        Raises:
            StorageError: when results cannot be written.
        """
        wanted = asked_for or WINNER_TESTS
        tests = missing_tests(self._directory, winner.config, wanted)
        longest = _longest_seconds(tests)
        if not asked_for:
            longest = min(longest, seconds_by_itself(measured_seconds))
        seconds = min(longest, limit.left)
        if not tests or (seconds < _SHORTEST_SECONDS and not asked_for):
            return
        if seconds < _SHORTEST_SECONDS:
            text = (
                f"{', '.join(tests)}: not measured, as {max(0.0, seconds):.0f} s of the time are "
                f"left, and {_SHORTEST_SECONDS:g} s are needed: rerun with a longer --timeout"
            )
            self._watch(Note(text, True))
            return
        self._watch(PhaseStarted("winner", len(tests), seconds))
        for test in tests:
            self._watch(StepStarted(f"{test} of {describe(winner.config)}"))
            share = _LONGEST_SECONDS[test] / _longest_seconds(tests)
            try:
                with limit.enforced():
                    self._attempt(test, winner, share * seconds)
            except TimeIsUpError:
                self._watch(Note(f"{test}: cut off: the time limit was reached", True))
            self._watch(StepFinished())

    def _attempt(self, test: WinnerTest, winner: Candidate, seconds: float) -> None:
        """Measure; try a failure that may pass once more, if time is left."""
        end = time.monotonic() + seconds
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                self._measure(test, winner, end - time.monotonic())
                return
            except TrialFailure as error:
                again = error.transient and end - time.monotonic() >= _SHORTEST_SECONDS
                if not again or attempt == MAX_ATTEMPTS:
                    self._watch(Note(f"{test}: not measured: {error}", True))
                    return

    def _measure(self, test: WinnerTest, winner: Candidate, seconds: float) -> None:
        task = winner.config, winner.measurement.load_factor, seconds
        run = self._evaluator.run_winner_test
        match test:
            case "cold-start":
                self._directory.cold_start.write(run(measure_cold_start, *task))
            case "transports":
                self._directory.transports.write(run(compare_transports, *task))
            case "bursts":
                self._directory.bursts.write(run(measure_bursts, *task))
