"""`baseline`: the eight configurations of the published benchmark, on this machine."""

from __future__ import annotations

from typing import Any

import click

from optimizer.cli.options import Verbosity, run_options, seed_option, space_argument
from optimizer.cli.output import ResilientConsole
from optimizer.cli.terminal import print_line, print_parts, print_path
from optimizer.cli.watchers import watching
from optimizer.commands.baseline import BaselineOptions, measure_baselines
from optimizer.errors import EverythingFailedError
from optimizer.report.benchmark_tables import benchmark_parts


@click.command()
@space_argument
@click.option(
    "--ramp", is_flag=True,
    help="Use the published ramp of users as load, up to 25 minutes for each configuration.",
)  # fmt: skip
@seed_option("the arrivals")
@run_options
def baseline(verbosity: Verbosity | None, **options: Any) -> int:
    """Measure {unoptimised, compiled} x {batching off, on} x {one instance, two} of SPACE.

    Unoptimised is PyTorch; compiled is TensorRT on a GPU, and OpenVINO on a CPU. All use FP32 and
    the largest batch of the space. Exit code 1: none of them met the limit; 4: fewer than half of
    them could be measured.
    """
    console = ResilientConsole()
    with watching(console, verbosity) as watch:
        baselines = measure_baselines(BaselineOptions(**options), watch)
    space = baselines.space
    prices = {space.price.instance_type: space.price}
    limit_ms = baselines.limit_ms
    print_parts(console, benchmark_parts(baselines.rows, prices, space.demand, limit_ms))
    for name, reason in baselines.left_out.items():
        console.print(f"{name} is left out: {reason}", style="yellow", highlight=False)
    for note in baselines.notes:
        print_line(console, note)
    print_path(console, "table", baselines.table)
    print_path(console, "page", baselines.page)
    if baselines.unmeasured is not None:
        raise EverythingFailedError(baselines.unmeasured)
    return 0 if baselines.within_limits else 1
