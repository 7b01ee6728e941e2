"""logs/run.log: every event of a run as lines with the time, whatever the terminal shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TextIO

from optimizer.study.event_text import event_lines
from optimizer.study.events import Event, Watcher


class RunLog:
    """Appends events to a file. One that cannot be written is given up: no run ends for its log."""

    def __init__(self, file: TextIO, now: Callable[[], datetime]) -> None:
        self._file: TextIO | None = file
        self._now = now

    def __call__(self, event: Event) -> None:
        """Take in an event."""
        self.say(*event_lines(event, verbose=True))

    def say(self, *lines: str) -> None:
        """Append lines, each with the time."""
        if self._file is None:
            return
        at = self._now().isoformat(sep=" ", timespec="seconds")
        try:
            self._file.write("".join(f"{at} {line}\n" for line in lines))
            self._file.flush()
        except OSError:
            self._file = None


def no_log(_: Event) -> None:
    """In the place of a log that cannot be opened."""


@contextmanager
def run_log(path: Path, now: Callable[[], datetime]) -> Iterator[Watcher]:
    """A log for as long as a run lasts; it says when the run began and how it ended.

    Args:
        now: the time, with its zone.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a", encoding="utf-8")
    except OSError:
        yield no_log
        return
    log = RunLog(file, now)
    try:
        log.say("-- the run begins")
        try:
            yield log
        except BaseException as error:
            log.say(*f"-- the run ended: {outcome_text(error)}".splitlines())
            raise
        log.say("-- the run is done")
    finally:
        _close(file)


def outcome_text(error: BaseException) -> str:
    """What ended a run, for people; what asks a process to end carries the signal's name."""
    if isinstance(error, Exception):
        return str(error)
    return f"interrupted ({error})" if str(error) else "interrupted"


def _close(file: TextIO) -> None:
    with suppress(OSError):  # A full disk refuses what is still held back, once more.
        file.close()
