"""The time limit of a run, and the next time of day by a local clock that may be changed."""

from __future__ import annotations

import datetime
import signal
import time
from collections.abc import Iterator
from threading import Thread

import pytest

from optimizer.errors import TimeIsUpError
from optimizer.machine.time_limit import TimeLimit, seconds_of_process, seconds_until

HOUR = 3600.0


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("berlin")
@pytest.mark.parametrize(
    ("now", "until", "hours"),
    [
        ("2026-07-01T05:00+02:00", "07:00", 2.0),
        ("2026-07-01T22:30+02:00", "07:00", 8.5),
        ("2026-07-01T07:00+02:00", "07:00", 24.0),
        ("2026-12-31T23:59:30+01:00", "00:00", 0.5 / 60),
        # The clock is set forward from 02:00 to 03:00 on 29 March, and back from 03:00 to 02:00 on
        # 25 October.
        ("2026-03-28T22:00+01:00", "07:00", 8.0),
        ("2026-03-29T00:00+01:00", "02:30", 2.5),
        ("2026-10-24T22:00+02:00", "07:00", 10.0),
        ("2026-10-25T02:10+02:00", "02:30", 1 / 3),
        ("2026-10-25T02:40+02:00", "02:30", 5 / 6),
        ("2026-10-25T02:40+01:00", "02:30", 23 + 5 / 6),
    ],
)
def test_the_next_time_of_day_by_the_local_clock(now: str, until: str, hours: float) -> None:
    seconds = datetime.datetime.fromisoformat(now).timestamp()
    at = datetime.time.fromisoformat(until)
    assert seconds_until(at, seconds) == pytest.approx(hours * HOUR)


def test_a_block_is_cut_off_when_the_time_ends() -> None:
    limit = TimeLimit.of(0.05)
    with pytest.raises(TimeIsUpError), limit.enforced():
        library_call()
    assert limit.left < 0


def library_call() -> None:
    """Sleep, and take every error for one of its own, which the end of the time is not."""
    try:
        time.sleep(100)
    except Exception:  # noqa: BLE001
        pytest.fail("the end of the time was swallowed")


def test_a_block_that_ends_in_time_is_left_alone_and_so_are_timers_of_others() -> None:
    handler = signal.getsignal(signal.SIGALRM)
    outer, _ = signal.getitimer(signal.ITIMER_REAL)
    with TimeLimit.of(100.0).enforced():
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 100.0
    assert signal.getsignal(signal.SIGALRM) == handler
    assert signal.getitimer(signal.ITIMER_REAL)[0] == pytest.approx(outer, abs=30.0)


def test_no_block_starts_after_the_end() -> None:
    with pytest.raises(TimeIsUpError), TimeLimit(3.0, lambda: 3.0).enforced():
        pytest.fail("it was started")


def test_in_another_thread_a_block_is_kept_from_starting_only() -> None:
    run: list[str] = []

    def work() -> None:
        with TimeLimit.of(1e-3).earlier(-100.0).enforced():
            run.append("in time")
        with pytest.raises(TimeIsUpError), TimeLimit.of(-1.0).enforced():
            run.append("too late")

    thread = Thread(target=work)
    thread.start()
    thread.join()
    assert run == ["in time"]


def test_an_earlier_limit_leaves_time() -> None:
    limit = TimeLimit(100.0, lambda: 30.0)
    assert limit.left == 70.0
    assert limit.earlier(20.0).left == 50.0


def test_a_limit_without_an_end_is_never_reached() -> None:
    with TimeLimit().earlier(1e9).enforced():
        assert signal.getitimer(signal.ITIMER_REAL)[0] < 1e6


def test_a_process_knows_how_long_it_has_run() -> None:
    first = seconds_of_process()
    assert time.process_time() * 0.1 < first < time.monotonic()
    assert seconds_of_process() >= first
