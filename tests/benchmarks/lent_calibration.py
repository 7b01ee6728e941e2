"""What the calibration of one kind of hardware saves the search on another: `python -m
tests.benchmarks.lent_calibration [TABLE [PRIOR]]`.

Searches a table with the service times of another table, of the same models on other hardware, and
without. The other hardware is made up where no second table is given: its times are those of the
first, divided by a factor for each precision (3 for FP32, 1.8 for INT8), and 5 % of what no factor
explains. Without any table, truths over the quickstart's space are made up as well. `one_core.yaml`
in this folder says how a second table is recorded.

Prints a table in Markdown: seconds and trials until a configuration is within 5 % of the best.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from optimizer.commands.replay import Replay, lent_by, replay_table
from optimizer.search.recorded.table import RecordedTable
from optimizer.search.recorded.table_file import read_table
from tests.benchmarks.search import MOST_TRIALS, NEAR, as_markdown, quantile
from tests.benchmarks.synthetic_tables import SLOWER, UNEXPLAINED, faster, synthetic_table


def pairs(given: list[Path], count: int) -> Iterator[tuple[RecordedTable, RecordedTable]]:
    """Yield `count` pairs of a table and the one that lends to it."""
    recorded = [read_table(path) for path in given]
    for seed in range(count):
        match recorded:
            case []:
                yield synthetic_table(seed, SLOWER), synthetic_table(seed)
            case [table]:
                yield table, made_up(table, seed)
            case [table, prior, *_]:
                yield table, prior


def made_up(table: RecordedTable, seed: int) -> RecordedTable:
    """The same models on faster hardware: a factor for each precision, and a little more."""
    rng = np.random.default_rng(seed)
    factors: dict[object, float] = {}
    rows = []
    for row in table.rows:
        [model] = table.space.search_space.config(row.position).models
        layout = (model.artifact, model.groups, model.max_batch_size)
        own = factors.setdefault(layout, math.exp(UNEXPLAINED * rng.standard_normal()))
        rows.append(faster(row, own * SLOWER[model.artifact.precision]))
    return replace(table, rows=tuple(rows))


def row(how: str, runs: list[Replay]) -> dict[str, object]:
    """Sum up the searches of one way."""
    firsts = [run.first_within(NEAR) for run in runs]
    seconds = [first[1] if first is not None else None for first in firsts]
    trials = [float(first[0]) if first is not None else None for first in firsts]
    return {
        "search": how,
        "found": sum(first is not None for first in firsts) / len(firsts),
        "seconds, median": quantile(seconds, 0.5),
        "seconds, p90": quantile(seconds, 0.9),
        "of it calibration": quantile([run.calibration_seconds for run in runs], 0.5),
        "trials, median": quantile(trials, 0.5),
        "trials, p90": quantile(trials, 0.9),
    }


def main() -> None:
    """Run every search, and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("tables", nargs="*", type=Path, metavar="TABLE")
    given = parser.parse_args()
    alone, lent = list[Replay](), list[Replay]()
    for seed, (table, other) in enumerate(pairs(given.tables, given.seeds)):
        search = partial(replay_table, table, "guided", seed, MOST_TRIALS, lambda _: None, NEAR)
        alone.append(search())
        lent.append(search(prior=lent_by(other, seed)))
    print(as_markdown(pd.DataFrame([row("alone", alone), row("with a prior", lent)])))


if __name__ == "__main__":
    main()
