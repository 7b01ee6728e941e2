"""`prices`: what instances cost, and today's prices by the AWS price list."""

from __future__ import annotations

import io
from datetime import UTC, date, datetime

import click
from rich.table import Table

from optimizer.cli.options import OutputConsole
from optimizer.cli.plain_table import plain_table
from optimizer.fleet.aws_prices import aws_client, todays_prices
from optimizer.fleet.price_catalogue import (
    ListedPrice,
    age_warning,
    merged,
    own_list,
    price_list,
    read_list,
    write_list,
)
from optimizer.search.study_directory import write_text


@click.group(invoke_without_command=True)
@click.pass_context
def prices(context: click.Context) -> None:
    """List what instances cost by the hour; your own list goes before the one that ships."""
    if context.invoked_subcommand is None:
        console, listed = OutputConsole(), price_list()
        console.print(_table(listed))
        old = sum(age_warning(entry.price, _today()) is not None for entry in listed)
        if old:
            console.print(
                f"{old} of {len(listed)} are more than a year old or undated", style="yellow"
            )
        console.print(f"your own list: {own_list()}", markup=False, highlight=False, soft_wrap=True)


@prices.command()
@click.option("--region", default="us-east-1", show_default=True)
@click.option(
    "--type", "types", multiple=True, metavar="INSTANCE_TYPE",
    help="Such as ml.g5.xlarge or g5.xlarge; those that are listed, without any.",
)  # fmt: skip
def update(region: str, types: tuple[str, ...]) -> int:
    """Ask the AWS price list for today's prices and keep them in your own list."""
    console, path = OutputConsole(), own_list()
    wanted = types or tuple(dict.fromkeys(e.price.instance_type for e in price_list()))
    found = tuple(todays_prices(aws_client(), wanted, region))
    own = merged(read_list(path) if path.exists() else (), found)
    text = io.StringIO()
    write_list(text, own)
    write_text(path, text.getvalue())
    console.print(_table(found))
    missing = [name for name in wanted if name not in {e.price.instance_type for e in found}]
    if missing:
        console.print(f"no price in {region}: {', '.join(missing)}", style="yellow")
    console.print(f"your own list: {path}", markup=False, highlight=False, soft_wrap=True)
    return 0 if found else 1


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
