"""The time that a run may take, on a clock that no change of the local time moves.

limit = TimeLimit.of(seconds=3600.0)
with limit.earlier(60.0).enforced():
    measure()  # is cut off with a minute left
"""

from __future__ import annotations

import datetime
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from optimizer.errors import TimeIsUpError
from optimizer.machine.cores import usable_cores

_LEAST_SECONDS = 0.001
"""A timer of 0 s would never fire."""


_START_FIELD = 19
"""Of /proc/PID/stat, counted after the name of the process: when it was started, after boot."""


class _CutOff(BaseException):
    """Raised where the time ends; no `except Exception` of a library must swallow it."""


@dataclass(frozen=True)
class TimeLimit:
    """A time by which something must have ended.

    Attributes:
        ends_at: in seconds of the clock; infinite without a limit.
        clock: a monotonic clock.
    """

    ends_at: float = math.inf
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def of(cls, seconds: float, clock: Callable[[], float] = time.monotonic) -> Self:
        """Return the limit that ends in so many seconds."""
        return cls(clock() + seconds, clock)

    @property
    def left(self) -> float:
        """Seconds until the end; negative after it."""
        return self.ends_at - self.clock()

    def earlier(self, seconds: float) -> Self:
        """Return a limit that leaves so many seconds of this one."""
        return replace(self, ends_at=self.ends_at - seconds)

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """Cut the block off when the time ends, as Ctrl-C would.

        In a thread other than the main one, a block is only kept from starting too late: Python
        handles signals in the main thread alone.

        Raises:
            TimeIsUpError: the time has ended.
        """
        if self.left <= 0:
            raise TimeIsUpError
        if math.isinf(self.left) or threading.current_thread() is not threading.main_thread():
            yield
            return
        handler = signal.signal(signal.SIGALRM, _cut_off)
        started = time.monotonic()
        outer, _ = signal.setitimer(signal.ITIMER_REAL, max(_LEAST_SECONDS, self.left))
        try:
            try:
                yield
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except _CutOff as cut:
            raise TimeIsUpError from cut
        finally:
            signal.signal(signal.SIGALRM, handler)
            if outer:
                left = outer - (time.monotonic() - started)
                signal.setitimer(signal.ITIMER_REAL, max(_LEAST_SECONDS, left))


def _cut_off(*_: object) -> None:
    raise _CutOff


def seconds_of_process() -> float:
    """Return how long ago this process was started."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(fields[_START_FIELD]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def wait_factor() -> float:
    """Return by which work takes longer because it waits for a core, from 1.

    That is what the main thread has waited so far, or what the load of the last minute makes likely
    for work that keeps a core busy, if that is more.
    """
    by_load = os.getloadavg()[0] / len(usable_cores())
    try:
        running, waiting, _ = map(int, Path("/proc/self/schedstat").read_text().split())
    except OSError:  # a kernel that does not count it
        return max(1.0, by_load)
    return max(1 + waiting / max(1, running), by_load)


def seconds_until(at: datetime.time, now: float) -> float:
    """Return the seconds from a time to the next `at` by the local clock.

    Where the clock is set back, a time that comes twice is the next of the two. Where it is set
    forward, a time that is skipped is reached as long after midnight as without the change.

    Args:
        now: Unix time in seconds.
    """
    today = datetime.datetime.fromtimestamp(now).date()  # noqa: DTZ006 - the local clock is meant
    days = [datetime.datetime.combine(today + datetime.timedelta(days=n), at) for n in (0, 1)]
    times = [day.timestamp() for day in days]
    for day in days:
        again = day.replace(fold=1).timestamp()
        if datetime.datetime.fromtimestamp(again).time() == at:  # noqa: DTZ006
            times.append(again)
    return min(each for each in times if each > now) - now
