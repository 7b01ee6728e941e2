"""logs/run.log: all events of a run as lines with the time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO

from optimizer.files.log_file import LARGEST_BYTES, open_log
from optimizer.files.untrusted import printable
from optimizer.study.event_text import event_lines
from optimizer.study.events import Event, Watcher


class RunLog:
    """Appends events to a file. Errors of the file are ignored: no run ends because of its log."""

    def __init__(self, path: Path, now: Callable[[], datetime]) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self._now = now
        with suppress(OSError):
            self._file = open_log(path)

    def __call__(self, event: Event) -> None:
        """Append an event."""
        self.write(*event_lines(event, verbose=True))

    def write(self, *lines: str) -> None:
        """Append lines, each with the time."""
        if self._file is None:
            return
        at = self._now().isoformat(sep=" ", timespec="seconds")
        try:
            if self._file.tell() > LARGEST_BYTES:
                self._file.close()
                self._file = open_log(self._path)
            text = "".join(f"{at} {printable(line)}\n" for line in lines)
            self._file.write(text.encode(errors="replace"))
            self._file.flush()
        except OSError:
            self._file = None

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with suppress(OSError):  # a full disk refuses the buffered rest again
                self._file.close()


@contextmanager
def run_log(path: Path, now: Callable[[], datetime]) -> Iterator[Watcher]:
    """Yield a log for the duration of a run; it says when the run started and how it ended.

    Args:
        now: returns the time, with its zone.
    """
    log = RunLog(path, now)
    try:
        log.write("-- run started")
        try:
            yield log
        except BaseException as error:
            log.write(*f"-- run ended: {end_text(error)}".splitlines())
            raise
        log.write("-- run done")
    finally:
        log.close()


def end_text(error: BaseException) -> str:
    """Return what ended a run; an exception that is no `Exception` carries a signal's name."""
    if isinstance(error, Exception):
        return str(error)
    return f"interrupted ({error})" if str(error) else "interrupted"
