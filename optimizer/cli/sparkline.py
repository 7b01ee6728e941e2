"""A row of figures drawn in one line of text. Pure."""

from __future__ import annotations

from collections.abc import Iterable

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII = "_.-=+*#@"
"""Bars from low to high, for terminals of Unicode and for others."""

_WIDEST = 24


def sparkline(values: Iterable[float], bars: str = BLOCKS) -> str:
    """The latest values as bars, from nothing to the largest of them."""
    shown = list(values)[-_WIDEST:]
    top = max(shown, default=0.0)
    if top <= 0:
        return bars[0] * len(shown)
    return "".join(bars[round(max(0.0, value) / top * (len(bars) - 1))] for value in shown)
