"""Figures that say where they come from. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Basis = Literal["price", "confirmed", "measured", "extrapolated"]
BASES: tuple[Basis, ...] = ("price", "confirmed", "measured", "extrapolated")
"""From the surest to the weakest.

price: listed, or given in the space file. confirmed: measured again, in turn with its rivals.
measured: once. extrapolated: from what was measured on something else.
"""


@dataclass(frozen=True)
class SourcedFigure:
    """A value and what it rests on.

    Attributes:
        worked_out: whether it was computed from others; `basis` is then the weakest of theirs.
    """

    value: float
    basis: Basis
    worked_out: bool = False


def derived(value: float, *of: SourcedFigure) -> SourcedFigure:
    """A figure that follows from others."""
    return SourcedFigure(value, max((each.basis for each in of), key=BASES.index), worked_out=True)
