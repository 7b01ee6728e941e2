"""How soon each sampler finds a configuration within 5 % of the best: `python -m
tests.benchmarks.search`.

Every sampler searches every recorded table that ships, the same tables with their residuals from
the forecast dealt out anew among the points (a prior that is wrong), and made-up truths over the
quickstart's space. Seconds are those of load tests and model loads on the recorded machine, with
everything counted: the baseline, the calibration, the references, the trials. Artefacts are built
before a search, for all samplers alike, and take no part.

Writes a table (Markdown and CSV) and a plot to results/benchmarks/.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from optimizer.commands.replay import Replay, replay_table
from optimizer.files.shipped import shipped
from optimizer.search.level_runner import concurrency
from optimizer.search.recorded.table import RecordedTable
from optimizer.search.recorded.table_file import read_table
from optimizer.search.samplers import SAMPLERS
from optimizer.simulator.calibration import LIGHT_RUNS, calibration_points
from optimizer.simulator.forecast import Forecast
from optimizer.simulator.network_forecast import forecaster_of
from tests.benchmarks.side_by_side import side_by_side
from tests.benchmarks.simulator import learnt
from tests.benchmarks.synthetic_tables import faster, synthetic_table

NEAR = 0.05
MOST_TRIALS = 100
"""A search that has found nothing by then has not found it."""


@dataclass(frozen=True)
class Run:
    """One search; `trials` and `seconds` are None where it found nothing so near the best."""

    truth: str
    sampler: str
    workers: int
    seed: int
    trials: int | None
    seconds: float | None
    calibration_seconds: float
    measured: int
    infeasible: int
    repeats: int
    ended: str


def run_of(truth: str, found: Replay, sampler: str, workers: int, seed: int) -> Run:
    """What a replay says for the comparison."""
    records = [trial.record for trial in found.trials]
    first = found.first_within(NEAR)
    return Run(
        truth=truth,
        sampler=sampler,
        workers=workers,
        seed=seed,
        trials=first[0] if first is not None else None,
        seconds=first[1] if first is not None else None,
        calibration_seconds=found.calibration_seconds,
        measured=len(records),
        infeasible=sum(record.outcome == "infeasible" for record in records),
        # A repeat is served from the records: it takes a number and leaves none.
        repeats=max(record.number for record in records) + 1 - len(records),
        ended=found.ended.reason,
    )


def searched(task: tuple[str, RecordedTable, str, int, int]) -> Run:
    """One search, in a process of its own."""
    truth, table, sampler, workers, seed = task
    found = replay_table(table, sampler, seed, MOST_TRIALS, lambda _: None, NEAR, workers)
    return run_of(truth, found, sampler, workers, seed)


def truths(tables: Sequence[Path], landscapes: int) -> Iterator[tuple[str, list[RecordedTable]]]:
    """Each truth with its variants; seeds go through them in turn."""
    for path in tables:
        table = read_table(path)
        yield path.stem, [table]
        yield f"{path.stem}, shuffled", list(shuffled(table, seeds=10))
    if landscapes:
        yield "synthetic", [synthetic_table(seed) for seed in range(landscapes)]


def forecast_of(table: RecordedTable) -> Forecast:
    """What the guided search forecasts of a table after its calibration."""
    space = table.space.search_space
    forecaster = forecaster_of(space, table.space.workload, concurrency, seed=0)
    return forecaster.forecast(learnt(table, calibration_points(space), LIGHT_RUNS))


def shuffled(table: RecordedTable, seeds: int) -> Iterator[RecordedTable]:
    """Truths that are as far from the forecast, but elsewhere: at every point by another's error.

    Rates are multiplied and times divided by the same factor, so that each row stays consistent.
    """
    space = table.space.search_space
    forecast = forecast_of(table).saturation * table.space.workload.demand_per_second
    rates = {
        position: float(np.mean([r.saturation.per_second for r in rows if r.saturation]))
        for position, rows in table.by_position.items()
        if any(r.saturation for r in rows)
    }
    positions = list(rates)
    errors = [rates[p] / forecast[space.row_of[p]] for p in positions]
    for seed in range(seeds):
        others = np.random.default_rng(seed).permutation(errors)
        factors = {
            p: float(other / error)
            for p, error, other in zip(positions, errors, others, strict=True)
        }
        rows = [faster(row, factors.get(row.position, 1.0)) for row in table.rows]
        yield replace(table, rows=tuple(rows))


def quantile(values: Sequence[float | None], share: float) -> float:
    """A quantile where what was never found counts as infinite."""
    ordered = sorted(math.inf if value is None else value for value in values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


def summed_up(runs: pd.DataFrame) -> pd.DataFrame:
    """One row for each truth, sampler and number of workers."""
    rows = []
    for (truth, sampler, workers), own in runs.groupby(["truth", "sampler", "workers"], sort=False):
        trials = [None if pd.isna(v) else float(v) for v in own.trials]
        seconds = [None if pd.isna(v) else float(v) for v in own.seconds]
        rows.append(
            {
                "truth": truth,
                "sampler": sampler,
                "workers": workers,
                "found": own.seconds.notna().mean(),
                "seconds, median": quantile(seconds, 0.5),
                "seconds, p90": quantile(seconds, 0.9),
                "of it calibration": own.calibration_seconds.median(),
                "trials, median": quantile(trials, 0.5),
                "trials, p90": quantile(trials, 0.9),
                "infeasible": own.infeasible.sum() / own.measured.sum(),
                "repeats": own.repeats.sum() / (own.repeats.sum() + own.measured.sum()),
            }
        )
    return pd.DataFrame(rows)


def as_markdown(table: pd.DataFrame) -> str:
    """For README: seconds and trials whole, shares in percent."""
    shares = {"found", "infeasible", "repeats"}
    lines = ["| " + " | ".join(table.columns) + " |", "|" + " --- |" * len(table.columns)]
    for row in table.itertuples(index=False):
        cells = [
            f"{value:.0%}" if name in shares else _whole(value)
            for name, value in zip(table.columns, row, strict=True)
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _whole(value: object) -> str:
    if not isinstance(value, float | int):
        return str(value)
    return f"{value:.0f}" if math.isfinite(value) else "never"


def draw(runs: pd.DataFrame, path: Path) -> None:
    """Share of the searches that were near the best after so many seconds, one panel a truth."""
    truths_drawn = list(dict.fromkeys(runs.truth))
    figure, panels = plt.subplots(
        1, len(truths_drawn), figsize=(4.5 * len(truths_drawn), 3.6), sharey=True, squeeze=False
    )
    for panel, truth in zip(panels[0], truths_drawn, strict=True):
        of_truth = runs[runs.truth == truth]
        for (sampler, workers), own in of_truth.groupby(["sampler", "workers"], sort=False):
            seconds = np.sort(own.seconds.dropna())
            share = np.arange(1, len(seconds) + 1) / len(own)
            panel.step([0, *seconds], [0, *share], where="post", label=f"{sampler}, {workers}")
        panel.set(title=truth, xlabel="seconds of measuring")
    panels[0][0].set_ylabel(f"share of searches within {NEAR:.0%} of the best")
    panels[0][-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Run every search, write and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--landscapes", type=int, default=30, help="synthetic truths")
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=list(SAMPLERS))
    parser.add_argument("--workers", type=int, nargs="+", default=[1], help="each by itself")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    parser.add_argument("tables", nargs="*", type=Path, help="the shipped ones without any")
    given = parser.parse_args()
    tables = given.tables or sorted(shipped("tables").glob("*.csv"))
    tasks = [
        (truth, variants[seed % len(variants)], sampler, workers, seed)
        for truth, variants in truths(tables, given.landscapes)
        for sampler in given.samplers
        for workers in given.workers
        for seed in range(given.seeds)
    ]
    runs = side_by_side(searched, tasks, given.out / "search_runs.csv")
    table = summed_up(runs)
    table.to_csv(given.out / "search.csv", index=False)
    (given.out / "search.md").write_text(as_markdown(table))
    draw(runs, given.out / "search.svg")
    print(as_markdown(table))


if __name__ == "__main__":
    main()
