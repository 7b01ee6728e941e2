"""`prices`: lists prices of instance types, and fetches current ones."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import click
from rich.table import Table

from optimizer.cli.output import OutputConsole
from optimizer.cli.plain_table import plain_table
from optimizer.commands.prices import PRICE_SOURCES, update_prices
from optimizer.fleet.price_list import ListedPrice, own_price_list, price_list, price_warning


@click.group(invoke_without_command=True)
@click.pass_context
def prices(context: click.Context) -> None:
    """List prices per hour of instance types; your own list overrides the shipped one."""
    if context.invoked_subcommand is None:
        console, listed = OutputConsole(), price_list()
        console.print(_table(listed))
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
    console.print(_table(updated.prices))
    if updated.missing:
        missing = ", ".join(updated.missing)
        console.print(f"no price in {updated.region}: {missing}", style="yellow")
    _print_path(console, updated.path)
    return 0 if updated.prices else 1


def _print_path(console: OutputConsole, path: Path) -> None:
    console.print_line(f"your own list: {path}")


def _table(listed: tuple[ListedPrice, ...]) -> Table:
    table = plain_table(
        "Prices", "instance type", "$ an hour", "rate", "region", "vCPUs", "GPUs", "as of", "source"
    )
    for entry in sorted(listed, key=lambda each: each.key):
        price = entry.price
        gpus = f"{entry.gpus} {entry.gpu}" if entry.gpus and entry.gpu else ""
        table.add_row(
            price.instance_type,
            f"{price.usd_per_hour:g}",
            price.rate,
            price.region,
            str(entry.vcpus or ""),
            gpus,
            price.as_of,
            price.source,
        )
    return table


def _today() -> date:
    return datetime.now(UTC).date()
