"""`replay`: search a recorded table in seconds."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from optimizer.cli.options import COUNT, results_option, seed_option
from optimizer.cli.output import OutputConsole
from optimizer.cli.terminal import print_line, print_parts, print_path, print_sentence, print_table
from optimizer.cli.watchers import PlainLines
from optimizer.commands.published_benchmark import PublishedBenchmark, replay_published_benchmark
from optimizer.commands.replay import Replay, lent_by, open_table, replay_table
from optimizer.configuration.serving_config import describe
from optimizer.errors import UsageError
from optimizer.fleet.published_claims import PUBLISHED, PUBLISHED_DEMAND, PUBLISHED_LIMIT_MS
from optimizer.report.benchmark_tables import benchmark_parts, claims_table
from optimizer.search.samplers import CALIBRATED, SAMPLERS
from optimizer.simulator.service_prior import ServicePrior

_TOLERANCE = 0.05
"""Share of the best capacity within which single measurements do not distinguish two points."""


@click.command()
@click.argument("table")
@click.option(
    "--sampler", type=click.Choice(list(SAMPLERS)), default="guided", show_default=True,
    help="Sampler that proposes configurations.",
)  # fmt: skip
@click.option("--trials", type=COUNT, help="Configurations to measure. Default: all.")
@click.option(
    "--workers", type=COUNT, default=1, show_default=True,
    help="Configurations measured at the same time, each on its own machine.",
)  # fmt: skip
@click.option(
    "--prior", metavar="TABLE", help="Reuse the service times of this table, of the same models on "
    "other hardware, up to a scale, and show the saving.",
)  # fmt: skip
@seed_option("sampler and noise")
@results_option
def replay(
    table: str,
    sampler: str,
    trials: int | None,
    workers: int,
    prior: str | None,
    seed: int,
    results: Path,
) -> int:
    """Search TABLE without a server: a file that `record` wrote, or the name of a shipped table.

    For the table "published_benchmark", which has the 24 rows of the published benchmark, the
    published claims are recalculated, printed, and written as a page.
    """
    console = OutputConsole()
    if table == PUBLISHED:
        _show_published(console, replay_published_benchmark(results))
        return 0
    recorded = open_table(table)
    budget = trials or len(recorded.space.search_space)
    lent = _lent(prior, sampler, seed)
    search = partial(replay_table, recorded, sampler, seed, budget, workers=workers)
    result = search(PlainLines(console), prior=lent)
    print_line(console, "\n" + replay_text(result))
    if lent is not None:
        print_line(console, savings_text(lent.study, result, search(lambda _: None)))
    return 0 if result.best is not None else 1


def _lent(table: str | None, sampler: str, seed: int) -> ServicePrior | None:
    if table is not None and sampler not in CALIBRATED:
        others = ", ".join(sorted(CALIBRATED))
        raise UsageError(f"--prior: needs --sampler {others}; got {sampler}")
    return lent_by(open_table(table), seed) if table is not None else None


def _show_published(console: OutputConsole, benchmark: PublishedBenchmark) -> None:
    rows, limit_ms = benchmark.rows, PUBLISHED_LIMIT_MS
    print_parts(console, benchmark_parts(rows, benchmark.prices, PUBLISHED_DEMAND, limit_ms))
    print_table(console, claims_table(benchmark.claims))
    for note in benchmark.notes:
        print_sentence(console, f"- {note}")
    print_path(console, "page", benchmark.page)


def replay_text(result: Replay) -> str:
    """Return the best configuration of a replayed search, compared with the best of the table."""
    space = result.table.space
    seconds = result.trials[-1].seconds if result.trials else result.calibration_seconds
    lines = [
        f"{space.study}, recorded {space.as_of} on {space.machine.summary}",
        f"{len(result.trials)} trials: {seconds:.0f} s of load tests and model loads on that "
        f"machine; the calibration runs take {result.calibration_seconds:.0f} s in turn",
        f"ended: {result.ended.reason}",
    ]
    if (best := result.best) is None:
        return "\n".join([*lines, "no configuration met the limits"])
    highest = result.table.best_capacity
    lines += [
        f"best configuration: {describe(best.record.config)}",
        f"  capacity by all of its measurements: {best.true_share * highest:.0f}/s, "
        f"{best.true_share:.1%} of the table's best, {highest:.0f}/s",
    ]
    first = result.first_within(_TOLERANCE)
    if first is not None:
        lines.append(f"  within {_TOLERANCE:.0%} of it after {first[0]} trials, {first[1]:.0f} s")
    else:
        lines.append(f"  no trial came within {_TOLERANCE:.0%} of it")
    return "\n".join(lines)


def savings_text(lender: str, lent: Replay, alone: Replay) -> str:
    """Return what the service times of another table save.

    Args:
        lender: study of the other table.
        alone: the same search without them.
    """
    calibration_seconds = alone.calibration_seconds - lent.calibration_seconds
    lines = [f"by the service times of {lender}, {calibration_seconds:.0f} s of calibration saved"]
    for title, each in (("with them", lent), ("without", alone)):
        first = each.first_within(_TOLERANCE)
        reached = f"{first[0]} trials, {first[1]:.0f} s" if first is not None else "not reached"
        lines.append(f"  within {_TOLERANCE:.0%} of the best, {title}: {reached}")
    return "\n".join(lines)
