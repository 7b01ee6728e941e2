"""Whether a guided search's bound on its regret holds: `python -m tests.benchmarks.regret_bound`.

Searches every recorded table that ships, and made-up servers with one queue setting, of which a
search takes a seventh of the time. After every trial the bound is compared with the true regret:
the share by which the best point of the whole table is cheaper than the best of the three cheapest
trials, as the confirm phase tells them apart. Rows count searches whose bound held at the end, and
at every trial up to it; and, at the end, for the cheapest trial as it is.

With `--small`, spaces of ten points are searched: parts of the tables, and made-up servers.

With `--calibrate`, searches of other made-up servers, and of tables with redistributed errors, go
on to their last trial. Their scores give the level of the bound, see
`optimizer.search.surrogate.regret`.

At the end the whole table is predicted as `pareto` does, by the calibration and corrected by the
trials. The last column has the share of the points without a trial that are within their intervals.

Writes tables (Markdown and CSV) to results/benchmarks/.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from optimizer.commands.replay import recorded_context, replay_table
from optimizer.files.shipped import shipped
from optimizer.measurement.cost import usd_per_million
from optimizer.measurement.estimates import CONFIDENCE, NORMAL_QUANTILE
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.finalists import FINALISTS
from optimizer.search.recorded.table import RecordedTable
from optimizer.search.recorded.table_file import read_table
from optimizer.search.surrogate import regret
from optimizer.search.surrogate.point_features import PointFeatures
from optimizer.search.surrogate.posterior import LogForecast, Posterior
from optimizer.study.events import Event, SearchStatusChanged, TrialFinished
from optimizer.study.history import History
from tests.benchmarks.search import NEAR, forecast_of, shuffled
from tests.benchmarks.side_by_side import side_by_side
from tests.benchmarks.synthetic_tables import ONE_QUEUE, synthetic_table

MOST_TRIALS = 60
CALIBRATION_TRIALS = 26
CALIBRATION_SEED = 1001
"""First of the made-up servers that the level is calibrated with; those that judge it are below."""

LIKELY = 0.5
"""Probability of meeting the limits above which a point is predicted."""

ALL_CORES = "instance_count * intra_op_threads == cores"
SMALL_ARTIFACTS = tuple(itertools.product(("onnxruntime", "openvino"), ("fp32", "int8")))

NEVER = 1e-9
"""A regret that no bound reaches."""

_bound = regret.bound


class Looks:
    """What is seen of one search after each of its trials.

    Attributes:
        regrets: the true ones, with those of the cheapest trial alone, [trials].
        bounds: on them.
        shares: of the draws, that save as much.
    """

    def __init__(self, table: RecordedTable) -> None:
        self._table = table
        self._history = History({})
        self._drawn = np.zeros(0)
        self.regrets: list[tuple[float, float]] = []
        self.bounds: list[float] = []
        self.shares: list[float] = []

    def watch(self, event: Event) -> None:
        """Take a trial into account, or look at the bound."""
        if isinstance(event, TrialFinished):
            self._history.add(event.record)
        elif isinstance(event, SearchStatusChanged) and event.status.regret_bound is not None:
            self.bounds.append(event.status.regret_bound)
            self.regrets.append((self._regret(FINALISTS), self._regret(1)))
            self.shares.append(float((self._drawn >= self.regrets[-1][0]).mean()))

    def bound(self, drawn: NDArray[np.float64]) -> float:
        """Return the bound, and keep the draws."""
        self._drawn = drawn
        return _bound(drawn)

    def _regret(self, count: int) -> float:
        """Return the true regret of the best of so many cheapest trials."""
        cheapest = sorted(self._history.ok, key=lambda record: record.told_value or math.inf)
        best = max(self._table.true_capacity_of(record.config) for record in cheapest[:count])
        return 1 - best / max(self._table.true_capacity.values())

    @property
    def score(self) -> float:
        """The smallest share of draws that save as much as the true best.

        A regret within the resolution of the bound is covered by any level.
        """
        shares = zip(self.shares, self.regrets, strict=True)
        return min(1.0 if true <= regret.RESOLUTION else share for share, (true, _) in shares)


def predicted_share(table: RecordedTable, records: Sequence[TrialRecord]) -> float:
    """Return the share of the points without a trial whose cost is within its interval.

    Points that are likely to miss the limits, and those that do, are left out; NaN where none is
    left.
    """
    context, space = recorded_context(table.space), table.space.search_space
    expected = LogForecast.of(forecast_of(table), context)
    trials = [(space.row_of[p], r) for r in records if (p := space.position_of(r.config))]
    posterior = Posterior.fitted(trials, expected, PointFeatures.of(space))
    capacities = np.array([table.true_capacity[space.at(row)] for row in range(len(space))])
    open_rows = np.setdiff1d(np.flatnonzero(capacities), [row for row, _ in trials])
    rows = open_rows[posterior.feasible(open_rows) > LIKELY]
    if len(rows) == 0:
        return math.nan
    log_cost, sd = posterior.log_cost(rows)
    each = context.demand.inferences_per_request
    true = np.log([usd_per_million(context.price.usd_per_hour, c, each) for c in capacities[rows]])
    return float((np.abs(true - log_cost) <= NORMAL_QUANTILE * sd).mean())


@dataclass(frozen=True)
class Task:
    """One search; `regret_percent` as in `replay_table`."""

    truth: str
    make: Callable[[], RecordedTable]
    seed: int
    trials: int
    regret_percent: float | None


def searched(task: Task) -> dict[str, object]:
    """Return what the bounds of a search were worth."""
    table = task.make()
    looks = Looks(table)
    with patch.object(regret, "bound", looks.bound):
        found = replay_table(
            table,
            "guided",
            task.seed,
            task.trials,
            looks.watch,
            regret_percent=task.regret_percent,
        )
    held = [true <= bound for (true, _), bound in zip(looks.regrets, looks.bounds, strict=True)]
    regret_at_end, of_cheapest = looks.regrets[-1]
    return {
        "truth": task.truth,
        "seed": task.seed,
        "trials": len(found.trials),
        "seconds": found.trials[-1].seconds,
        "regret": regret_at_end,
        "near": regret_at_end <= NEAR,
        "bound": looks.bounds[-1],
        "held_at_end": held[-1],
        "held_at_every_trial": all(held),
        "held_unconfirmed": of_cheapest <= looks.bounds[-1],
        "score": looks.score,
        "predicted": predicted_share(table, [trial.record for trial in found.trials]),
        "ended": found.ended.reason,
    }


def nth_shuffled(path: Path, number: int) -> RecordedTable:
    """Return a table with its errors redistributed for the n-th time."""
    return next(islice(shuffled(read_table(path), number + 1), number, None))


def made_up(seed: int) -> RecordedTable:
    """Return a made-up server with one queue setting."""
    return synthetic_table(seed, conditions=ONE_QUEUE)


def small_part(path: Path, runtime: str, precision: str) -> RecordedTable:
    """Return the part of a table with one artefact, one queue setting and all cores in use."""
    table = read_table(path)
    space = table.space.search_space
    conditions = [f"runtime == '{runtime}'", f"precision == '{precision}'", ALL_CORES, *ONE_QUEUE]
    limits = replace(space.limits, conditions=(*space.limits.conditions, *conditions))
    part = replace(space, limits=limits)
    points = {part.at(row) for row in range(len(part))}
    rows = tuple(row for row in table.rows if row.position in points)
    return replace(table, space=replace(table.space, search_space=part), rows=rows)


def small_server(seed: int) -> RecordedTable:
    """Return a made-up server with ten configurations of one artefact."""
    runtime, precision = SMALL_ARTIFACTS[seed % len(SMALL_ARTIFACTS)]
    conditions = (f"runtime == '{runtime}'", f"precision == '{precision}'", ALL_CORES, "batching")
    return synthetic_table(seed, conditions=(*ONE_QUEUE, *conditions))


def small(tables: Sequence[Path], seeds: int, servers: int, percent: float | None) -> list[Task]:
    """Return searches of spaces of ten points."""
    parts = [
        Task(f"ten points of {path.stem}", partial(small_part, path, *each), seed, 20, percent)
        for path in tables
        for each in SMALL_ARTIFACTS
        for seed in range(seeds)
    ]
    return parts + [
        Task("made-up servers of ten points", partial(small_server, seed), seed, 20, percent)
        for seed in range(servers)
    ]


def judged(tables: Sequence[Path], seeds: int, servers: int, percent: float | None) -> list[Task]:
    """Return the searches that judge the bound."""
    recorded = [
        Task(path.stem, partial(read_table, path), seed, MOST_TRIALS, percent)
        for seed in range(seeds)
        for path in tables
    ]
    return recorded + [
        Task("made-up servers", partial(made_up, seed), seed, MOST_TRIALS, percent)
        for seed in range(servers)
    ]


def calibrating(tables: Sequence[Path], count: int) -> Iterator[Task]:
    """Yield the searches that calibrate the bound: as many servers as tables with other errors."""
    for n in range(count):
        path = tables[n % len(tables)]
        for make in (partial(made_up, CALIBRATION_SEED + n), partial(nth_shuffled, path, n)):
            yield Task("calibration", make, CALIBRATION_SEED + n, CALIBRATION_TRIALS, NEVER)


def level_of(scores: Sequence[float]) -> float:
    """Return the level by the scores of searches, see `optimizer.search.surrogate.regret`.

    Raises:
        ValueError: fewer than 19 searches calibrate no level.
    """
    rank = math.floor((1 - CONFIDENCE) * (len(scores) + 1) + 1e-9)
    if rank == 0:
        raise ValueError(f"at least 19 searches must calibrate the level; got {len(scores)}")
    return sorted(scores)[rank - 1]


def summed_up(runs: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each truth."""
    rows = []
    for truth, own in runs.groupby("truth", sort=False):
        counts = {
            name: f"{own[column].sum()} of {len(own)}"
            for name, column in (
                ("held at the end", "held_at_end"),
                ("held at every trial", "held_at_every_trial"),
                ("held unconfirmed", "held_unconfirmed"),
                (f"within {NEAR:.0%}", "near"),
            )
        }
        rows.append(
            {
                "truth": truth,
                **counts,
                "bound at the end, median": f"{own.bound.median():.1%}",
                "true regret, p90": f"{own.regret.quantile(0.9):.1%}",
                "trials, median": f"{own.trials.median():.0f}",
                "seconds, median": f"{own.seconds.median():.0f}",
                "seconds, p90": f"{own.seconds.quantile(0.9):.0f}",
                "predictions within": f"{own.predicted.mean():.1%}",
            }
        )
    return pd.DataFrame(rows)


def as_markdown(table: pd.DataFrame) -> str:
    """Return a table as Markdown."""
    lines = ["| " + " | ".join(table.columns) + " |", "|" + " --- |" * len(table.columns)]
    lines += ["| " + " | ".join(row) + " |" for row in table.itertuples(index=False)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run every search, write and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=30, help="of each recorded table")
    parser.add_argument("--servers", type=int, default=60, help="made-up ones")
    parser.add_argument("--regret", type=float, metavar="PERCENT", help="ends the searches")
    parser.add_argument("--small", action="store_true", help="search small spaces alone")
    parser.add_argument("--calibrate", type=int, metavar="COUNT", help="of each kind of search")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    given = parser.parse_args()
    tables = sorted(shipped("tables").glob("*.csv"))
    tasks = judged(tables, given.seeds, given.servers, given.regret)
    if given.small:
        # A pipeline has no small part that batches.
        single = [path for path in tables if path.stem != "text_classification"]
        tasks = small(single, given.seeds, given.servers, given.regret)
    if given.calibrate:
        tasks = list(calibrating(tables, given.calibrate))
    runs = side_by_side(searched, tasks, given.out / "regret_bound_runs.csv")
    if given.calibrate:
        print(f"level: {level_of(runs.score.tolist()):.4f}")
        return
    table = as_markdown(summed_up(runs))
    (given.out / "regret_bound.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
