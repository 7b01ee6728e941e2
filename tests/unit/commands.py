"""Commands run in the process of the tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it printed."""

    code: object
    out: str
    err: str


Commands = Callable[..., Said]
