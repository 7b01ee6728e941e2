"""Recalculate the published benchmark with the shipped prices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from optimizer.files.atomic import write_text
from optimizer.fleet.benchmark_table import BenchmarkRow
from optimizer.fleet.price_list import shipped_prices
from optimizer.fleet.published_claims import (
    PUBLISHED,
    PUBLISHED_DEMAND,
    PUBLISHED_LIMIT_MS,
    PublishedClaim,
    claims,
    notes,
    published_rows,
)
from optimizer.measurement.cost import Price
from optimizer.report.benchmark_page import benchmark_page

_TITLE = "The published benchmark, recalculated"


@dataclass(frozen=True)
class PublishedBenchmark:
    """The recalculated benchmark.

    Attributes:
        prices: of one instance, by instance type.
        claims, notes: the published claims, and where the table contradicts the article.
        page: file that shows them.
    """

    rows: tuple[BenchmarkRow, ...]
    prices: Mapping[str, Price]
    claims: tuple[PublishedClaim, ...]
    notes: tuple[str, ...]
    page: Path


def replay_published_benchmark(results: Path) -> PublishedBenchmark:
    """Recalculate the benchmark and write the page into `results`. Raises StorageError."""
    prices, demand = shipped_prices(), PUBLISHED_DEMAND
    rows = tuple(row.priced(prices[row.instance_type], demand) for row in published_rows())
    page = results.absolute() / f"{PUBLISHED}.html"
    benchmark = PublishedBenchmark(rows, prices, claims(rows), tuple(notes(rows)), page)
    html = benchmark_page(
        _TITLE, rows, prices, demand, PUBLISHED_LIMIT_MS, benchmark.claims, benchmark.notes
    )
    write_text(page, html)
    return benchmark
