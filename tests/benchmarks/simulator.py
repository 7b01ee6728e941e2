"""The simulator against the recorded tables: `python -m tests.benchmarks.simulator`.

On each table the service times are learnt from the points that a study would calibrate with, and
everything else is predicted: what a point saturates at, and its 95th percentile at half and at
four fifths of its measured capacity, at the rates that were offered then. A second block learns
from all points, as a study does in the end: what is left is the batcher's share of the error.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from optimizer.model_space import Position
from optimizer.search.guidance.learnt_forecast import calibrated
from optimizer.search.measured_record import measured_record
from optimizer.search.recorded.evaluator import RecordedEvaluator
from optimizer.search.recorded.table import RecordedRow, RecordedTable
from optimizer.search.recorded.table_file import read_table
from optimizer.search.served_levels import concurrency
from optimizer.shipped import shipped
from optimizer.simulator.calibration import calibration_points
from optimizer.simulator.prediction import Serving, level, saturation
from optimizer.simulator.service_model import ServiceModel
from optimizer.simulator.stream_simulation import serving_of
from optimizer.wiring.replaying import recorded_setting

Floats = NDArray[np.float64]


def learnt(table: RecordedTable, points: Sequence[Position]) -> ServiceModel:
    """What a study would learn by calibrating with these points."""
    space, setting = table.space.search_space, recorded_setting(table.space)
    evaluator = RecordedEvaluator(table, np.random.default_rng(0))
    configs = [space.config(point) for point in points]
    records = [
        measured_record(n, config, evaluator.calibrate(config, setting.slot), setting)
        for n, config in enumerate(configs)
    ]
    return calibrated(records, table.space.workload)


def serving(table: RecordedTable, service: ServiceModel, row: RecordedRow) -> Serving:
    """A row's point as the simulation sees it; tables of one model with one stream."""
    config = table.space.search_space.config(row.position)
    [model], [stream] = config.models, table.space.workload.streams
    return serving_of(model, service.curve(model, config.server), stream)


def throughput_errors(
    table: RecordedTable, service: ServiceModel, known: Sequence[Position]
) -> Floats:
    """Predicted over measured saturation less 1, of each point that is not `known`."""
    errors = []
    for position, rows in table.by_position.items():
        rates = [row.saturation.per_second for row in rows if row.saturation is not None]
        if position in known or not rates:
            continue
        outstanding = concurrency(table.space.search_space.config(position))
        found = saturation(serving(table, service, rows[0]), outstanding, seed=0)
        errors.append(found.per_second / float(np.mean(rates)) - 1)
    return np.array(errors)


def latency_errors(
    table: RecordedTable, service: ServiceModel, known: Sequence[Position], at: int
) -> Floats:
    """Predicted over measured 95th percentile less 1 at one of the loads that were measured."""
    [stream] = table.space.workload.streams
    errors = []
    for row in table.rows:
        if row.latencies and row.position not in known and not row.disturbed:
            measured = row.latencies[at]
            way = serving(table, service, row)
            found = level(way, stream.arrivals, measured.per_second, seed=0, requests=20_000)
            errors.append(found.latency_ms(95.0) / measured.p95_ms - 1)
    return np.array(errors)


def shown(name: str, errors: Floats) -> None:
    """Median and 90th percentile of the size of the errors, and which way they go."""
    size = np.abs(errors)
    print(
        f"  {name}: median {np.median(size):.1%}, p90 {np.quantile(size, 0.9):.1%}, "
        f"mean {errors.mean():+.1%} ({len(errors)} points)"
    )


def compare(path: Path) -> None:
    """Print how near the predictions are on one table."""
    table = read_table(path)
    space = table.space.search_space
    calibration = calibration_points(space)
    every = [space.at(row) for row in range(len(space))]
    for what, points, known in (
        (f"learnt from {len(calibration)} saturated runs, judged on the others", calibration, None),
        (f"learnt from all {len(every)} points", every, ()),
    ):
        unjudged = points if known is None else known
        service = learnt(table, points)
        print(f"{path.stem}, {what}:")
        shown("saturated throughput", throughput_errors(table, service, unjudged))
        shown("p95 at 50 % of capacity", latency_errors(table, service, unjudged, 0))
        shown("p95 at 80 % of capacity", latency_errors(table, service, unjudged, 1))


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", type=Path, help="the shipped ones without any")
    tables = parser.parse_args().tables or sorted(shipped("tables").glob("*.csv"))
    for path in tables:
        compare(path)


if __name__ == "__main__":
    main()
