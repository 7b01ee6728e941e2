"""Two models that share a machine: their interference is measured at one mix of demands."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from optimizer.configuration.serving_config import (
    ArtifactSpec,
    Batching,
    InstanceGroup,
    ModelServing,
    ServingConfig,
)
from optimizer.measurement.estimates import Percentile
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.level import LevelKind, LoadLevel, Measurement
from optimizer.measurement.resource_use import MachineUse
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.level_runner import concurrency
from optimizer.search.surrogate.learnt_forecast import calibrated
from optimizer.simulator.calibration import parts_alone
from optimizer.simulator.network import NO_CONTENTION, Contention, Network
from optimizer.simulator.network_simulation import network_closed_loop, network_open_loop
from optimizer.simulator.prediction import Loads, predict_capacity
from optimizer.simulator.served_network import network_of, offered_streams, served_network
from optimizer.simulator.service_curve import ServiceCurve
from optimizer.workload.request_sizes import LengthDistribution
from optimizer.workload.streams import LatencyLimit, Payloads, Stream, Workload
from tests.benchmarks.synthetic_pipelines import split_of
from tests.unit.studies import level, record_of

REQUESTS = 4_000
CONTENTION = Contention(((0.0, math.log(1.5)), (math.log(1.3), 0.0)))


def workload(ranker: float, speech: float) -> Workload:
    payloads = Payloads((), LengthDistribution((32,), (1.0,)))
    limit = LatencyLimit(95.0, 60.0)
    demands = (("ranker", ranker), ("speech", speech))
    return Workload(tuple(Stream(n, n, "poisson", payloads, limit, d) for n, d in demands))


def config(rankers: int, speeches: int) -> ServingConfig:
    def model(name: str, size: int, instances: int) -> ModelServing:
        artifact = ArtifactSpec(name, "repository", "python", "as_deployed")
        batching = Batching() if size > 1 else None
        return ModelServing(name, artifact, size, batching, (InstanceGroup(count=instances),))

    return ServingConfig((model("ranker", 8, rankers), model("speech", 1, speeches)))


TIMES = {"ranker": ((1, 8), (3.0, 10.0)), "speech": ((1, 2), (6.0, 12.0))}


def truth(served: ServingConfig, demands: Workload, contention: Contention = CONTENTION) -> Network:
    """What really serves both models, or one of them."""
    curves = {
        model.name: ServiceCurve(*TIMES[model.name], 0.25, (1.0,) * model.instance_count)
        for model in served.models
    }
    return network_of(served, curves, contention if len(curves) > 1 else NO_CONTENTION, demands)


def measured(
    kind: LevelKind,
    served: ServingConfig,
    demands: Workload,
    per_second: float,
    contention: Contention,
) -> LoadLevel:
    """A level of the true network; at saturation the rate is what it is."""
    network = truth(served, demands, contention)
    shares = [stream.share for stream in offered_streams(demands)]
    rng = np.random.default_rng(1)
    draws = network.draw(rng.choice(len(shares), size=REQUESTS, p=shares), rng).with_mean_noise()
    if kind == "saturation":
        simulation = network_closed_loop(network, concurrency(served), draws)
    else:
        arrive_ms = np.sort(rng.random(REQUESTS)) * REQUESTS / per_second * 1e3
        simulation = network_open_loop(network, arrive_ms, draws)
    shown, rate = level(1.0, kind=kind), 1e3 * REQUESTS / simulation.done_ms.max()
    pairs = enumerate(zip(demands.streams, shares, strict=True))
    latencies = [simulation.latency_ms[simulation.source == n] for n in range(len(shares))]
    splits = zip(network.batchers, simulation.batchers, strict=True)
    return replace(
        shown,
        streams=tuple(
            replace(
                shown.streams[0],
                name=stream.name,
                achieved_per_second=share * rate,
                offered_per_second=share * rate,
                latencies=tuple(
                    Percentile(p, own, own, own, REQUESTS, REQUESTS)
                    for p in (50.0, 95.0)
                    for own in [float(np.percentile(latencies[n], p))]
                ),
            )
            for n, (stream, share) in pairs
        ),
        server=tuple(split_of(batcher.name, own, step=False) for batcher, own in splits),
        machine=MachineUse(2.0, 8, None, None, None),
    )


def calibration(
    demands: Workload, contention: Contention = CONTENTION, *, alone: bool
) -> list[TrialRecord]:
    """Three instance layouts at one mix of demands, and perhaps each model of the first alone."""
    whole = [config(1, 1), config(2, 2), config(1, 2)]
    parts = parts_alone(whole[0]) if alone else ()
    records = []
    for number, served in enumerate((*whole, *parts)):
        own = demands.to([model.name for model in served.models])
        saturated = measured("saturation", served, own, 0.0, contention)
        rate = 0.4 * saturated.achieved_per_second
        light = measured("open_loop", served, own, rate, contention)
        measurement = Measurement((saturated, light), 0.0, 0.0, None, own.demand_per_second, "")
        records.append(record_of(number, served, Evaluation("bounded", "", measurement, 0.0)))
    return records


def test_a_pair_is_predicted_at_another_mix_and_with_other_instances() -> None:
    service = calibrated(calibration(workload(50.0, 50.0), alone=True), workload(50.0, 50.0))
    contention = service.contention(["ranker", "speech"])
    assert contention.pairs[0][1] == pytest.approx(math.log(1.5), abs=0.2)
    assert contention.pairs[1][0] == pytest.approx(math.log(1.3), abs=0.2)
    others = ((workload(80.0, 20.0), config(2, 1)), (workload(90.0, 10.0), config(1, 1)))
    for demands, served in others:
        offered, outstanding = offered_streams(demands), concurrency(served)
        networks = (truth(served, demands), served_network(served, service, demands))
        true, predicted = (predict_capacity(x, offered, outstanding, 0) for x in networks)
        assert predicted.saturation.per_second == pytest.approx(
            true.saturation.per_second, rel=0.15
        )
        assert predicted.per_second == pytest.approx(true.per_second, rel=0.15)
        rate = 0.5 * true.per_second
        levels = (Loads(x, offered, 8_000, 0).levels(rate, (95.0,)) for x in networks)
        for own, other in zip(*levels, strict=True):
            assert other.latency_ms(95.0) == pytest.approx(own.latency_ms(95.0), rel=0.15)


def test_runs_of_a_model_alone_tell_its_own_times_from_what_the_other_does_to_it() -> None:
    """At nine requests of one to each of the other, the rarer one is seldom at rest."""
    strong, demands = Contention(((0.0, math.log(2.2)), (math.log(1.1), 0.0))), workload(90.0, 10.0)
    ranker, speech = config(1, 1).models

    def own_ms(*, alone: bool) -> tuple[float, float]:
        service = calibrated(calibration(demands, strong, alone=alone), demands)
        return service.curve(ranker).execution_ms[-1], service.curve(speech).execution_ms[0]

    assert own_ms(alone=True) == pytest.approx((10.0, 6.0), rel=0.05)
    assert own_ms(alone=False)[0] > 11.0
