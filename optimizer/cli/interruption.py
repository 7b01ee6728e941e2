"""Signals that ask a command to end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class Interrupted(BaseException):
    """A signal asked this process to end; its text is the signal's name."""


@contextlib.contextmanager
def until_interrupted() -> Iterator[None]:
    """For commands that go on until somebody ends them: that is no interruption."""
    with contextlib.suppress(Interrupted):
        yield
