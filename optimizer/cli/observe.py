"""`observe`: advice on a model in production, from its own counters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from optimizer.cli.options import Duration, LatencyLimitMs, json_option
from optimizer.cli.output import OutputConsole
from optimizer.cli.terminal import print_parts, print_path
from optimizer.cli.verify import DRIFT
from optimizer.commands.observe import ObserveOptions, observe_production


@click.command()
@click.argument("sources", nargs=-1, metavar="[SOURCE...]")
@click.option("--model", help="Name of the model. Default: the only one that serves requests.")
@click.option(
    "--for", "seconds", type=Duration(), default="10m", show_default=True,
    help="How long the servers are read.",
)  # fmt: skip
@click.option(
    "--every", "every_seconds", type=Duration(), default="1s", show_default=True,
    help="Time between two readings of a server.",
)  # fmt: skip
@click.option(
    "--limit", "limit_ms", type=LatencyLimitMs(),
    help="Limit of the p95 latency in the server, such as 200ms. Default: the present p95.",
)  # fmt: skip
@click.option(
    "--price", metavar="TYPE", help="Instance type of a replica, in the price list.",
)  # fmt: skip
@click.option(
    "--metrics", multiple=True, metavar="HOST:PORT",
    help="Metrics endpoint of a server, in the order of the servers. Default: port 8002 of each.",
)  # fmt: skip
@click.option(
    "--record", type=click.Path(path_type=Path), metavar="FILE",
    help="Write the readings to a file that `observe` can read instead of servers.",
)  # fmt: skip
@json_option("the advice")
@click.option(
    "--page", type=click.Path(path_type=Path), metavar="FILE", help="Write the advice as a page.",
)  # fmt: skip
@click.option(
    "--repository", type=click.Path(path_type=Path), metavar="FOLDER",
    help="Copy of the deployed model repository on this machine.",
)  # fmt: skip
@click.option(
    "--space", type=click.Path(path_type=Path), metavar="FILE",
    help="Write a space file for `run` from the readings (needs --repository).",
)  # fmt: skip
@click.option(
    "--patch", type=click.Path(path_type=Path), metavar="FILE",
    help="Write the best change as a patch of the repository (needs --repository).",
)  # fmt: skip
@click.option(
    "--prometheus", metavar="URL",
    help="Query a Prometheus that scrapes the servers (needs --repository).",
)  # fmt: skip
@click.option(
    "--query-range", "query_seconds", type=Duration(), default="24h", show_default=True,
    help="Length of the queried time, up to now.",
)  # fmt: skip
@click.option(
    "--selector", default="", metavar="MATCHERS",
    help="Labels of the servers in Prometheus, such as namespace=\"prod\".",
)  # fmt: skip
@click.option(
    "--after", type=click.Path(path_type=Path), metavar="BUNDLE",
    help="Compare production with the measurements of an exported bundle or patch.",
)  # fmt: skip
def observe(**options: Any) -> int:
    """Advise on a model in production from the counters of its servers, without a load test.

    Each SOURCE is the address of a replica, HOST:PORT for gRPC or http://HOST:PORT, or a recording.
    Only statistics, configurations and metrics are read. With --prometheus, they are read from a
    Prometheus server instead.

    Exit code 1: no configuration is predicted to be within the limit. 5, drift: with --after, the
    configuration, service times, load, arrivals, batches or queue differ from the measured ones by
    more than the exported alerts allow.
    """
    console, chosen = OutputConsole(), ObserveOptions(**options)
    with console.status("reading the counters, and simulating what they show"):
        result = observe_production(chosen)
    print_parts(console, result.parts())
    for what in ("record", "json", "page", "space", "patch"):
        if (path := getattr(chosen, what)) is not None:
            print_path(console, what, path)
    if result.drifts:
        return DRIFT
    return 0 if result.advice.best.replicas is not None else 1
