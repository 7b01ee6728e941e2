"""Prices of instance types per hour: the shipped list, and the user's own, which overrides it.

A price list is a CSV file with at least the columns instance_type, usd_per_hour, region, as_of and
basis; `rate` (default: on-demand) distinguishes spot and reserved prices.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Protocol, TextIO

from optimizer.errors import UsageError
from optimizer.files.shipped import shipped
from optimizer.files.untrusted import UnreadableError, csv_rows, read_text, write_csv
from optimizer.measurement.cost import ON_DEMAND, Price

_YEAR_DAYS = 365
_MAX_TEXT_LENGTH = 200
_MAX_NUMBER = 1e6
"""For every number of a list: dollars per hour, processors, gigabytes."""
_REQUIRED = ("instance_type", "usd_per_hour", "region", "as_of", "basis")
_COLUMNS = (*_REQUIRED, "rate", "vcpus", "gpu", "gpus", "memory_gb")


@dataclass(frozen=True)
class ListedPrice:
    """A price and the hardware of its instance type; None where the list does not say."""

    price: Price
    vcpus: int | None = None
    gpu: str | None = None
    gpus: int | None = None
    memory_gb: float | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """Instance type, region and rate, which identify a price."""
        return (self.price.instance_type, self.price.region, self.price.rate)


class PriceSource(Protocol):
    """Current prices of one cloud.

    An implementation is one module and one line of `commands.prices.PRICE_SOURCES`:

        class AzurePrices:
            default_region = "westeurope"

            def current_prices(self, instance_types, region): ...
    """

    @property
    def default_region(self) -> str:
        """Region whose prices are fetched unless the user names another."""

    def current_prices(self, instance_types: Sequence[str], region: str) -> Iterator[ListedPrice]:
        """Yield all prices of these instance types in a region; nothing for unknown types.

        Raises:
            RequirementError: without the credentials, package or network that it needs.
        """


def own_price_list() -> Path:
    """Return the path of the user's list, by the XDG specification; the file may not exist."""
    root = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(root) / "triton-cost-optimizer" / "prices.csv"


def price_list() -> tuple[ListedPrice, ...]:
    """Return the shipped prices, overridden by those of the user's own list.

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
    """Return all prices of both; `newer` wins for the same type, region and rate."""
    return tuple({entry.key: entry for entry in (*listed, *newer)}.values())


def usual_prices(listed: Iterable[ListedPrice]) -> Mapping[str, Price]:
    """Return the default price of each instance type: the latest on-demand one, of any region."""
    on_demand = [entry.price for entry in listed if entry.price.rate == ON_DEMAND]
    return {price.instance_type: price for price in sorted(on_demand, key=lambda p: p.as_of)}


def shipped_prices() -> Mapping[str, Price]:
    """Return the default prices of the shipped list alone, by instance type."""
    return usual_prices(read_prices(shipped("prices.csv")))


def read_prices(path: Path) -> tuple[ListedPrice, ...]:
    """Read a CSV file. Raises UsageError, naming file, line, column, rule and value."""
    try:
        table = csv_rows(read_text(path))
        missing = [name for name in _REQUIRED if name not in table.names]
        if missing:
            raise UnreadableError(f"must have the columns {', '.join(missing)}")
        return tuple(_listed(line, row) for line, row in table.rows)
    except UnreadableError as error:
        raise UsageError(f"{path}: {error}") from error


def _listed(line: int, row: Mapping[str, str]) -> ListedPrice:
    def text(column: str) -> str:
        value = row.get(column, "").strip()
        if len(value) > _MAX_TEXT_LENGTH or not value.isprintable():
            rule = f"must be one line of at most {_MAX_TEXT_LENGTH} characters"
            raise UnreadableError(f"line {line}: {column} {rule}")
        return value

    def number(column: str) -> float | None:
        value = text(column)
        try:
            parsed = float(value) if value else None
        except ValueError:
            parsed = math.nan
        if parsed is not None and not 0 <= parsed <= _MAX_NUMBER:
            rule = f"must be a number from 0 to {_MAX_NUMBER:g}"
            raise UnreadableError(f"line {line}: {column} {rule}, got {value!r}")
        return parsed

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
    write_csv(lines, _COLUMNS, map(_row, listed))


def _row(entry: ListedPrice) -> Mapping[str, object]:
    price = {name: getattr(entry.price, name) for name in (*_REQUIRED, "rate")}
    return price | {name: getattr(entry, name) for name in ("vcpus", "gpu", "gpus", "memory_gb")}


def price_warning(price: Price, today: date) -> str | None:
    """Return a warning for a price that is an example, older than a year or undated, else None."""
    if price.is_example:
        return (
            f"the price of {price.instance_type}, ${price.usd_per_hour:g} per hour, is an example: "
            "set the price of this machine in the space file (price), or all costs are examples"
        )
    try:
        year, month, day, *more = map(int, [*price.as_of.split("-"), "1"])
        since = date(year, month, day)
        if len(more) > 1:
            raise ValueError(price.as_of)
    except (ValueError, OverflowError):
        return f"the price of {price.instance_type} has no date: check that it is current"
    if (today - since).days <= _YEAR_DAYS:
        return None
    return (
        f"the price of {price.instance_type} is of {price.as_of}, more than a year old: fetch the "
        "current one with `python -m optimizer prices update`, or give usd_per_hour"
    )
