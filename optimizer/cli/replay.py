"""`replay`: a recorded table, searched in seconds."""

from __future__ import annotations

from pathlib import Path

import click

from optimizer.cli.options import COUNT, SEED, results_option
from optimizer.cli.output import OutputConsole
from optimizer.cli.sampling import sampler_option
from optimizer.cli.terminal import print_parts, print_table, say, say_path
from optimizer.cli.watchers import PlainLines
from optimizer.commands.published_benchmark import PublishedBenchmark, replay_published_benchmark
from optimizer.commands.replay import Replay, open_table, replay_table
from optimizer.configuration.serving_config import describe
from optimizer.fleet.published_claims import PUBLISHED, PUBLISHED_DEMAND, PUBLISHED_LIMIT_MS
from optimizer.report.benchmark_tables import benchmark_parts, claims_table

_NEAR = 0.05
"""Share of the best capacity that tells two points apart at the noise of single measurements."""


@click.command()
@click.argument("table")
@sampler_option
@click.option("--trials", type=COUNT, help="Configurations to measure; all without.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of proposals and of noise.")
@results_option
def replay(table: str, sampler: str, trials: int | None, seed: int, results: Path) -> int:
    """Search TABLE, a file that `record` wrote or the name of one that ships, without a server.

    The table "published_benchmark" holds the 24 rows of the benchmark that this project began with:
    what follows from them is worked out anew, printed, and written as a page.
    """
    console = OutputConsole()
    if table == PUBLISHED:
        _show_published(console, replay_published_benchmark(results))
        return 0
    recorded = open_table(table)
    budget = trials or len(recorded.space.search_space)
    found = replay_table(recorded, sampler, seed, budget, PlainLines(console))
    console.print("\n" + replay_text(found), markup=False, highlight=False, soft_wrap=True)
    return 0 if found.best is not None else 1


def _show_published(console: OutputConsole, found: PublishedBenchmark) -> None:
    rows, limit_ms = found.rows, PUBLISHED_LIMIT_MS
    print_parts(console, benchmark_parts(rows, found.prices, PUBLISHED_DEMAND, limit_ms))
    print_table(console, claims_table(found.claims))
    for note in found.notes:
        say(console, f"- {note}")
    say_path(console, "page", found.page)


def replay_text(found: Replay) -> str:
    """What a replayed search found, and how near it is to the best of the table."""
    space = found.table.space
    seconds = found.trials[-1].seconds if found.trials else found.calibration_seconds
    lines = [
        f"{space.study}, recorded {space.as_of} on {space.machine.summary}",
        f"{len(found.trials)} trials, {seconds:.0f} s of load tests and model loads there, "
        f"{found.calibration_seconds:.0f} s of it to calibrate",
        f"ended: {found.ended.reason}",
    ]
    if (best := found.best) is None:
        return "\n".join([*lines, "nothing met the limits"])
    most = found.table.best_capacity
    lines += [
        f"best found: {describe(best.record.config)}",
        f"  it serves {best.true_share * most:.0f}/s by all measurements of it, "
        f"{best.true_share:.1%} of the table's best, {most:.0f}/s",
    ]
    first = found.first_within(_NEAR)
    if first is not None:
        lines.append(f"  within {_NEAR:.0%} of it after {first[0]} trials, {first[1]:.0f} s")
    else:
        lines.append(f"  nothing within {_NEAR:.0%} of it was found")
    return "\n".join(lines)
