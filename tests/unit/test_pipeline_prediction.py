"""Predictions of pipelines: a recorded one, and made-up truths with contention and noise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from optimizer.commands.replay import open_table
from optimizer.search.level_runner import concurrency
from optimizer.search.recorded.table import RecordedTable
from optimizer.simulator.calibration import LIGHT_RUNS, calibration_points
from optimizer.simulator.network_forecast import NetworkForecaster
from optimizer.simulator.prediction import predict_capacity
from optimizer.simulator.served_network import offered_streams, served_network
from tests.benchmarks.simulator import latency_errors, learnt, throughput_errors
from tests.benchmarks.synthetic_pipelines import pipeline_space, table_of

SPACE = {
    "tokenizer.instance_count": [1, 2],
    "classifier.batching": [False, True],
    "classifier.max_batch_size": [8, 32],
}


@pytest.mark.slow
def test_a_recorded_pipeline_is_predicted_from_its_calibration() -> None:
    """Throughput within 10 %, and p95 at half of the capacity within 15 %, medians."""
    table = open_table("text_classification")
    calibration = calibration_points(table.space.search_space)
    service = learnt(table, calibration, LIGHT_RUNS)
    assert np.median(np.abs(throughput_errors(table, service, calibration))) < 0.10
    errors = latency_errors(table, service, calibration)
    latency = [error for load, error in errors if load == "p95 at 50% of capacity"]
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
