"""Expectations of every point of a space."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ModelServing, ServingConfig
from optimizer.simulator.calibration import calibration_points
from optimizer.simulator.forecast import ModelForecaster
from optimizer.simulator.service_curve import ServiceCurve
from optimizer.simulator.service_model import ServiceModel
from optimizer.simulator.service_observation import ServiceObservation, observe
from optimizer.simulator.stream_estimate import StreamEstimate, closed_form_estimate
from optimizer.workload.request_sizes import LengthDistribution
from optimizer.workload.streams import LatencyLimit, Payloads, Stream, Workload
from tests.unit.service_truths import affine_truth, saturated
from tests.unit.studies import small_space

SPACE = small_space()
STREAM = Stream(
    "bert", "bert", "poisson", Payloads((), LengthDistribution((32,), (1.0,))),
    LatencyLimit(95.0, 80.0), demand_per_second=200.0,
)  # fmt: skip
WORKLOAD = Workload((STREAM,))


@dataclass
class CountingSimulator:
    """Answers in closed form, a tenth less; keeps what it was asked."""

    asked: list[tuple[ModelServing, ServiceCurve, int]] = field(default_factory=list)

    def __call__(
        self, model: ModelServing, curve: ServiceCurve, stream: Stream, outstanding: int
    ) -> StreamEstimate:
        self.asked.append((model, curve, outstanding))
        limit_ms = stream.limit.latency_ms
        estimate = closed_form_estimate(curve, model.max_batch_size, stream.batch_size, limit_ms)
        return estimate.times(0.9)


def after(*points: tuple[int, ...], pace: Callable[[int], float] = lambda _: 1.0) -> ServiceModel:
    """Fitted to saturated levels at these points of `SPACE`."""
    configs = [SPACE.config(point) for point in points]
    return ServiceModel(
        tuple(
            each
            for at, config in enumerate(configs)
            for each in observe(config, saturated(config, affine_truth(0), pace(at)))
        )
    )


def outstanding(config: ServingConfig) -> int:
    return sum(2 * m.max_batch_size * m.instance_count for m in config.models)


def forecaster_of(
    simulator: CountingSimulator, space: SearchSpace = SPACE, workload: Workload = WORKLOAD
) -> ModelForecaster:
    return ModelForecaster(space, workload, outstanding, simulator)


CALIBRATION = calibration_points(SPACE, 6)


def test_every_point_is_simulated_with_its_own_curve() -> None:
    simulator, service = CountingSimulator(), after(*CALIBRATION)
    forecast = forecaster_of(simulator).forecast(service)
    assert len(simulator.asked) == len(SPACE)
    for row in range(len(SPACE)):
        (model,) = SPACE.config(SPACE.at(row)).models
        curve = service.curve(model)
        expected = closed_form_estimate(curve, model.max_batch_size, 1, 80.0)
        saturation = forecast.saturation[row] * STREAM.demand_per_second
        assert saturation == pytest.approx(0.9 * expected.saturation_per_second)
        capacity = forecast.capacity[row] * STREAM.demand_per_second
        assert capacity == pytest.approx(0.9 * expected.capacity_per_second)
        assert forecast.floor_log_excess[row] == pytest.approx(expected.floor_log_excess)
        assert forecast.log_sd[row] == pytest.approx(curve.log_sd)
    asked = {(model.max_batch_size, model.instance_count, n) for model, _, n in simulator.asked}
    assert all(n == 2 * size * count for size, count, n in asked)


def test_one_point_alone_is_expected_to_be_what_it_is_among_all() -> None:
    service = after(SPACE.baseline)
    whole = ModelForecaster(SPACE, WORKLOAD, outstanding, CountingSimulator()).forecast(service)
    simulator = CountingSimulator()
    alone = ModelForecaster(SPACE, WORKLOAD, outstanding, simulator).of_point(service, 7)
    assert len(simulator.asked) == 1
    for name, values in vars(alone).items():
        assert values == pytest.approx(getattr(whole, name)[7:8]), name


def test_nothing_is_simulated_again_without_news() -> None:
    simulator, service = CountingSimulator(), after(*CALIBRATION)
    made = forecaster_of(simulator)
    first = made.forecast(service)
    assert made.forecast(after(*CALIBRATION)) is first
    assert len(simulator.asked) == len(SPACE)


def test_only_changed_curves_are_simulated_again() -> None:
    simulator = CountingSimulator()
    made = forecaster_of(simulator)
    first = made.forecast(after(*CALIBRATION))
    before = {model: curve for model, curve, _ in simulator.asked}
    simulator.asked.clear()
    # One artefact turns out to be slower in one layout than its other runs let expect.
    more = (*CALIBRATION, SPACE.at(30))
    news = after(*more, pace=lambda at: 1.3 if at == len(CALIBRATION) else 1.0)
    second = made.forecast(news)
    changed = {
        model
        for model in before
        if not np.allclose(
            np.log(news.curve(model).execution_ms),
            np.log(before[model].execution_ms),
            rtol=0,
            atol=0.02,
        )
    }
    again = {model for model, _, _ in simulator.asked}
    assert changed <= again < set(before)
    assert len(changed) > 0
    fresh = forecaster_of(CountingSimulator()).forecast(news)
    np.testing.assert_allclose(second.saturation, fresh.saturation, rtol=0.01)
    assert not np.allclose(first.saturation, second.saturation, rtol=0.02)


def test_a_larger_space_is_ranked_in_closed_form_and_its_best_are_simulated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = after(*CALIBRATION)
    whole = forecaster_of(CountingSimulator()).forecast(service)
    monkeypatch.setattr("optimizer.simulator.forecast.MOST_SIMULATED", 20)
    simulator = CountingSimulator()
    part = forecaster_of(simulator).forecast(service)
    assert len(simulator.asked) == 20
    best = np.argsort(-whole.capacity)[0]
    (model,) = SPACE.config(SPACE.at(int(best))).models
    assert model in [asked for asked, _, _ in simulator.asked]
    # The others keep the closed form, on the simulated ones' scale.
    np.testing.assert_allclose(part.saturation, whole.saturation)
    np.testing.assert_allclose(part.capacity, whole.capacity)


def test_what_misses_the_limit_at_the_floor_serves_nothing() -> None:
    tight = replace(STREAM, limit=LatencyLimit(95.0, 1.0))
    forecast = forecaster_of(CountingSimulator(), workload=Workload((tight,)))
    found = forecast.forecast(after(*CALIBRATION))
    assert (found.capacity == 0).all()
    assert (found.floor_log_excess > 0).all()
    assert (found.saturation > 0).all()


def test_streams_of_one_model_share_what_it_serves() -> None:
    service = after(*CALIBRATION)
    alone = forecaster_of(CountingSimulator()).forecast(service)
    other = replace(STREAM, name="tight", limit=LatencyLimit(95.0, 40.0), demand_per_second=600.0)
    both = forecaster_of(CountingSimulator(), workload=Workload((STREAM, other))).forecast(service)
    np.testing.assert_allclose(both.saturation, alone.saturation / 4)
    assert (both.capacity <= alone.capacity / 4 + 1e-12).all()
    np.testing.assert_allclose(both.floor_log_excess, alone.floor_log_excess + math.log(2))


def as_ranker(model: ModelServing) -> ModelServing:
    return replace(model, name="ranker", artifact=replace(model.artifact, model="ranker"))


def twice_as_slow(seen: ServiceObservation) -> ServiceObservation:
    """The same of the other model."""
    times = tuple(replace(time, occupancy_ms=2 * time.occupancy_ms) for time in seen.times)
    artifact = replace(seen.layout.artifact, model="ranker")
    layout = replace(seen.layout, model="ranker", artifact=artifact)
    return replace(seen, layout=layout, times=times)


def test_of_several_models_the_first_at_its_end_decides() -> None:
    parameters = (*SPACE.parameters, *(replace(p, model="ranker") for p in SPACE.parameters))
    space = SearchSpace(parameters, SPACE.hardware, SPACE.limits)
    service = after(*CALIBRATION)
    saturation = forecaster_of(CountingSimulator()).forecast(service).saturation
    alone = {SPACE.config(SPACE.at(row)).models[0]: x for row, x in enumerate(saturation)}
    both = ServiceModel((*service.observations, *map(twice_as_slow, service.observations)))
    streams = (STREAM, replace(STREAM, name="ranker", target="ranker"))
    forecast = forecaster_of(CountingSimulator(), space, Workload(streams)).forecast(both)
    configs = [space.config(space.at(row)) for row in range(len(space))]
    same = [row for row, c in enumerate(configs) if as_ranker(c.models[0]) == c.models[1]]
    assert len(same) > 10
    expected = [alone[configs[row].models[0]] / 2 for row in same]
    np.testing.assert_allclose(forecast.saturation[same], expected, rtol=1e-6)
