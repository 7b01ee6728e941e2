"""`serve`: a study's best configuration, or an exported bundle, on this machine."""

from __future__ import annotations

import time
from pathlib import Path

import click

from optimizer.cli.interruption import until_interrupted
from optimizer.cli.options import results_option
from optimizer.cli.output import OutputConsole
from optimizer.commands.serve import Servable, ServeRequest, find_servable, serving
from optimizer.errors import ServerFailure

_SECONDS_BETWEEN = 0.5

_PORT = click.IntRange(0, 65535)


@click.command()
@click.argument("subject", metavar="STUDY|DIR")
@click.option("--baseline", is_flag=True, help="Serve the study's baseline: a way to roll back.")
@click.option(
    "--http-port", type=_PORT, default=8000, show_default=True,
    help="On 127.0.0.1, as are the others; 0 takes any that is free.",
)  # fmt: skip
@click.option("--grpc-port", type=_PORT, default=8001, show_default=True)
@click.option("--metrics-port", type=_PORT, default=8002, show_default=True)
@click.option(
    "--print", "print_only", is_flag=True,
    help="Print the commands that start the same server by hand, and start nothing.",
)  # fmt: skip
@results_option
def serve(
    subject: str,
    baseline: bool,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    print_only: bool,
    results: Path,
) -> None:
    """Serve the best configuration of STUDY, or the exported bundle DIR, until Ctrl-C.

    The server is of the kind that measured it, and listens on this machine alone. Ctrl-C ends it,
    with exit code 0; 4: the server did not start, or ended.
    """
    console = OutputConsole()
    request = ServeRequest(subject, results, http_port, grpc_port, metrics_port, baseline)
    servable = find_servable(request)
    if print_only:
        click.echo(servable.by_hand())
        return
    with until_interrupted(), serving(servable) as server:
        for line in _introduction(servable):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        while (ended := server.exit_reason()) is None:
            time.sleep(_SECONDS_BETWEEN)
        raise ServerFailure(ended)


def _introduction(servable: Servable) -> list[str]:
    at = servable.endpoint
    return [
        f"serving {servable.root}: {servable.description}",
        f"HTTP http://{at.http}, gRPC {at.grpc}, metrics http://{at.metrics}/metrics",
        "an inference:",
        servable.example_request(),
        "the same server by hand:",
        servable.by_hand(),
        "Ctrl-C ends it",
    ]
