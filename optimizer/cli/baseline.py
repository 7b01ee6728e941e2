"""`baseline`: the eight configurations of the published benchmark, on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from optimizer.cli.options import (
    SEED,
    Said,
    cache_option,
    results_option,
    said_options,
)
from optimizer.cli.output import LastingConsole
from optimizer.cli.terminal import print_parts
from optimizer.cli.watchers import watching
from optimizer.commands.baseline import BaselineRequest, measure_baselines
from optimizer.commands.parts import default_cache
from optimizer.errors import EverythingFailedError
from optimizer.report.benchmark_tables import benchmark_parts


@click.command()
@click.argument("space", type=click.Path(path_type=Path))
@click.option(
    "--ramp", is_flag=True,
    help="By the published ramp of users, up to 25 minutes each, not by the short protocol.",
)  # fmt: skip
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of arrivals.")
@said_options
@results_option
@cache_option
def baseline(
    space: Path, ramp: bool, seed: int, said: Said | None, results: Path, cache: Path | None
) -> int:
    """Measure {unoptimised, compiled} x {batching off, on} x {one instance, two} of SPACE.

    On a GPU that is PyTorch and TensorRT, on a CPU PyTorch and OpenVINO; in FP32, with the largest
    batch that the space lists. Exit code 1: none of them met the limit; 4: none, or less than half
    of them, could be measured.
    """
    request = BaselineRequest(space, results, (cache or default_cache()).absolute(), seed, ramp)
    console = LastingConsole()
    with watching(console, said) as watch:
        found = measure_baselines(request, watch)
    own = found.space
    prices = {own.price.instance_type: own.price}
    print_parts(console, benchmark_parts(found.rows, prices, own.demand, found.limit_ms))
    for name, reason in found.left_out.items():
        console.print(f"{name} is left out: {reason}", style="yellow", highlight=False)
    for note in found.notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    for what, path in (("table", found.table), ("page", found.page)):
        console.print(f"{what}: {path}", markup=False, highlight=False, soft_wrap=True)
    if found.unmeasured is not None:
        raise EverythingFailedError(found.unmeasured)
    return 0 if found.within_limits else 1
