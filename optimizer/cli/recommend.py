"""`recommend`: the instance types that serve a demand at the lowest cost."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from optimizer.cli.options import (
    COUNT,
    Duration,
    Rate,
    Share,
    Verbosity,
    json_option,
    pricing_options,
    run_options,
    seed_option,
)
from optimizer.cli.output import OutputConsole, ResilientConsole
from optimizer.cli.terminal import print_parts
from optimizer.cli.watchers import watching
from optimizer.commands.recommend import RecommendOptions, recommend_instances
from optimizer.report.recommendation_tables import recommendation_parts


@click.command()
@click.argument("studies", nargs=-1, metavar="[STUDY]...")
@click.option(
    "--search", "space", type=click.Path(path_type=Path), metavar="SPACE",
    help="Search this machine first (a YAML file), and rank it with the others.",
)  # fmt: skip
@click.option("--trials", type=COUNT, help="Configurations that --search measures. Default: 10.")
@click.option(
    "--timeout", "timeout_seconds", type=Duration(),
    help="End the search of --search after this time, such as 30m.",
)  # fmt: skip
@seed_option("sampler and arrivals")
@click.option(
    "--job", type=click.Path(path_type=Path), metavar="FILE",
    help="After --search, run an advanced job (JSON) on its best configurations.",
)  # fmt: skip
@click.option("--advanced", is_flag=True, help="Rank by the advanced jobs of the studies.")
@click.option(
    "--demand", "demand_per_second", type=Rate(), metavar="PER_SECOND",
    help="Request rate per second. Default: that of the studies.",
)  # fmt: skip
@click.option(
    "--headroom", type=Share(), metavar="SHARE",
    help="Spare capacity, as a share of the demand, such as 0.2. Default: that of the studies.",
)  # fmt: skip
@pricing_options
@click.option(
    "--instance-type", "instance_types", multiple=True, metavar="TYPE",
    help="Also rank this type, extrapolated from measurements on the same GPU.",
)  # fmt: skip
@json_option("the recommendation")
@run_options
def recommend(verbosity: Verbosity | None, **options: Any) -> int:
    """Rank instance types by the cost of a fleet of each.

    STUDY is a name in the folder of results, or the path of a study's folder that was copied from
    another host.
    """
    chosen = RecommendOptions(**options)
    console = ResilientConsole() if chosen.search is not None else OutputConsole()
    with watching(console, verbosity) as watch:
        recommendation = recommend_instances(chosen, watch)
    today = datetime.now(UTC).date()
    print_parts(console, recommendation_parts(recommendation, today, by_users=chosen.by_users))
    return 0 if recommendation.estimates else 1
