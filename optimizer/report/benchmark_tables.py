"""Rows like those of the published benchmark, priced for a demand, in tables and sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from optimizer.fleet.benchmark_table import BenchmarkRow, cheapest
from optimizer.fleet.published_claims import PublishedClaim
from optimizer.measurement.cost import Demand, Price
from optimizer.report import number_formats as form
from optimizer.report.table import Line, Part, Table, table_of


def benchmark_tables(
    rows: Sequence[BenchmarkRow], prices: Mapping[str, Price], demand: Demand, limit_ms: float
) -> list[Table]:
    """Return a table for each instance type; the cheapest row within the limit is highlighted.

    Args:
        prices: of one instance, by instance type.
    """
    types = dict.fromkeys(row.instance_type for row in rows)
    return [_table(rows, prices[name], demand, limit_ms) for name in types]


def _table(rows: Sequence[BenchmarkRow], price: Price, demand: Demand, limit_ms: float) -> Table:
    own = [row for row in rows if row.instance_type == price.instance_type]
    columns: Mapping[str, Callable[[BenchmarkRow], str]] = {
        "configuration": lambda row: row.configuration,
        "calls a minute": lambda row: form.rate(row.invocations_per_minute),
        "latency, ms": lambda row: (
            f"{row.latency_ms:,.0f}" + (" (missed)" if row.latency_ms > limit_ms else "")
        ),
        "replicas": lambda row: form.count(row.replicas),
        "$ an hour": lambda row: form.usd(row.usd_per_hour),
        "$ per million": lambda row: form.usd(row.usd_per_million(demand)),
    }
    table = table_of(form.price_text(price), columns, own)
    within = cheapest(rows, limit_ms)
    best = tuple(number for number, row in enumerate(own) if row == within)
    return Table(table.title, table.columns, table.rows, highlighted=best)


def benchmark_parts(
    rows: Sequence[BenchmarkRow], prices: Mapping[str, Price], demand: Demand, limit_ms: float
) -> list[Part]:
    """Return every row with its cost, and the cheapest with and without the limit."""
    return [*benchmark_tables(rows, prices, demand, limit_ms), *cheapest_lines(rows, limit_ms)]


def cheapest_lines(rows: Sequence[BenchmarkRow], limit_ms: float) -> Iterator[Line]:
    """Yield the cheapest row with and without the limit."""
    for what, row in (
        ("without a limit", cheapest(rows)),
        (f"within {limit_ms:g} ms", cheapest(rows, limit_ms)),
    ):
        text = "none"
        if row is not None:
            text = (
                f"{row.configuration} on {row.instance_type}, {form.usd(row.usd_per_hour)} an "
                f"hour, {row.latency_ms:.0f} ms"
            )
        yield Line(f"Cheapest {what}: {text}.")


def claims_table(claims: Sequence[PublishedClaim]) -> Table:
    """Return what was claimed of each feature, and how often the rows confirm it."""
    columns: Mapping[str, Callable[[PublishedClaim], str]] = {
        "claim": lambda claim: claim.text,
        "ratios": lambda claim: form.interval(claim.ratios[0], claim.ratios[-1], form.ratio),
        "median": lambda claim: form.ratio(claim.median),
        "confirmed by": lambda claim: f"{claim.supporting_pairs} of {len(claim.pairs)} pairs",
    }
    note = (
        "Ratios of rows that differ in one feature, after over before: below 1 is a gain in "
        "latency, above 1 in throughput."
    )
    return table_of("Published claims, checked against the table", columns, claims, notes=(note,))
