"""What a run makes of the time that it was given."""

from __future__ import annotations

import datetime
import time
from pathlib import Path

import pytest

from optimizer.commands import run_time
from optimizer.commands.run_time import RunTime, chosen_seconds
from optimizer.errors import TimeIsUpError, UsageError
from optimizer.triton.session import ModelFiles
from optimizer.workload.request_sizes import LengthDistribution
from optimizer.workload.streams import Payloads


def test_a_time_of_day_or_a_duration_but_not_both() -> None:
    now = time.monotonic()
    assert chosen_seconds(None, None, now) is None
    assert chosen_seconds(60.0, None, now) == 60.0
    at = datetime.datetime.now().astimezone() + datetime.timedelta(hours=3)
    seconds = chosen_seconds(None, at.time(), now - 20.0)
    assert seconds == pytest.approx(3 * 3600 + 20, abs=30)
    with pytest.raises(
        UsageError, match=r"^--until: must be left out with --timeout 60s; got 07:0"
    ):
        chosen_seconds(60.0, datetime.time(7), now)


def test_a_run_leaves_time_to_end_and_more_on_a_busy_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = {}
    for factor in (1.0, 5.0):
        monkeypatch.setattr(run_time, "wait_factor", lambda factor=factor: factor)
        left[factor] = RunTime(100.0, time.monotonic()).limit.left
    assert 80.0 < left[5.0] < left[1.0] - 3.0 < 100.0


def test_a_run_leaves_time_to_copy_a_large_model(tmp_path: Path) -> None:
    with (tmp_path / "model").open("wb") as file:
        file.truncate(10**9)
    payloads = Payloads((), LengthDistribution((32,), (1.0,)))
    own = RunTime(1000.0, time.monotonic())
    copying = own.before_writing([ModelFiles(tmp_path, payloads, ())])
    assert own.limit.left - copying.limit.left == pytest.approx(20.0, abs=5.0)
    assert own.before_writing([]).copying_seconds == 0.0


def test_waiting_for_a_quiet_machine_is_bounded_by_the_run() -> None:
    own = RunTime(100.0, time.monotonic())
    assert own.at_most(None) is None
    assert own.at_most(10.0) == 10.0
    longest = own.at_most(1e6)
    assert longest is not None
    assert longest <= 100.0


def test_a_phase_that_takes_all_the_time_says_what_to_do() -> None:
    with (
        pytest.raises(TimeIsUpError, match="ended in the prepare phase, before the search") as end,
        RunTime(1.0, time.monotonic() - 2.0).kept_by("prepare"),
    ):
        pytest.fail("it was started")
    assert "rerun the same command with a longer --timeout" in str(end.value)
    assert end.value.exit_code == 4
