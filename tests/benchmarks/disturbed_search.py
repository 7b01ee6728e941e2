"""A guided search beside a process that comes and goes: `python -m
tests.benchmarks.disturbed_search`.

Searches every recorded table that ships, in virtual time: without a disturbing process, beside one
that the search knows nothing of, and beside one whose share of the cores the levels tell, as on a
real machine. It runs for a minute and pauses for two, on average, and takes 0.3 to 1.2 of the two
cores. It slows the server down by anything between nothing and all that this share allows, since
the process may keep idle cores busy as well as those that were needed.

Rows have the true regret of the cheapest trial, and of the best of the finalists, which the confirm
phase measures again and tells apart; the searches whose bound on that regret held at their end; the
seconds; and the share of the trials that met the limits whose interval has the true capacity.

Writes a table (Markdown and CSV) to results/benchmarks/.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal
from unittest.mock import patch

import numpy as np
import pandas as pd

from optimizer.commands import replay
from optimizer.commands.replay import Replay, recorded_context, replay_table
from optimizer.configuration.serving_config import ServingConfig
from optimizer.files.shipped import shipped
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.level import LevelKind, LoadLevel
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.finalists import finalists_of, ranked
from optimizer.search.recorded.evaluator import RecordedEvaluator
from optimizer.search.recorded.table import RecordedLevel, RecordedRow, RecordedTable
from optimizer.search.recorded.table_file import read_table
from optimizer.study.events import Event, SearchStatusChanged
from tests.benchmarks.regret_bound import as_markdown
from tests.benchmarks.side_by_side import side_by_side
from tests.benchmarks.synthetic_tables import faster

MOST_TRIALS = 60
RUNS_SECONDS, PAUSES_SECONDS = 60.0, 120.0
LEAST_CORES, MOST_CORES = 0.3, 1.2

Disturbance = Literal["none", "unknown", "told"]


def phases(rng: np.random.Generator) -> Iterator[tuple[float, float]]:
    """Yield for ever until when a phase lasts, in seconds, and the cores that it takes."""
    now = 0.0
    while True:
        now += rng.exponential(PAUSES_SECONDS)
        yield now, 0.0
        now += rng.exponential(RUNS_SECONDS)
        yield now, rng.uniform(LEAST_CORES, MOST_CORES)


class DisturbedEvaluator(RecordedEvaluator):
    """A recorded table beside a process that comes and goes.

    Args:
        told: whether levels have the cores that the process took.
    """

    def __init__(self, table: RecordedTable, rng: np.random.Generator, *, told: bool) -> None:
        super().__init__(table, rng)
        self._disturbing = np.random.default_rng(rng.integers(2**32))
        self._phases = phases(self._disturbing)
        self._until, self._taken = next(self._phases)
        self._told = told
        self._cores = table.space.machine.cores

    def _drawn(
        self, config: ServingConfig, accept: Callable[[RecordedRow], bool] = lambda _: True
    ) -> RecordedRow:
        while self._until < self.seconds:
            self._until, self._taken = next(self._phases)
        share = self._disturbing.uniform()
        slowdown = (self._cores / (self._cores - self._taken)) ** share
        return faster(super()._drawn(config, accept), 1 / slowdown)

    def _upper(self, row: RecordedRow, saturation: RecordedLevel) -> float:
        return super()._upper(row, saturation) * self._level("saturation", saturation).slowdown

    def _evaluated(self, row: RecordedRow, prune_below: float | None) -> Evaluation:
        result = super()._evaluated(row, prune_below)
        measured = result.measurement
        if measured is None or measured.load_factor_high is None:
            return result
        # As a capacity search does; the bound of saturation has it already.
        high = measured.load_factor_high
        if result.outcome != "bounded":
            high *= measured.slowdown
        return replace(result, measurement=replace(measured, load_factor_high=high))

    def _level(self, kind: LevelKind, recorded: RecordedLevel) -> LoadLevel:
        level = super()._level(kind, recorded)
        assert level.machine is not None
        foreign = self._taken if self._told else None
        return replace(level, machine=replace(level.machine, foreign_cores=foreign))


@dataclass(frozen=True)
class Task:
    """One search."""

    path: Path
    disturbance: Disturbance
    seed: int


def searched(task: Task) -> dict[str, object]:
    """Return what came of a search."""
    table = read_table(task.path)
    bounds: list[float] = []

    def watch(event: Event) -> None:
        if isinstance(event, SearchStatusChanged) and event.status.regret_bound is not None:
            bounds.append(event.status.regret_bound)

    make: Callable[..., RecordedEvaluator] = RecordedEvaluator
    if task.disturbance != "none":
        make = partial(DisturbedEvaluator, told=task.disturbance == "told")
    with patch.object(replay, "RecordedEvaluator", make):
        found = replay_table(table, "guided", task.seed, MOST_TRIALS, watch)
    cheapest, finalists = regrets(table, found)
    within = [holds(table, t.record) for t in found.trials if t.record.outcome == "ok"]
    return {
        "table": task.path.stem,
        "disturbance": task.disturbance,
        "seed": task.seed,
        "of_cheapest": cheapest,
        "of_finalists": finalists,
        "held": finalists <= bounds[-1],
        "bound": bounds[-1],
        "trials": len(found.trials),
        "seconds": found.trials[-1].seconds,
        "within": float(np.mean(within)),
        "ended": found.ended.reason,
    }


def regrets(table: RecordedTable, found: Replay) -> tuple[float, float]:
    """Return the true regret of the cheapest trial, and of the best of the finalists."""
    met = [trial.record for trial in found.trials if trial.record.outcome == "ok"]
    cheapest_first = ranked(met, recorded_context(table.space))
    capacities = [
        max(table.true_capacity_of(record.config) for record in records)
        for records in (cheapest_first[:1], finalists_of(cheapest_first))
    ]
    best = max(table.true_capacity.values())
    return 1 - capacities[0] / best, 1 - capacities[1] / best


def holds(table: RecordedTable, record: TrialRecord) -> bool:
    """Return whether the interval of a trial has the true capacity."""
    measured, true = record.measurement, table.true_capacity_of(record.config)
    assert measured is not None, "a trial that met the limits was measured"
    high = measured.capacity_high_per_second
    return measured.capacity_low_per_second <= true <= (math.inf if high is None else high)


def summed_up(runs: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each table and disturbance."""
    rows = []
    for (table, disturbance), own in runs.groupby(["table", "disturbance"], sort=False):
        rows.append(
            {
                "table": table,
                "disturbing process": disturbance,
                "regret of the cheapest trial, mean (worst)": of(own.of_cheapest),
                "regret of the finalists, mean (worst)": of(own.of_finalists),
                "bound held": f"{own.held.sum()} of {len(own)}",
                "seconds, median": f"{own.seconds.median():.0f}",
                "trials, median": f"{own.trials.median():.0f}",
                "intervals that hold": f"{own.within.mean():.0%}",
            }
        )
    return pd.DataFrame(rows)


def of(regret: pd.Series[float]) -> str:
    """Return mean and maximum of regrets."""
    return f"{regret.mean():.1%} ({regret.max():.1%})"


def main() -> None:
    """Run every search, write and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="of each table and disturbance")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    given = parser.parse_args()
    disturbances: tuple[Disturbance, ...] = ("none", "unknown", "told")
    tables = sorted(shipped("tables").glob("*.csv"))
    tasks = [
        Task(path, disturbance, seed)
        for seed, path, disturbance in product(range(given.seeds), tables, disturbances)
    ]
    runs = side_by_side(searched, tasks, given.out / "disturbed_search_runs.csv")
    table = as_markdown(summed_up(runs.sort_values(["table", "disturbance"])))
    (given.out / "disturbed_search.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
