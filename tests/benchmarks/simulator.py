"""The simulator against the recorded tables: `python -m tests.benchmarks.simulator`.

On each table the service times are learnt from the points that a study would calibrate with, and
everything else is predicted: what a point saturates at, and its 95th percentile at half and at
four fifths of its capacity: of the predicted one, as whoever asks the simulator has no other, and
at the rate that was offered, where an error of the capacity weighs many times as much in a queue.
A second block learns from all points: what is left is the batcher's share of the error. A pipeline
has too many statistics for that: the regression takes the cube of their number. The first line
tells how far single measurements of one configuration are from each other's mean: a perfect
prediction is as far from them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from optimizer.commands.replay import recorded_context
from optimizer.configuration.model_space import Position
from optimizer.files.shipped import shipped
from optimizer.load.curve import SHARES_OF_CAPACITY
from optimizer.search.level_runner import concurrency
from optimizer.search.recorded.evaluator import RecordedEvaluator
from optimizer.search.recorded.table import RecordedTable
from optimizer.search.recorded.table_file import read_table
from optimizer.search.surrogate.learnt_forecast import calibrated
from optimizer.simulator.calibration import LIGHT_RUNS, calibration_points
from optimizer.simulator.network import Network
from optimizer.simulator.prediction import Loads, predict_capacity, predict_saturation
from optimizer.simulator.served_network import offered_streams, served_network
from optimizer.simulator.service_model import ServiceModel
from optimizer.study.trial_records import measured_record

Floats = NDArray[np.float64]

_LEVEL_SECONDS = 10.0
"""Duration of the recorded levels at shares of the capacity."""

_SAMPLES = 8


def learnt(table: RecordedTable, points: Sequence[Position], lights: int) -> ServiceModel:
    """What a study would learn from these points; from so many after the first a light load too."""
    space, setting = table.space.search_space, recorded_context(table.space)
    evaluator = RecordedEvaluator(table, np.random.default_rng(0))
    records = []
    for n, point in enumerate(points):
        measure = evaluator.calibrate if 1 <= n <= lights else evaluator.saturate
        config = space.config(point)
        records.append(measured_record(n, config, measure(config, setting.slot), setting))
    return calibrated(records, table.space.workload)


def network_at(table: RecordedTable, service: ServiceModel, position: Position) -> Network:
    """A point as the simulation sees it."""
    config = table.space.search_space.config(position)
    return served_network(config, service, table.space.workload)


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
        network = network_at(table, service, position)
        mix = [stream.share for stream in offered_streams(table.space.workload)]
        found = predict_saturation(network, outstanding, seed=0, mix=mix)
        errors.append(found.per_second / float(np.mean(rates)) - 1)
    return np.array(errors)


def latency_errors(
    table: RecordedTable, service: ServiceModel, known: Sequence[Position]
) -> Iterator[tuple[str, float]]:
    """Predicted over measured 95th percentile less 1, by load.

    Two more errors tell causes apart: with execution times by the saturation that the server showed
    just before the level, and of simulated levels that are as short as the measured ones.
    """
    offered = offered_streams(table.space.workload)
    for row in table.rows:
        if not row.latencies or row.position in known or row.disturbed:
            continue
        network = network_at(table, service, row.position)
        loads = Loads(network, offered, 20_000, seed=0)
        outstanding = concurrency(table.space.search_space.config(row.position))
        most = predict_capacity(network, offered, outstanding, seed=0).per_second
        assert row.saturation is not None
        mix = [stream.share for stream in offered]
        saturated = predict_saturation(network, outstanding, seed=0, mix=mix).per_second
        as_fast = network.slower(saturated / row.saturation.per_second)
        for share, measured in zip(SHARES_OF_CAPACITY, row.latencies, strict=True):
            at, rate = f"p95 at {share:.0%} of capacity", share * most
            expected_ms = p95_ms(loads, rate)
            yield at, expected_ms / measured.p95_ms - 1
            yield (
                f"p95 at the rate of {share:.0%}",
                p95_ms(loads, measured.per_second) / measured.p95_ms - 1,
            )
            own = Loads(as_fast, offered, 20_000, seed=0)
            yield (
                f"p95 at the rate of {share:.0%}, times by the saturation of the same minute",
                p95_ms(own, measured.per_second) / measured.p95_ms - 1,
            )
            for seed in range(1, 1 + _SAMPLES):
                short = Loads(network, offered, round(rate * _LEVEL_SECONDS), seed)
                yield f"{at}, of simulated levels as short", expected_ms / p95_ms(short, rate) - 1


def p95_ms(loads: Loads, per_second: float) -> float:
    """Return the 95th percentile of the latency at a rate, the largest of all streams."""
    return max(level.latency_ms(95.0) for level in loads.levels(per_second, (95.0,)))


def measured_again(table: RecordedTable) -> Floats:
    """Return the deviation of each repeated measurement from the true rate, relative to that.

    The mean of a configuration's measurements is nearer to each of them than the true rate is, by
    the root of (n - 1) / n.
    """
    deviations = []
    for rows in table.by_position.values():
        saturated = (row.saturation for row in rows if not row.disturbed)
        rates = np.array([level.per_second for level in saturated if level is not None])
        if len(rates) > 1:
            nearer = np.sqrt((len(rates) - 1) / len(rates))
            deviations.append((rates / rates.mean() - 1) / nearer)
    return np.concatenate(deviations)


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
    blocks: list[tuple[str, list[Position], int, list[Position]]] = [
        (
            f"learnt from {len(calibration)} runs, judged on the others",
            calibration,
            LIGHT_RUNS,
            calibration,
        )
    ]
    if len(space.models) == 1:
        blocks.append((f"learnt from all {len(every)} points", every, len(every), []))
    print(f"{path.stem}:")
    shown("saturated throughput, measured again", measured_again(table))
    for what, points, lights, known in blocks:
        service = learnt(table, points, lights)
        print(f"{path.stem}, {what}:")
        shown("saturated throughput", throughput_errors(table, service, known))
        errors = list(latency_errors(table, service, known))
        for name in sorted({load for load, _ in errors}):
            shown(name, np.array([error for load, error in errors if load == name]))


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", type=Path, help="the shipped ones without any")
    tables = parser.parse_args().tables or sorted(shipped("tables").glob("*.csv"))
    for path in tables:
        compare(path)


if __name__ == "__main__":
    main()
