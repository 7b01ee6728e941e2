"""`run`: start or resume a study."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import click
from click.core import ParameterSource

from optimizer.cli.options import (
    COUNT,
    SEED,
    Duration,
    LatencyLimitMs,
    Said,
    cache_option,
    results_option,
    said_options,
)
from optimizer.cli.outcome import show_outcome
from optimizer.cli.output import LastingConsole
from optimizer.cli.sampling import sampler_option
from optimizer.cli.watchers import watching
from optimizer.commands.parts import default_cache
from optimizer.commands.run import RunRequest, run_study
from optimizer.files.shipped import shipped

_STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def _study_name(_: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not _STUDY_NAME.fullmatch(value):
        raise click.BadParameter(f"must be letters, digits, - and _, at most 64; got {value!r}")
    return value


@click.command()
@click.argument("space", type=click.Path(path_type=Path), required=False)
@click.option("--study", callback=_study_name, help="Name of the study; the space file's own.")
@click.option("--trials", type=COUNT, help="Configurations to measure.")
@click.option("--timeout", type=Duration(), help="End the search after, say, 8h.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of proposals and arrivals.")
@sampler_option
@click.option("--storage", help="URL of a study database; a journal file in results/ without.")
@click.option(
    "--warm-start", callback=_study_name, metavar="STUDY",
    help="Take over from another study what still holds.",
)  # fmt: skip
@click.option(
    "--enqueue", type=click.Choice(["published"]),
    help="Measure the published benchmark's eight configurations first.",
)  # fmt: skip
@click.option(
    "--also-limit", "also_limits_ms", type=LatencyLimitMs(), multiple=True,
    help="Minimise the cost within this latency limit as well, such as 300ms; repeatable. "
    "The sampler is tpe then, unless another is chosen.",
)  # fmt: skip
@said_options
@results_option
@cache_option
@click.pass_context
def run(
    context: click.Context,
    space: Path | None,
    study: str | None,
    trials: int | None,
    timeout: float | None,
    seed: int,
    sampler: str,
    storage: str | None,
    warm_start: str | None,
    enqueue: Literal["published"] | None,
    also_limits_ms: tuple[float, ...],
    said: Said | None,
    results: Path,
    cache: Path | None,
) -> int:
    """Search SPACE (a YAML file; the quickstart without one), or go on where it stopped."""
    chosen = context.get_parameter_source("sampler") is not ParameterSource.DEFAULT
    request = RunRequest(
        space=space or shipped("search_spaces") / "quickstart.yaml",
        results=results,
        cache=(cache or default_cache()).absolute(),
        study=study,
        trials=trials,
        timeout_seconds=timeout,
        seed=seed,
        sampler=sampler if chosen else None,
        storage=storage,
        warm_start=warm_start,
        enqueue=enqueue,
        also_limits_ms=also_limits_ms,
    )
    console = LastingConsole()
    with watching(console, said) as watch:
        result = run_study(request, watch)
    show_outcome(console, result)
    return 0 if result.summary.best is not None else 1
