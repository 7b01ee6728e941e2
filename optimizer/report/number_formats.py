"""How figures are written, in every table, sentence and page."""

from __future__ import annotations

from collections.abc import Callable

from optimizer.measurement.cost import Price

MISSING = "-"
"""Stands for a figure that does not exist."""


def usd(value: float) -> str:
    """Return dollars: four decimals below $1, cents below $1,000, whole dollars from there."""
    if value < 0.001:
        return f"${value:.3g}"
    if value < 1:
        return f"${value:.4f}"
    return f"${value:,.2f}" if value < 1000 else f"${value:,.0f}"


def price_per_hour(value: float) -> str:
    """Return the price of an instance with all its digits."""
    return f"${value:,.10g}"


def rate(value: float) -> str:
    """Return a rate per second, without its unit: three digits, whole from 100 on."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


def count(value: int) -> str:
    """Return a whole number with its thousands separated."""
    return f"{value:,}"


def milliseconds(value: float | None) -> str:
    """Return a latency in ms, without its unit."""
    return MISSING if value is None else f"{value:,.1f}"


def seconds(value: float) -> str:
    """Return seconds with their unit, tenths below 10 s."""
    return f"{value:.1f} s" if value < 9.95 else f"{value:,.0f} s"


def clock(value: float) -> str:
    """Return a duration as minutes:seconds, and hours before them where there are any."""
    minutes, rest = divmod(int(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def percent(share: float) -> str:
    """Return a share in whole per cent."""
    return f"{share:.0%}"


def fine_percent(share: float) -> str:
    """Return a share in tenths of a per cent."""
    return f"{share:.1%}"


def change(share: float) -> str:
    """Return a relative change in whole per cent, with its sign."""
    return f"{share:+.0%}"


def ratio(value: float) -> str:
    """Return how many times as much."""
    return f"{value:.2f}"


def interval(
    low: float | None, high: float | None, form: Callable[[float], str], unbounded: str = "or more"
) -> str:
    """Return both ends of an interval; without an upper end it is unbounded."""
    if low is None:
        return MISSING
    return f"{form(low)} {unbounded}" if high is None else f"{form(low)} to {form(high)}"


def price_text(price: Price) -> str:
    """Return what an instance costs, with the source and the date of the price."""
    return (
        f"{price.instance_type} {price_per_hour(price.usd_per_hour)} an hour, {price.rate} "
        f"({price.source}, {price.as_of}); the whole instance is charged"
    )
