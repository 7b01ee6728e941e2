"""The time of one run: what the user gave, and what is left of it for the phases."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from optimizer.errors import TimeIsUpError, UsageError
from optimizer.machine.time_limit import TimeLimit, seconds_until, wait_factor
from optimizer.study.events import Phase
from optimizer.triton.session import ModelFiles

_ENDING_SECONDS = 2.5
"""Time to stop the server and the load client, to write the results and to end the process, on a
machine that does nothing else. Decision 2026-11-30: with 1.1 s, runs whose last round was cut off
ended 0.5 and 0.9 s late on two quiet cores."""

_COPIED_BYTES_PER_SECOND = 100e6
_COPIES = 2
"""Of the files of a configuration: in best/ and in baseline/."""


def chosen_seconds(
    timeout_seconds: float | None, until: datetime.time | None, started: float
) -> float | None:
    """Return the seconds that --timeout or --until gives a run; None for neither.

    Args:
        started: when the run was started, by the monotonic clock.

    Raises:
        UsageError: for both.
    """
    if until is None:
        return timeout_seconds
    if timeout_seconds is not None:
        raise UsageError(
            f"--until: must be left out with --timeout {timeout_seconds:g}s; got {until:%H:%M:%S}"
        )
    spent = time.monotonic() - started
    return round(seconds_until(until, time.time()) + spent, 1)


@dataclass(frozen=True)
class RunTime:
    """The time of one run.

    Attributes:
        seconds: that the user gave.
        started: by the monotonic clock.
        copying_seconds: time to copy the files of models to best/ and baseline/.
    """

    seconds: float
    started: float
    copying_seconds: float = 0.0

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def limit(self) -> TimeLimit:
        """The limit of the phases, which leaves time to end, by how busy the machine was so far."""
        ending = _ENDING_SECONDS * wait_factor() + self.copying_seconds
        return TimeLimit(self.started + self.seconds - ending)

    def at_most(self, seconds: float | None) -> float | None:
        """Return so many seconds, or what is left if that is less; None remains."""
        return None if seconds is None else max(0.0, min(seconds, self.limit.left))

    def before_writing(self, files: Iterable[ModelFiles]) -> RunTime:
        """Return the time that is left when the largest of these models will be written too."""
        largest = max((each.size_bytes for each in files), default=0)
        seconds = _COPIES * largest / _COPIED_BYTES_PER_SECOND
        return replace(self, copying_seconds=seconds)

    @contextmanager
    def kept_by(self, phase: Phase) -> Iterator[None]:
        """Cut a phase before the search off when the time is up.

        Raises:
            TimeIsUpError: what the phase has finished is kept.
        """
        try:
            with self.limit.enforced():
                yield
        except TimeIsUpError as error:
            raise TimeIsUpError(
                f"the time limit of {self.seconds:g} s ended in the {phase} phase, before the "
                "search: what was built and measured is kept; rerun the same command with a longer "
                "--timeout (budget.wall_clock in the space file) to resume"
            ) from error
