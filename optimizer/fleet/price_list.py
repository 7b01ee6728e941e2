"""What instances cost by the hour: the prices that ship, and the user's own before them.

A price list is a CSV file with at least the columns instance_type, usd_per_hour, region, as_of and
basis; `rate` (on-demand where it is left out) tells spot and reserved prices apart.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TextIO

from optimizer.errors import UsageError
from optimizer.files.shipped import shipped
from optimizer.files.untrusted import UnreadableError, csv_rows, read_text
from optimizer.measurement.cost import ON_DEMAND, Price

_YEAR_DAYS = 365
_LONGEST_TEXT = 200
_MOST = 1e6
"""Of every number of a list: dollars an hour, processors, gigabytes."""
_NEEDED = ("instance_type", "usd_per_hour", "region", "as_of", "basis")
_COLUMNS = (*_NEEDED, "rate", "vcpus", "gpu", "gpus", "memory_gb")


@dataclass(frozen=True)
class ListedPrice:
    """A price, and what the instance has; None where the list does not say."""

    price: Price
    vcpus: int | None = None
    gpu: str | None = None
    gpus: int | None = None
    memory_gb: float | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """What there is one price of: instance type, region, rate."""
        return (self.price.instance_type, self.price.region, self.price.rate)


def own_price_list() -> Path:
    """The user's own list, by the XDG base-directory specification; it need not be there."""
    root = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(root) / "triton-cost-optimizer" / "prices.csv"


def price_list() -> tuple[ListedPrice, ...]:
    """The shipped prices, those of the user's own list in the place of theirs.

    Raises:
        UsageError: when the user's list cannot be read.
    """
    own = own_price_list()
    return merge_prices(
        read_prices(shipped("prices.csv")), read_prices(own) if own.exists() else ()
    )


def merge_prices(
    listed: Iterable[ListedPrice], newer: Iterable[ListedPrice]
) -> tuple[ListedPrice, ...]:
    """All of both; of two with the same type, region and rate the newer one."""
    found = {entry.key: entry for entry in listed}
    found |= {entry.key: entry for entry in newer}
    return tuple(found.values())


def usual_prices(listed: Iterable[ListedPrice]) -> Mapping[str, Price]:
    """By instance type, what a space that names nothing else is charged.

    The on-demand rate; in the region of the latest price where there are several.
    """
    on_demand = [entry.price for entry in listed if entry.price.rate == ON_DEMAND]
    return {price.instance_type: price for price in sorted(on_demand, key=lambda p: p.as_of)}


def shipped_prices() -> Mapping[str, Price]:
    """By instance type, from the list that ships alone."""
    return usual_prices(read_prices(shipped("prices.csv")))


def read_prices(path: Path) -> tuple[ListedPrice, ...]:
    """The prices of a CSV file. Raises UsageError, naming file, line, column, rule and value."""
    try:
        table = csv_rows(read_text(path))
        missing = [name for name in _NEEDED if name not in table.names]
        if missing:
            raise UnreadableError(f"must have the columns {', '.join(missing)}")
        return tuple(_listed(line, row) for line, row in table.rows)
    except UnreadableError as error:
        raise UsageError(f"{path}: {error}") from error


def _listed(line: int, row: Mapping[str, str]) -> ListedPrice:
    def text(column: str) -> str:
        value = row.get(column, "").strip()
        if len(value) > _LONGEST_TEXT or not value.isprintable():
            rule = f"must be one line of at most {_LONGEST_TEXT} characters"
            raise UnreadableError(f"line {line}: {column} {rule}")
        return value

    def number(column: str) -> float | None:
        value = text(column)
        try:
            found = float(value) if value else None
        except ValueError:
            found = math.nan
        if found is not None and not 0 <= found <= _MOST:
            rule = f"must be a number from 0 to {_MOST:g}"
            raise UnreadableError(f"line {line}: {column} {rule}, got {value!r}")
        return found

    usd = number("usd_per_hour")
    if not usd:
        raise UnreadableError(f"line {line}: usd_per_hour must be above 0, got {usd}")
    vcpus, gpus = number("vcpus"), number("gpus")
    price = Price(
        instance_type=text("instance_type"),
        usd_per_hour=usd,
        source=f"{text('basis')}, {text('region')}",
        as_of=text("as_of") or "undated",
        region=text("region"),
        rate=text("rate") or ON_DEMAND,
    )
    return ListedPrice(
        price,
        int(vcpus) if vcpus is not None else None,
        text("gpu") or None,
        int(gpus) if gpus is not None else None,
        number("memory_gb"),
    )


def write_prices(lines: TextIO, listed: Iterable[ListedPrice]) -> None:
    """Write a CSV file that `read_prices` reads."""
    writer = csv.DictWriter(lines, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(_written, listed))


def _written(entry: ListedPrice) -> dict[str, object]:
    price = entry.price
    return {
        "instance_type": price.instance_type,
        "usd_per_hour": price.usd_per_hour,
        "region": price.region,
        "as_of": price.as_of,
        "basis": price.basis,
        "rate": price.rate,
        "vcpus": entry.vcpus,
        "gpu": entry.gpu,
        "gpus": entry.gpus,
        "memory_gb": entry.memory_gb,
    }


def price_warning(price: Price, today: date) -> str | None:
    """That a price is an example, is older than a year, or has no date; None where it holds."""
    if price.is_example:
        return (
            f"the price of {price.instance_type}, ${price.usd_per_hour:g} an hour, is an example: "
            "set what this machine costs in the space file (price), or no cost here is yours"
        )
    try:
        year, month, day, *more = map(int, [*price.as_of.split("-"), "1"])
        since = date(year, month, day)
        if len(more) > 1:
            raise ValueError(price.as_of)
    except (ValueError, OverflowError):
        return f"the price of {price.instance_type} has no date: check that it still holds"
    if (today - since).days <= _YEAR_DAYS:
        return None
    return (
        f"the price of {price.instance_type} is of {price.as_of}, more than a year old: "
        "`python -m optimizer prices update` asks AWS for today's, or give usd_per_hour"
    )
