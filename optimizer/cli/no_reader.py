"""Standard output whose reader has gone: a closed pipe, or a terminal that was closed."""

from __future__ import annotations

import errno
import os
import sys

_NO_READER = (errno.EPIPE, errno.EIO)


def has_no_reader(error: OSError) -> bool:
    """Whether an error of our own output says that nobody reads it any more."""
    # The one that `OutputConsole` raises has no number.
    return isinstance(error, BrokenPipeError) or error.errno in _NO_READER


def discard_output() -> None:
    """Let standard output go nowhere, with what Python still holds back of it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
