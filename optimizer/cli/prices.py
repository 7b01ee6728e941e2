"""`prices`: lists prices of instance types, and fetches current ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from pathlib import Path

import click

from optimizer.cli.output import OutputConsole
from optimizer.cli.terminal import print_path, print_table
from optimizer.commands.prices import PRICE_SOURCES, update_prices
from optimizer.fleet.price_list import ListedPrice, own_price_list, price_list, price_warning
from optimizer.report.number_formats import price_per_hour
from optimizer.report.table import Table, table_of


@click.group(invoke_without_command=True)
@click.pass_context
def prices(context: click.Context) -> None:
    """List prices per hour of instance types; your own list overrides the shipped one."""
    if context.invoked_subcommand is None:
        console, listed = OutputConsole(), price_list()
        print_table(console, _table(listed))
        old = sum(price_warning(entry.price, _today()) is not None for entry in listed)
        if old:
            console.print(
                f"{old} of {len(listed)} are more than a year old or undated", style="yellow"
            )
        _print_path(console, own_price_list())


@prices.command()
@click.option(
    "--source",
    type=click.Choice(list(PRICE_SOURCES)),
    default=next(iter(PRICE_SOURCES)),
    show_default=True,
    help="Cloud whose prices are fetched.",
)
@click.option("--region", metavar="REGION", help="Default: the cloud's own, us-east-1 of AWS.")
@click.option(
    "--type", "types", multiple=True, metavar="INSTANCE_TYPE",
    help="Instance type, such as ml.g5.xlarge or g5.xlarge. Default: all listed types.",
)  # fmt: skip
def update(source: str, region: str | None, types: tuple[str, ...]) -> int:
    """Fetch current prices of a cloud and keep them in your own list."""
    console, updated = OutputConsole(), update_prices(source, region, types)
    print_table(console, _table(updated.prices))
    if updated.missing:
        missing = ", ".join(updated.missing)
        console.print(f"no price in {updated.region}: {missing}", style="yellow")
    _print_path(console, updated.path)
    return 0 if updated.prices else 1


def _print_path(console: OutputConsole, path: Path) -> None:
    print_path(console, "your own list", path)


_COLUMNS: Mapping[str, Callable[[ListedPrice], str]] = {
    "instance type": lambda entry: entry.price.instance_type,
    "$ an hour": lambda entry: price_per_hour(entry.price.usd_per_hour),
    "rate": lambda entry: entry.price.rate,
    "region": lambda entry: entry.price.region,
    "vCPUs": lambda entry: str(entry.vcpus or ""),
    "GPUs": lambda entry: f"{entry.gpus} {entry.gpu}" if entry.gpus and entry.gpu else "",
    "as of": lambda entry: entry.price.as_of,
    "source": lambda entry: entry.price.source,
}


def _table(listed: tuple[ListedPrice, ...]) -> Table:
    entries = sorted(listed, key=lambda each: each.key)
    return table_of("Prices", _COLUMNS, entries, texts=("rate", "region", "GPUs", "source"))


def _today() -> date:
    return datetime.now(UTC).date()
