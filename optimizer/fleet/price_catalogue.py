"""The shipped price list: hourly on-demand prices with region, source and date."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from importlib import resources

from optimizer.cost import Price


def shipped_prices() -> Mapping[str, Price]:
    """Prices by instance type, from optimizer/data/prices.csv."""
    file = resources.files("optimizer") / "data" / "prices.csv"
    with file.open(encoding="utf-8") as lines:
        return {row["instance_type"]: _price(row) for row in csv.DictReader(lines)}


def _price(row: Mapping[str, str]) -> Price:
    return Price(
        instance_type=row["instance_type"],
        usd_per_hour=float(row["usd_per_hour"]),
        source=f"{row['basis']}, {row['region']}",
        as_of=row["as_of"],
    )
