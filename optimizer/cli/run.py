"""`run`: start or resume a study."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from optimizer.cli.options import (
    COUNT,
    ClockTime,
    Duration,
    LatencyLimitMs,
    Percent,
    Verbosity,
    or_variable,
    run_options,
    seed_option,
    storage_option,
)
from optimizer.cli.outcome import show_outcome
from optimizer.cli.output import ResilientConsole
from optimizer.cli.process_title import NOTIFY_VARIABLE
from optimizer.cli.terminal import print_parts, print_sentence
from optimizer.cli.watchers import lines_of_study, watching
from optimizer.cluster.choice import cluster_choice, require_ray
from optimizer.commands.run import run_study
from optimizer.commands.run_options import RunOptions
from optimizer.files.shipped import shipped
from optimizer.machine.time_limit import seconds_of_process
from optimizer.report.comparison_tables import comparison_parts
from optimizer.search.samplers import SAMPLERS
from optimizer.search.winner_phase import WINNER_TESTS

_STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def _study_name(_: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not _STUDY_NAME.fullmatch(value):
        raise click.BadParameter(f"must be letters, digits, - and _, at most 64; got {value!r}")
    return value


def _resources(
    _: click.Context, __: click.Parameter, pairs: tuple[str, ...]
) -> tuple[tuple[str, float], ...]:
    resources = []
    for pair in pairs:
        name, _equals, amount = pair.rpartition("=")
        if not name or not re.fullmatch(r"\d+(\.\d+)?", amount) or float(amount) == 0:
            raise click.BadParameter(f"must be NAME=AMOUNT with an amount above 0; got {pair!r}")
        resources.append((name, float(amount)))
    return tuple(resources)


@click.command()
@click.argument(
    "space", type=click.Path(path_type=Path), required=False,
    default=lambda: shipped("search_spaces") / "quickstart.yaml",
)  # fmt: skip
@click.option(
    "--study", callback=_study_name, help="Name of the study. Default: that of the space file."
)
@click.option(
    "--trials", type=COUNT, help="Configurations to measure. Default: as in the space file."
)
@click.option(
    "--timeout", "timeout_seconds", type=Duration(),
    help="End the run after this time, such as 8h. Default: as in the space file.",
)  # fmt: skip
@click.option(
    "--until", type=ClockTime(), metavar="HH:MM[:SS]",
    help="End the run by this time of the local clock, instead of --timeout.",
)  # fmt: skip
@click.option(
    "--regret", "regret_percent", type=Percent(100), metavar="PERCENT",
    help="End the search when, with 95% confidence, no configuration is cheaper than the best one "
    "by more than this, such as 3% (guided). Default: as in the space file.",
)  # fmt: skip
@seed_option("sampler and arrivals")
@click.option(
    "--sampler", type=click.Choice(list(SAMPLERS)),
    help="Sampler that proposes configurations. Default: guided, or tpe with --also-limit.",
)  # fmt: skip
@storage_option
@click.option(
    "--warm-start", callback=_study_name, metavar="STUDY",
    help="Reuse the still-valid results of another study.",
)  # fmt: skip
@click.option(
    "--prior", callback=_study_name, metavar="STUDY",
    help="Reuse the service times of a study of the same models on other hardware, up to a scale. "
    "This saves most calibration runs.",
)  # fmt: skip
@click.option(
    "--enqueue", type=click.Choice(["published"]),
    help="Measure the published benchmark's eight configurations first.",
)  # fmt: skip
@click.option(
    "--also-limit", "also_limits_ms", type=LatencyLimitMs(), multiple=True,
    help="Also minimise the cost within this latency limit, such as 300ms. Repeatable.",
)  # fmt: skip
@click.option(
    "--with", "winner_tests", type=click.Choice(WINNER_TESTS), multiple=True,
    help="Also measure this for the best configuration, even in a short run. Repeatable.",
)  # fmt: skip
@click.option(
    "--gpus", metavar="all|0,2|UUID,...",
    help="Run a trial on each of these GPUs at the same time, with the cores near it.",
)  # fmt: skip
@click.option(
    "--slots", type=COUNT,
    help="Run this many trials at the same time, each on its own part of the cores (without GPUs).",
)  # fmt: skip
@click.option(
    "--max-disturbance", "max_disturbance_percent", type=Percent(100), metavar="PERCENT",
    help="Run one trial at a time if concurrent trials slow each other down by more than this.",
)  # fmt: skip
@click.option(
    "--notify", callback=or_variable(NOTIFY_VARIABLE), metavar="COMMAND|URL",
    help="Notify a command or a URL of the end of the run and of problems. Also set by "
    f"{NOTIFY_VARIABLE}.",
)  # fmt: skip
@click.option(
    "--cluster", metavar="auto|HOST:PORT",
    help="Run the trials on the nodes of the Ray cluster with this head.",
)  # fmt: skip
@click.option(
    "--worker-resources", multiple=True, callback=_resources, metavar="NAME=AMOUNT",
    help="Require this custom resource of Ray for each worker, with --cluster. Repeatable.",
)  # fmt: skip
@click.option(
    "--wait-for-quiet", "wait_for_quiet_seconds", type=Duration(), metavar="DURATION",
    help="If other processes keep the machine busy, wait for them at most this long, such as 10m. "
    "Default: do not wait, and warn of each load level that they disturb.",
)  # fmt: skip
@click.option(
    "--each-accelerator-type", is_flag=True,
    help="Run a study for each type of accelerator of the cluster, all at the same time.",
)  # fmt: skip
@run_options
def run(
    verbosity: Verbosity | None,
    cluster: str | None,
    worker_resources: tuple[tuple[str, float], ...],
    each_accelerator_type: bool,
    **options: Any,
) -> int:
    """Search SPACE (a YAML file) for the cheapest configuration. Rerun the command to resume.

    Without SPACE, the quickstart is searched.
    """
    console = ResilientConsole()
    chosen = RunOptions(**options, cluster=cluster_choice(cluster, worker_resources))
    if each_accelerator_type:
        return _run_each(console, chosen, verbosity)
    with watching(console, verbosity) as watch:
        result = run_study(chosen, watch, seconds_of_process())
    show_outcome(console, result)
    return 0 if result.summary.best is not None else 1


def _run_each(console: ResilientConsole, options: RunOptions, verbosity: Verbosity | None) -> int:
    """Run a study for each type of accelerator; return 0 unless one of them failed."""
    require_ray()
    # Only here, so that no other run imports Ray.
    from optimizer.commands.each_accelerator import run_each_type

    result = run_each_type(options, lambda study: lines_of_study(console, study, verbosity))
    for study, error in result.errors.items():
        print_sentence(console, f"Study {study} failed: {error}")
    if result.comparison is not None:
        print_parts(console, comparison_parts(result.comparison))
    if result.studies:
        names = " ".join(result.studies)
        print_sentence(
            console, f"To rank their instance types: python -m optimizer recommend {names}"
        )
    return max((error.exit_code for error in result.errors.values()), default=0)
