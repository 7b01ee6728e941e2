"""What the calibration of one kind of hardware saves the search on another: `python -m
tests.benchmarks.lent_calibration [TABLE PRIOR]`.

Searches a table with the service times of another table, of the same models on other hardware, and
without. Without tables, made-up truths over the quickstart's space are searched, whose times are
those of the first hardware times a factor for each precision (3 for FP32, 1.8 for INT8), and 5 % of
what no factor explains. `one_core.yaml`, in this folder, says how a second table is recorded.

Prints a table in Markdown: seconds and trials until a configuration is within 5 % of the best.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pandas as pd

from optimizer.commands.replay import Replay, lent_by, replay_table
from optimizer.search.recorded.table import RecordedTable
from optimizer.search.recorded.table_file import read_table
from tests.benchmarks.search import MOST_TRIALS, NEAR, as_markdown, quantile
from tests.benchmarks.synthetic_tables import SLOWER, synthetic_table


def pairs(given: list[Path], landscapes: int) -> Iterator[tuple[RecordedTable, RecordedTable]]:
    """Each table with the one that lends to it; made-up ones where none are given."""
    if given:
        table, prior = map(read_table, given)
        yield table, prior
        return
    for seed in range(landscapes):
        yield synthetic_table(seed, SLOWER), synthetic_table(seed)


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
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--landscapes", type=int, default=10, help="synthetic truths")
    parser.add_argument("tables", nargs="*", type=Path, metavar="TABLE PRIOR")
    given = parser.parse_args()
    alone, lent = list[Replay](), list[Replay]()
    tables = list(pairs(given.tables, given.landscapes))
    for seed in range(given.seeds if given.tables else given.landscapes):
        table, other = tables[seed % len(tables)]
        prior = lent_by(other, seed)
        search = partial(replay_table, table, "guided", seed, MOST_TRIALS, lambda _: None, NEAR)
        alone.append(search())
        lent.append(search(prior=prior))
    print(as_markdown(pd.DataFrame([row("alone", alone), row("with a prior", lent)])))


if __name__ == "__main__":
    main()
