"""logs/run.log: all events of a run as lines with the time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TextIO

from optimizer.files.untrusted import printable
from optimizer.study.event_text import event_lines
from optimizer.study.events import Event, Watcher


class RunLog:
    """Appends events to a file. Write errors are ignored: no run ends because of its log."""

    def __init__(self, file: TextIO, now: Callable[[], datetime]) -> None:
        self._file: TextIO | None = file
        self._now = now

    def __call__(self, event: Event) -> None:
        """Append an event."""
        self.write(*event_lines(event, verbose=True))

    def write(self, *lines: str) -> None:
        """Append lines, each with the time."""
        if self._file is None:
            return
        at = self._now().isoformat(sep=" ", timespec="seconds")
        try:
            self._file.write("".join(f"{at} {printable(line)}\n" for line in lines))
            self._file.flush()
        except OSError:
            self._file = None


def no_log(_: Event) -> None:
    """Ignore an event: the log could not be opened."""


@contextmanager
def run_log(path: Path, now: Callable[[], datetime]) -> Iterator[Watcher]:
    """Yield a log for the duration of a run; it says when the run started and how it ended.

    Args:
        now: returns the time, with its zone.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a", encoding="utf-8")
    except OSError:
        yield no_log
        return
    log = RunLog(file, now)
    try:
        log.write("-- run started")
        try:
            yield log
        except BaseException as error:
            log.write(*f"-- run ended: {end_text(error)}".splitlines())
            raise
        log.write("-- run done")
    finally:
        _close(file)


def end_text(error: BaseException) -> str:
    """Return what ended a run; an exception that is no `Exception` carries a signal's name."""
    if isinstance(error, Exception):
        return str(error)
    return f"interrupted ({error})" if str(error) else "interrupted"


def _close(file: TextIO) -> None:
    with suppress(OSError):  # a full disk refuses the buffered rest again
        file.close()
