"""`cache`: list or prune the artefact cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

import click

from optimizer.artifacts.cache import StoredEntry
from optimizer.cli.options import Duration, cache_option
from optimizer.cli.output import OutputConsole
from optimizer.cli.terminal import print_table
from optimizer.commands.run_context import artifact_cache
from optimizer.report.table import table_of

_MIB = 2**20


@click.command()
@click.option(
    "--prune", "unused_seconds", type=Duration(),
    help="Remove files that no run has used for this time, such as 720h. No run may be active.",
)  # fmt: skip
@cache_option
def cache(cache: str | None, unused_seconds: float | None) -> None:
    """List the artefact cache: built graphs, engines and reference outputs."""
    stored = artifact_cache(cache)
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
        print_table(console, table_of("", _COLUMNS, entries, texts=("content",)))
    console.print(f"{stored.root}: {_summary(entries)}", highlight=False, soft_wrap=True)


_COLUMNS: Mapping[str, Callable[[StoredEntry], str]] = {
    "entry": lambda entry: entry.path.name[:12],
    "content": lambda entry: entry.what,
    "MiB": lambda entry: f"{entry.size_bytes / _MIB:.1f}",
    "built in, s": lambda entry: f"{entry.build_seconds:.1f}",
    "last used, UTC": lambda entry: f"{datetime.fromtimestamp(entry.used_at, UTC):%Y-%m-%d %H:%M}",
}


def _summary(entries: Sequence[StoredEntry]) -> str:
    size = sum(entry.size_bytes for entry in entries) / _MIB
    return f"{len(entries)} {'entry' if len(entries) == 1 else 'entries'}, {size:.1f} MiB"
