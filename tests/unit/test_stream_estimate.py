"""What one model served in some way is expected to serve of a stream."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from optimizer.configuration.serving_config import Batching, InstanceGroup, ModelServing
from optimizer.simulator.batcher import ONE_SHAPE
from optimizer.simulator.forecast import ModelForecaster
from optimizer.simulator.service_curve import ServiceCurve
from optimizer.simulator.stream_estimate import (
    closed_form_estimate,
    network_of_model,
    simulated_estimate,
)
from optimizer.workload.request_sizes import LengthDistribution
from optimizer.workload.streams import LatencyLimit, Payloads, TensorSpec
from tests.unit.test_forecast import CALIBRATION, SPACE, STREAM, WORKLOAD, after, outstanding

SERVED = SPACE.config(SPACE.at(0)).models[0]
AFFINE = ServiceCurve((1, 2, 4, 8, 16), tuple(2.0 + n for n in (1, 2, 4, 8, 16)))


def batched(instances: int = 1) -> ModelServing:
    group = InstanceGroup("KIND_CPU", instances)
    return replace(SERVED, max_batch_size=16, batching=Batching(), groups=(group,))


def test_saturation_executes_the_largest_batch() -> None:
    found = simulated_estimate(batched(), AFFINE, STREAM, 32, seed=0)
    expected = closed_form_estimate(AFFINE, 16, 1, 80.0)
    assert found.saturation_per_second == pytest.approx(expected.saturation_per_second, rel=0.02)
    assert 0.5 < found.capacity_per_second / found.saturation_per_second < 1


def test_a_limit_below_a_single_execution_leaves_no_capacity() -> None:
    tight = replace(STREAM, limit=LatencyLimit(95.0, 2.0))
    found = simulated_estimate(batched(), AFFINE, tight, 32, seed=0)
    assert found.capacity_per_second == 0
    assert found.floor_log_excess > math.log(3.0 / 2.0) - 0.01


def test_only_as_many_instances_execute_as_the_curve_has() -> None:
    curve = replace(AFFINE, busy_factors=(1.0, 1.0))
    two, four = (simulated_estimate(batched(n), curve, STREAM, 64, seed=0) for n in (2, 4))
    assert two == four


def test_requests_have_the_shapes_that_padding_leaves() -> None:
    tokens = TensorSpec("input_ids", "INT64", (None,), 0, 9)
    payloads = Payloads((tokens,), LengthDistribution((16, 32, 64), (1.0, 1.0, 2.0)))
    stream = replace(STREAM, payloads=payloads)
    assert network_of_model(SERVED, AFFINE, stream).sources[0].shapes == ONE_SHAPE
    bucketed = network_of_model(replace(SERVED, padding=(32, 64)), AFFINE, stream).sources[0].shapes
    assert bucketed.shares == pytest.approx((0.5, 0.5))
    assert bucketed.factors == pytest.approx((32 / 48, 64 / 48))


def test_a_space_is_forecast_by_simulation() -> None:
    service = after(*CALIBRATION)
    made = ModelForecaster(SPACE, WORKLOAD, outstanding, partial(simulated_estimate, seed=0))
    forecast = made.forecast(service)
    other = ModelForecaster(SPACE, WORKLOAD, outstanding, partial(simulated_estimate, seed=0))
    again = other.forecast(service)
    np.testing.assert_array_equal(forecast.capacity, again.capacity)
    assert (forecast.capacity <= forecast.saturation).all()
    for row in range(len(SPACE)):
        (model,) = SPACE.config(SPACE.at(row)).models
        expected = closed_form_estimate(service.curve(model), model.max_batch_size, 1, 80.0)
        saturation = forecast.saturation[row] * STREAM.demand_per_second
        assert saturation == pytest.approx(expected.saturation_per_second, rel=0.1)
