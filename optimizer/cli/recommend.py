"""`recommend`: which instance type serves a demand for least, by studies of one host or several."""

from __future__ import annotations

from pathlib import Path

import click

from optimizer.cli.options import (
    COUNT,
    SEED,
    Duration,
    Rate,
    Said,
    Share,
    cache_option,
    pricing_options,
    results_option,
    said_options,
)
from optimizer.cli.output import LastingConsole, OutputConsole
from optimizer.cli.recommended import show_recommendation
from optimizer.cli.watchers import watching
from optimizer.commands.parts import default_cache
from optimizer.commands.recommend import RecommendRequest, recommend_instances
from optimizer.commands.run import RunRequest
from optimizer.errors import UsageError
from optimizer.fleet.price_rules import Accepted, PriceChoice

_TRIALS = 10
"""A look at a machine, not a night's search."""


@click.command()
@click.argument("studies", nargs=-1, metavar="[STUDY]...")
@click.option(
    "--search", "space", type=click.Path(path_type=Path), metavar="SPACE",
    help="Search this machine first (a YAML file), and rank it with the others.",
)  # fmt: skip
@click.option(
    "--trials", type=COUNT,
    help=f"Configurations that --search measures; {_TRIALS} without.",
)  # fmt: skip
@click.option("--timeout", type=Duration(), help="End that search after, say, 30m.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of proposals and arrivals.")
@click.option(
    "--job", type=click.Path(path_type=Path), metavar="FILE",
    help="Then run an advanced job (JSON) on its best configurations.",
)  # fmt: skip
@click.option("--advanced", is_flag=True, help="Rank by what the studies' advanced jobs measured.")
@click.option(
    "--demand", type=Rate(), metavar="PER_SECOND",
    help="Requests a second; else the studies' own.",
)  # fmt: skip
@click.option(
    "--headroom", type=Share(), metavar="SHARE",
    help="Kept free above the demand, such as 0.2; else the studies' own.",
)  # fmt: skip
@pricing_options
@click.option(
    "--instance-type", "instance_types", multiple=True, metavar="TYPE",
    help="Rank this type too, by what was measured on the same GPU.",
)  # fmt: skip
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), metavar="FILE",
    help="Write the recommendation for programs too.",
)  # fmt: skip
@said_options
@results_option
@cache_option
def recommend(
    studies: tuple[str, ...],
    space: Path | None,
    trials: int | None,
    timeout: float | None,
    seed: int,
    job: Path | None,
    advanced: bool,
    demand: float | None,
    headroom: float | None,
    rate: str | None,
    region: str | None,
    instance_types: tuple[str, ...],
    accept: tuple[Accepted, ...],
    json_file: Path | None,
    said: Said | None,
    results: Path,
    cache: Path | None,
) -> int:
    """Rank instance types by what a fleet of each costs.

    STUDY is a name in the folder of results, or the path of a study's folder that was copied from
    another host.
    """
    request = RecommendRequest(
        studies=studies,
        results=results,
        search=_search(space, trials, timeout, seed, results, cache),
        job=job,
        advanced=advanced,
        demand_per_second=demand,
        headroom=headroom,
        prices=PriceChoice(rate, region),
        instance_types=instance_types,
        accepted=frozenset(accept),
        json=json_file,
    )
    console = LastingConsole() if request.search is not None else OutputConsole()
    with watching(console, said) as watch:
        found = recommend_instances(request, watch)
    show_recommendation(console, found, by_users=request.by_users)
    return 0 if found.estimates else 1


def _search(
    space: Path | None,
    trials: int | None,
    timeout: float | None,
    seed: int,
    results: Path,
    cache: Path | None,
) -> RunRequest | None:
    """What is searched on this machine first, None where nothing is."""
    if space is not None:
        return RunRequest(
            space=space,
            results=results,
            cache=(cache or default_cache()).absolute(),
            trials=trials or _TRIALS,
            timeout_seconds=timeout,
            seed=seed,
        )
    if trials is not None or timeout is not None:
        raise UsageError("--trials and --timeout are those of a --search")
    return None
