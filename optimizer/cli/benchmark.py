"""Rows of the published table's kind, as `replay` and `baseline` show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from optimizer.cli.plain_table import plain_table
from optimizer.fleet.benchmark_table import BenchmarkRow, cheapest
from optimizer.fleet.published_claims import PublishedClaim
from optimizer.measurement.cost import Demand, Price


def show_benchmark(
    console: Console,
    rows: Sequence[BenchmarkRow],
    prices: Mapping[str, Price],
    demand: Demand,
    limit_ms: float,
) -> None:
    """Print every row with its cost, and the cheapest with and without the limit."""
    for name in dict.fromkeys(row.instance_type for row in rows):
        own = [row for row in rows if row.instance_type == name]
        console.print(_rows(own, prices[name], demand))
    for said, row in (
        ("without a limit", cheapest(rows)),
        (f"within {limit_ms:g} ms", cheapest(rows, limit_ms)),
    ):
        found = "none"
        if row is not None:
            found = f"{row.configuration} on {row.instance_type}, ${row.usd_per_hour:.3f} an hour"
            found += f", {row.latency_ms:.0f} ms"
        console.print(f"cheapest {said}: {found}", highlight=False)


def _rows(rows: Sequence[BenchmarkRow], price: Price, demand: Demand) -> Table:
    table = plain_table(
        f"{price.instance_type} at ${price.usd_per_hour} an hour ({price.source}, {price.as_of})",
        "name",
        "calls/min",
        "latency, ms",
        "replicas",
        "$ an hour",
        "$/million",
    )
    for row in rows:
        per_million = row.usd_per_million(demand)
        table.add_row(
            row.configuration,
            f"{row.invocations_per_minute:,.0f}",
            f"{row.latency_ms:.0f}",
            str(row.replicas),
            f"{row.usd_per_hour:.3f}",
            f"{per_million:.4f}" if per_million < 1 else f"{per_million:.2f}",
        )
    return table


def show_claims(console: Console, claims: Sequence[PublishedClaim], notes: Sequence[str]) -> None:
    """Print what was said of the features, and how often the rows bear it out."""
    table = plain_table("What was said, and the table", "said", "ratios", "median", "borne out in")
    for claim in claims:
        table.add_row(
            claim.text,
            f"{claim.ratios[0]:.2f} to {claim.ratios[-1]:.2f}",
            f"{claim.median:.2f}",
            f"{claim.supporting_pairs} of {len(claim.pairs)} pairs",
        )
    console.print(table)
    for note in notes:
        console.print(f"- {note}", highlight=False)
