"""How a command is ended from outside: by a signal, or because its output pipe is closed."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator


class Interrupted(BaseException):
    """A signal asked this process to end; its text is the signal's name."""


@contextlib.contextmanager
def until_interrupted() -> Iterator[None]:
    """Let a signal end the block without an error, for commands that run until they are ended."""
    with contextlib.suppress(Interrupted):
        yield


def is_closed_output(error: OSError) -> bool:
    """Return whether writing failed because the output pipe or the terminal is closed."""
    # The error that `OutputConsole` raises has no number.
    return isinstance(error, BrokenPipeError) or error.errno in (errno.EPIPE, errno.EIO)


def discard_output() -> None:
    """Send standard output to the null device, with what Python has buffered of it."""
    null_device = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null_device, sys.stdout.fileno())
    os.close(null_device)
