"""What light loads tell, recovered from simulated ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.level import LoadLevel
from optimizer.search.recorded.evaluator import RecordedEvaluator
from optimizer.simulator.network import Network
from optimizer.simulator.prediction import predict_level
from optimizer.simulator.service_curve import DEFAULT_VARIATION, ServiceVariation
from optimizer.simulator.service_model import ServiceModel
from optimizer.simulator.service_observation import observe
from optimizer.simulator.service_variation import LightLoadTimes, fit_variation, light_load
from optimizer.simulator.stream_estimate import network_of_model
from tests.unit.service_truths import affine_truth, levels_of, saturated
from tests.unit.studies import SETTING, small_space
from tests.unit.tables import WORKLOAD, recorded_table

SPACE = small_space()
[STREAM] = WORKLOAD.streams
CONFIGS = [config for config, _, _ in levels_of(SPACE)]


def service() -> ServiceModel:
    truth = affine_truth(0)
    return ServiceModel(tuple(o for c in CONFIGS for o in observe(c, saturated(c, truth))))


def served(known: ServiceModel, config: ServingConfig) -> Network:
    [model] = config.models
    return network_of_model(model, known.curve(model, config.server), STREAM)


def loads(truth: ServiceVariation, seed: int) -> Iterator[LightLoadTimes]:
    """What half of its saturation shows of every third configuration."""
    true_service = replace(service(), variation=truth)
    for config in CONFIGS[::3]:
        [model] = config.models
        curve = true_service.curve(model, config.server)
        rate = 500 * len(curve.busy_factors) * model.max_batch_size / curve.execution_ms[-1]
        found = predict_level(served(true_service, config), STREAM.arrivals, rate, seed, 8_000)
        yield LightLoadTimes(
            config,
            WORKLOAD,
            rate,
            (((50.0, found.latency_ms(50.0)), (95.0, found.latency_ms(95.0))),),
            ((model.name, found.bottleneck.mean_batch),),
        )


@pytest.mark.parametrize(("spread", "wake"), [(0.1, 0.0), (0.2, 1.5), (0.65, 0.0), (1.0, 0.0)])
def test_spread_and_wake_are_recovered_from_light_loads(spread: float, wake: float) -> None:
    runtimes = sorted({config.models[0].artifact.runtime for config in CONFIGS})
    truth = ServiceVariation(spread, tuple((runtime, wake) for runtime in runtimes))
    found = fit_variation(service(), list(loads(truth, seed=5)))
    assert found.spread == pytest.approx(spread, rel=0.5)
    assert {runtime for runtime, _ in found.wake_ms} <= {*runtimes}
    for _, own in found.wake_ms:
        assert own == pytest.approx(wake, abs=0.8)


def test_without_light_loads_nothing_new_is_known() -> None:
    assert fit_variation(service(), []) == DEFAULT_VARIATION


def test_one_disturbed_level_does_not_decide() -> None:
    quiet = list(loads(ServiceVariation(0.8), seed=5))
    worst = quiet[0]
    [own] = worst.latencies_ms
    disturbed = replace(worst, latencies_ms=(tuple((p, 30 * ms) for p, ms in own),))
    found = fit_variation(service(), [disturbed, *quiet[1:]])
    assert found.spread == pytest.approx(0.8, rel=0.3)


def recorded_light(config: ServingConfig) -> LoadLevel:
    evaluator = RecordedEvaluator(recorded_table(SPACE), np.random.default_rng(0))
    measurement = evaluator.calibrate(config, SETTING.slot).measurement
    assert measurement is not None
    return measurement.levels[1]


def test_a_level_tells_rate_latencies_and_batches_of_each_stream() -> None:
    config, recorded = CONFIGS[0], recorded_light(CONFIGS[0])
    load = light_load(config, recorded, WORKLOAD)
    assert load is not None
    assert load.config == config
    assert load.per_second == recorded.streams[0].offered_per_second
    [own] = load.latencies_ms
    assert dict(own)[95.0] == 3 * dict(own)[50.0]
    [model] = config.models
    assert load.mean_batches == ((model.name, model.max_batch_size),)


def test_nothing_is_told_of_a_model_that_executed_nothing() -> None:
    idle = replace(recorded_light(CONFIGS[0]), server=())
    assert light_load(CONFIGS[0], idle, WORKLOAD) is None
