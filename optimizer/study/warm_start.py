"""What a study may reuse from another one, and what a resumed study must agree with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from optimizer.configuration.search_space import SearchSpace
from optimizer.measurement.cost import Demand, Price, usd_per_million
from optimizer.measurement.level import Measurement
from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.history import scored
from optimizer.study.trial_records import has_wrong_answers

_FREE = (
    ("price",),
    ("parameters",),
    ("conditions",),
    ("traffic", "demand_per_second"),
    ("traffic", "headroom"),
    ("measurement", "confirm_seconds"),
    ("measurement", "confirm_requests"),
)
"""Keys that a measurement does not depend on; neither does it on each model's accuracy limits."""


def differences(
    old: Any, new: Any, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield (key, "was A, is B") for every key in which two space files differ."""
    for at, before, now in unequal(old, new, path):
        yield at, f"{'.'.join(at)}: was {before}, is {now}"


def unequal(
    one: Any, other: Any, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Yield (key, value, other value) for every key in which two space files differ."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in sorted(set(one) | set(other)):
            yield from unequal(one.get(key), other.get(key), (*path, str(key)))
    elif one != other:
        yield path, one, other


def blocking_differences(old: Any, new: Any) -> list[str]:
    """Return the differences that invalidate the measurements of one space in the other."""
    return [
        text
        for path, text in differences(old, new)
        if not any(path[: len(free)] == free for free in _FREE) and "accuracy" not in path[2:3]
    ]


def carried_over(
    records: Sequence[TrialRecord], origin: str, space: SearchSpace, price: Price, demand: Demand
) -> list[TrialRecord]:
    """Return the records that are valid in `space`, numbered from 0, with costs at this price.

    Failures are left out, to be tried again, and so are bounded trials, whose bound came from
    another price and demand, and configurations with wrong answers, which this study's accuracy
    limits may accept. Capacities within extra limits are dropped.
    """
    carried: list[TrialRecord] = []
    for record in records:
        if record.outcome not in ("ok", "infeasible") or record.measurement is None:
            continue
        if space.position_of(record.config) is None or has_wrong_answers(record):
            continue
        if record.outcome == "infeasible" and record.further:
            continue  # its constraints are those of several limits
        measurement = at_demand(demand.requests_per_second, record.measurement)
        rate = measurement.capacity_per_second or measurement.levels[0].achieved_per_second
        carried.append(
            replace(
                record,
                number=len(carried),
                params=(),
                measurement=measurement,
                score=scored(measurement, price, demand),
                told_value=usd_per_million(price.usd_per_hour, rate, demand.inferences_per_request),
                attempt=1,
                origin=record.origin or origin,
                workers=(),
                told_at_proposal=None,
                told_position=None,
                calibrated_by=None,
                further=(),
                told_further=(),
            )
        )
    return carried


def at_demand(demand_per_second: float, measurement: Measurement) -> Measurement:
    """Return the same rates as load factors of another demand."""
    if measurement.demand_per_second == demand_per_second:
        return measurement
    scale = measurement.demand_per_second / demand_per_second
    high = measurement.load_factor_high
    return replace(
        measurement,
        levels=tuple(replace(x, load_factor=x.load_factor * scale) for x in measurement.levels),
        load_factor=measurement.load_factor * scale,
        load_factor_low=measurement.load_factor_low * scale,
        load_factor_high=high * scale if high is not None else None,
        demand_per_second=demand_per_second,
    )
