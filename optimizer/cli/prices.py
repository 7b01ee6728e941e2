"""`prices`: what instances cost, and today's prices by the AWS price list."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from pathlib import Path

import click

from optimizer.cli.output import OutputConsole
from optimizer.cli.terminal import print_table
from optimizer.commands.prices import update_prices
from optimizer.fleet.price_list import ListedPrice, own_price_list, price_list, price_warning
from optimizer.report.number_formats import price_per_hour
from optimizer.report.table import Table, table_of


@click.group(invoke_without_command=True)
@click.pass_context
def prices(context: click.Context) -> None:
    """List what instances cost by the hour; your own list goes before the one that ships."""
    if context.invoked_subcommand is None:
        console, listed = OutputConsole(), price_list()
        print_table(console, _table(listed))
        old = sum(price_warning(entry.price, _today()) is not None for entry in listed)
        if old:
            console.print(
                f"{old} of {len(listed)} are more than a year old or undated", style="yellow"
            )
        _say_where(console, own_price_list())


@prices.command()
@click.option("--region", default="us-east-1", show_default=True)
@click.option(
    "--type", "types", multiple=True, metavar="INSTANCE_TYPE",
    help="Such as ml.g5.xlarge or g5.xlarge; those that are listed, without any.",
)  # fmt: skip
def update(region: str, types: tuple[str, ...]) -> int:
    """Ask the AWS price list for today's prices and keep them in your own list."""
    console, updated = OutputConsole(), update_prices(region, types)
    print_table(console, _table(updated.found))
    if updated.missing:
        console.print(f"no price in {region}: {', '.join(updated.missing)}", style="yellow")
    _say_where(console, updated.path)
    return 0 if updated.found else 1


def _say_where(console: OutputConsole, path: Path) -> None:
    console.print(f"your own list: {path}", markup=False, highlight=False, soft_wrap=True)


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
