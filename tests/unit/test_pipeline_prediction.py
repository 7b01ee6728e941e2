"""Predictions of pipelines against made-up truths with contention and noise."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from optimizer.configuration.model_space import Position
from optimizer.search.level_runner import concurrency
from optimizer.search.recorded.table import RecordedTable
from optimizer.simulator.calibration import LIGHT_RUNS, calibration_points
from optimizer.simulator.network_forecast import NetworkForecaster
from optimizer.simulator.prediction import Loads, predict_capacity
from optimizer.simulator.served_network import offered_streams, served_network
from tests.benchmarks.simulator import latency_errors, learnt, throughput_errors
from tests.benchmarks.synthetic_pipelines import PipelineTruth, pipeline_space, table_of

SPACE = None
SAMPLE = 24


def sampled(seed: int) -> tuple[RecordedTable, list[Position]]:
    """A table of some points of a truth, and those of the calibration."""
    space = pipeline_space()
    points = space.search_space
    calibration = calibration_points(points)
    rng = np.random.default_rng(seed)
    others = [points.at(int(row)) for row in rng.choice(len(points), SAMPLE, replace=False)]
    return table_of(space, seed, list(dict.fromkeys([*calibration, *others]))), calibration


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_pipeline_is_predicted_from_its_calibration(seed: int) -> None:
    table, calibration = sampled(seed)
    service = learnt(table, calibration, LIGHT_RUNS)
    assert np.median(np.abs(throughput_errors(table, service, calibration))) < 0.10
    errors = dict.fromkeys(("p95 at 50% of capacity",), [0.0])
    half = [e for load, e in latency_errors(table, service, calibration) if load in errors]
    assert len(half) > SAMPLE
    assert np.median(np.abs(half)) < 0.17
