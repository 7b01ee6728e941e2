"""Why nothing was found, and advice that fits the cause."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from optimizer.analysis.nothing_confirmed import nothing_confirmed
from optimizer.cli.outcome import show_outcome
from optimizer.commands.run import RunResult
from optimizer.configuration.serving_config import describe
from optimizer.errors import TimeIsUpError
from tests.unit.fake_runs import FakeRuns
from tests.unit.studies import failed, found_by, four_points, infeasible, ok, record_of

SPACE = four_points()
A, B, *_ = (SPACE.config(SPACE.at(row)) for row in range(4))
LIMIT = "raise limit.latency_ms"


def shown(result: RunResult) -> str:
    file = io.StringIO()
    show_outcome(Console(file=file, width=200), result)
    return " ".join(file.getvalue().split())


@pytest.mark.usefixtures("fast_disk")
def test_a_run_whose_time_was_up_before_its_first_trial_asks_for_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = FakeRuns(tmp_path, monkeypatch)
    with pytest.raises(TimeIsUpError, match="rerun the same command with a longer --timeout"):
        runs.run(timeout_seconds=1e-9)
    again = runs.run(trials=1)
    assert not again.was_finished
    assert again.summary.best is not None


def test_a_run_that_measured_nothing_asks_for_time() -> None:
    found = nothing_confirmed([], ())
    assert found.reason == "nothing was measured yet"
    assert found.advice.startswith("preparation and calibration used all the time: raise --timeout")
    assert LIMIT not in found.advice


def test_what_missed_the_limits_asks_for_another_limit() -> None:
    found = nothing_confirmed([record_of(0, A, infeasible(80)), record_of(1, B, failed("x"))], ())
    assert found.reason.startswith("none of 2 trials met the limits; the nearest was ")
    assert found.advice == "raise limit.latency_ms, or widen parameters"


def test_what_could_not_be_measured_asks_for_its_cause() -> None:
    found = nothing_confirmed([record_of(0, A, failed("the model broke"))], ())
    assert found.reason == "none of 1 trials could be measured: the model broke"
    assert "logs/server.log" in found.advice
    assert LIMIT not in found.advice


def test_what_did_not_hold_again_says_so() -> None:
    again = [record_of(0, A, infeasible(80))]
    found = nothing_confirmed([record_of(0, A, ok(100))], again)
    assert found.reason == (
        "1 of 1 trials met the limits, but not when they were measured again; the last was "
        f"{describe(A)}: over the limit at the floor"
    )
    assert found.advice.startswith("keep other work off this machine")


def test_what_could_not_be_measured_again_is_tried_again() -> None:
    trial = record_of(0, A, ok(100))
    again = [record_of(0, A, failed("the server ended", transient=True))]
    found = nothing_confirmed([trial], again, found_by(trial))
    assert "(100/s, $1.0000 per million, unconfirmed), could not be measured again" in found.reason
    assert found.reason.endswith(": the server ended")
    assert found.advice.endswith("rerun the command to try again")
