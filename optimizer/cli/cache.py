"""`cache`: list or prune the artefact cache."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.table import Table

from optimizer.artifacts.cache import ArtifactCache, StoredEntry
from optimizer.cli.options import Duration, cache_option
from optimizer.cli.output import OutputConsole
from optimizer.commands.run_context import cache_folder

_MIB = 2**20


@click.command()
@click.option(
    "--prune", "unused_seconds", type=Duration(),
    help="Remove what no run has used for this time, such as 720h. No run may be active.",
)  # fmt: skip
@cache_option
def cache(cache: Path | None, unused_seconds: float | None) -> None:
    """List the artefact cache: built graphs, engines and reference outputs."""
    stored = ArtifactCache(cache_folder(cache))
    entries = stored.entries()
    if unused_seconds is not None:
        oldest = time.time() - unused_seconds
        unused = [entry for entry in entries if entry.used_at < oldest]
        unused += stored.unused_timings(oldest)
        stored.remove(unused)
        click.echo(f"removed {_summary(unused)}")
        entries = [entry for entry in entries if entry not in unused]
    console = OutputConsole()
    if entries:
        console.print(_table(entries))
    console.print(f"{stored.root}: {_summary(entries)}", highlight=False, soft_wrap=True)


def _table(entries: Sequence[StoredEntry]) -> Table:
    table = Table()
    table.add_column("entry")
    table.add_column("what", overflow="fold")
    for name in ("MiB", "built in, s"):
        table.add_column(name, justify="right")
    table.add_column("last used, UTC")
    for entry in entries:
        used = datetime.fromtimestamp(entry.used_at, UTC)
        table.add_row(
            entry.path.name[:12],
            entry.what,
            f"{entry.size_bytes / _MIB:.1f}",
            f"{entry.build_seconds:.1f}",
            f"{used:%Y-%m-%d %H:%M}",
        )
    return table


def _summary(entries: Sequence[StoredEntry]) -> str:
    size = sum(entry.size_bytes for entry in entries) / _MIB
    return f"{len(entries)} {'entry' if len(entries) == 1 else 'entries'}, {size:.1f} MiB"
