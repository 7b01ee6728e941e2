"""Write the table of engines in docs/hardware.md: what NVIDIA's builder makes of every graph.

    python -m tests.benchmarks.engine_table [FOLDER]

Artefacts are kept in FOLDER, so that an interrupted run goes on where it was; in a temporary folder
by default.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from textwrap import shorten

from optimizer.configuration.runtimes.spec import Precision
from optimizer.errors import BuildFailure
from tests.e2e.engine_bench import ENGINES, EngineBench, Gpus, engine_bench

PAGE = Path(__file__).parents[2] / "docs" / "hardware.md"
TABLE = re.compile(r"\| Model \| Precision \|.*?\n(?!\|)", re.DOTALL)
_HEADER = (
    "| Model | Precision | GPUs | Parsed | Built | CPU seconds | Plan, MB | Fused attentions "
    "| Weight products in INT8 |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
)


def rows(bench: EngineBench) -> Iterator[str]:
    """Build every engine and yield its row of the table."""
    yield from _HEADER
    for name, precision, gpus in ENGINES:
        outcome = _outcome(bench, name, precision, gpus)
        row = f"| {name} | {precision} | {', '.join(gpus)} | {outcome} |"
        print(row, flush=True)
        yield row


def _outcome(bench: EngineBench, name: str, precision: Precision, gpus: Gpus) -> str:
    try:
        engine = bench.build(name, precision, gpus)
    except BuildFailure as failure:
        return f"{_failure(str(failure))} | | | |"
    figures = f"{engine.cpu_seconds:.1f} | {engine.plan_bytes / 1e6:.1f} | {engine.attentions}"
    int8 = f"{engine.int8_products} of {engine.products}" if precision == "int8" else ""
    return f"yes | yes | {figures} | {int8}"


def _failure(reason: str) -> str:
    """Return whether it was parsed and whether it was built."""
    by_nvidia = reason.startswith("the engine's build")
    text = shorten(reason.partition(": ")[2] if by_nvidia else reason, 170, placeholder=" ...")
    parsed = "refused by us" if not by_nvidia else "no" if text.startswith("node ") else "yes"
    return f"{parsed} | no: {text}"


def main(folder: Path) -> None:
    """Replace the table in the page."""
    with tempfile.TemporaryDirectory() as scratch, engine_bench(Path(scratch), folder) as bench:
        table = "\n".join(rows(bench)) + "\n"
    PAGE.write_text(TABLE.sub(lambda _: table, PAGE.read_text(), count=1))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as cache:
            main(Path(cache))
