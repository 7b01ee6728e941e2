"""Predictions of pipelines against made-up truths with contention and noise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from optimizer.search.level_runner import concurrency
from optimizer.search.recorded.table import RecordedTable
from optimizer.simulator.calibration import LIGHT_RUNS, calibration_points
from optimizer.simulator.network_forecast import NetworkForecaster
from optimizer.simulator.prediction import Loads, predict_capacity
from optimizer.simulator.served_network import offered_streams, served_network
from tests.benchmarks.simulator import learnt
from tests.benchmarks.synthetic_pipelines import pipeline_space, table_of

SAMPLE = 14
SPACE = {
    "tokenizer.instance_count": [1, 2],
    "classifier.batching": [False, True],
    "classifier.max_batch_size": [8, 32],
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_pipeline_is_predicted_from_its_calibration(seed: int) -> None:
    """Throughput within 10 %, and p95 at half of the capacity within 15 %, medians."""
    space = pipeline_space()
    points, offered = space.search_space, offered_streams(space.workload)
    calibration = calibration_points(points)
    rng = np.random.default_rng(seed)
    others = [points.at(int(row)) for row in rng.choice(len(points), SAMPLE, replace=False)]
    table = table_of(space, seed, list(dict.fromkeys([*calibration, *others])), requests=4_000)
    service = learnt(table, calibration, LIGHT_RUNS)
    throughput, latency = [], []
    for position in {*others} - {*calibration}:
        config, rows = points.config(position), table.by_position[position]
        network = served_network(config, service, space.workload)
        found = predict_capacity(network, offered, concurrency(config), 0, 2_000)
        loads = Loads(network, offered, 4_000, seed=0)
        [level] = loads.levels(0.5 * found.per_second, (95.0,))
        for row in rows:
            assert row.saturation is not None
            throughput.append(found.saturation.per_second / row.saturation.per_second - 1)
            latency.append(level.latency_ms(95.0) / row.latencies[0].p95_ms - 1)
    assert np.median(np.abs(throughput)) < 0.10
    assert np.median(np.abs(latency)) < 0.15


@pytest.fixture(scope="module")
def small() -> RecordedTable:
    space = pipeline_space(SPACE)
    points = space.search_space
    return table_of(space, 0, [points.at(row) for row in range(len(points))])


def test_a_small_space_is_forecast_by_simulations(small: RecordedTable) -> None:
    space, workload = small.space.search_space, small.space.workload
    service = learnt(small, calibration_points(space), LIGHT_RUNS)
    forecaster = NetworkForecaster(space, workload, concurrency, seed=0)
    forecast = forecaster.forecast(service)
    assert forecaster.forecast(service) is forecast
    config = space.config(space.at(3))
    network, offered = served_network(config, service, workload), offered_streams(workload)
    found = predict_capacity(network, offered, concurrency(config), 0, 2000)
    demand = workload.demand_per_second
    assert forecast.saturation[3] * demand == pytest.approx(found.saturation.per_second)
    assert forecast.capacity[3] * demand == pytest.approx(found.per_second)
    assert forecast.floor_log_excess[3] == pytest.approx(found.floor_log_excess)
    alone = NetworkForecaster(space, workload, concurrency, seed=0).of_point(service, 3)
    assert alone.capacity[0] == pytest.approx(forecast.capacity[3])


def test_a_large_space_is_ranked_in_closed_form(
    small: RecordedTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    space, workload = small.space.search_space, small.space.workload
    service = learnt(small, calibration_points(space), LIGHT_RUNS)
    whole = NetworkForecaster(space, workload, concurrency, seed=0).forecast(service)
    monkeypatch.setattr("optimizer.simulator.network_forecast.MOST_NETWORKS", 2)
    part = NetworkForecaster(space, workload, concurrency, seed=0).forecast(service)
    np.testing.assert_allclose(part.saturation, whole.saturation, rtol=0.35)
    assert stats.spearmanr(part.capacity, whole.capacity).statistic > 0.8
