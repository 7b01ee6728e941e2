"""The published benchmark, as `replay` shows it: nothing is searched, everything is worked out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from optimizer.cli.plain_table import plain_table
from optimizer.cost import Price
from optimizer.fleet.published import (
    PUBLISHED_LIMIT_MS,
    PublishedRow,
    cheapest,
    claims,
    notes,
)


def show_published(
    console: Console, rows: Sequence[PublishedRow], prices: Mapping[str, Price], page: Path
) -> None:
    """Print every row with its costs, both winners, and what the features change."""
    for name in dict.fromkeys(row.instance_type for row in rows):
        console.print(_rows([row for row in rows if row.instance_type == name], prices[name]))
    for said, limit in (
        ("without a limit", None),
        (f"within {PUBLISHED_LIMIT_MS:.0f} ms", PUBLISHED_LIMIT_MS),
    ):
        row = cheapest(rows, prices, limit)
        cost = row.score(prices[row.instance_type]).fleet_usd_per_hour
        console.print(
            f"cheapest {said}: {row.configuration} on {row.instance_type}, "
            f"${cost:.3f} an hour, {row.latency_ms:.0f} ms",
            highlight=False,
        )
    console.print(_claims(rows))
    for note in notes(rows):
        console.print(f"- {note}", highlight=False)
    console.print(f"page: {page}", highlight=False, soft_wrap=True)


def _rows(rows: Sequence[PublishedRow], price: Price) -> Table:
    table = plain_table(
        f"{price.instance_type} at ${price.usd_per_hour} an hour ({price.source}, {price.as_of})",
        "configuration",
        "invocations/min",
        "latency, ms",
        "replicas",
        "$ an hour",
        "$ per million",
    )
    for row in rows:
        found = row.score(price)
        table.add_row(
            row.configuration,
            f"{row.invocations_per_minute:,.0f}",
            f"{row.latency_ms:.0f}",
            str(found.replicas),
            f"{found.fleet_usd_per_hour:.3f}",
            f"{found.usd_per_million_at_demand:.2f}",
        )
    return table


def _claims(rows: Sequence[PublishedRow]) -> Table:
    table = plain_table("What was said, and the table", "said", "ratios", "median", "borne out in")
    for claim in claims(rows):
        table.add_row(
            claim.said,
            f"{claim.ratios[0]:.2f} to {claim.ratios[-1]:.2f}",
            f"{median(claim.ratios):.2f}",
            f"{claim.borne_out} of {len(claim.pairs)} pairs",
        )
    return table
