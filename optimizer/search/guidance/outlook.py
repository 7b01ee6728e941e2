"""What a search may still find: the seam by which it ends before its budget. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Outlook:
    """What is left to find.

    Attributes:
        ended: why the search is over, None while it goes on.
        gap: share of the incumbent's cost that an unmeasured configuration may still save, at most
            with a probability of 95 %; None where nobody knows.
    """

    ended: str | None = None
    gap: float | None = None


Advisor = Callable[[], Outlook]
"""Asked before every proposal, and in the end."""


def no_outlook() -> Outlook:
    """Of a search that has no expectations: it goes on, and nobody knows."""
    return Outlook()
