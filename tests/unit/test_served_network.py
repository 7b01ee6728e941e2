"""Networks of configurations: calls by their graph, and what levels tell of several models."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from optimizer.configuration.model_graph import ComposedModel, ModelGraph, Step, in_sequence
from optimizer.configuration.serving_config import (
    ArtifactSpec,
    Batching,
    InstanceGroup,
    ModelServing,
    ServingConfig,
)
from optimizer.measurement.level import BatchPoint, LevelKind, LoadLevel, ServerSplit
from optimizer.measurement.resource_use import MachineUse
from optimizer.simulator.network import NO_CONTENTION, Network, NetworkCall
from optimizer.simulator.overlap import overlaps_of
from optimizer.simulator.served_network import network_of, offered_streams
from optimizer.simulator.service_curve import ServiceCurve
from optimizer.simulator.service_model import ServiceModel
from optimizer.simulator.service_observation import observe
from optimizer.workload.request_sizes import LengthDistribution
from optimizer.workload.streams import LatencyLimit, Payloads, Stream, Workload
from tests.unit.studies import level

PAYLOADS = Payloads((), LengthDistribution((32,), (1.0,)))


def stream(target: str, demand: float = 100.0) -> Stream:
    return Stream(target, target, "poisson", PAYLOADS, LatencyLimit(95.0, 50.0), demand)


def model(name: str, size: int = 1, instances: int = 1) -> ModelServing:
    artifact = ArtifactSpec(name, "repository", "python", "as_deployed")
    batching = Batching() if size > 1 else None
    groups = (InstanceGroup(count=instances),)
    return ModelServing(name, artifact, size, batching, groups)


def network(config: ServingConfig, *targets: str) -> Network:
    curves = {
        each.name: ServiceCurve((1, 8), (2.0, 8.0), busy_factors=(1.0,) * each.instance_count)
        for each in config.models
    }
    workload = Workload(tuple(stream(target) for target in targets))
    return network_of(config, curves, NO_CONTENTION, workload)


def pipeline(*composed: ComposedModel, names: str = "abc") -> ServingConfig:
    models = [*(model(name, 8) for name in names), *(model(each.name) for each in composed)]
    return ServingConfig(tuple(models), ModelGraph(composed))


def test_an_ensemble_has_no_batcher_and_its_steps_follow_each_other() -> None:
    config = pipeline(ComposedModel("top", "ensemble", in_sequence("abc")))
    served = network(config, "top")
    assert [batcher.name for batcher in served.batchers] == ["a", "b", "c"]
    [source] = served.sources
    assert source.calls == (NetworkCall(0), NetworkCall(1, (0,)), NetworkCall(2, (1,)))


def test_branches_and_ensembles_within_ensembles_are_joined() -> None:
    inner = ComposedModel("inner", "ensemble", (Step("a"), Step("b")))
    outer = ComposedModel("top", "ensemble", (Step("inner"), Step("c", (0,)), Step("a", (0, 1))))
    [source] = network(pipeline(inner, outer), "top").sources
    assert source.calls == (
        NetworkCall(0),
        NetworkCall(1),
        NetworkCall(2, (0, 1)),
        NetworkCall(0, (0, 1, 2)),
    )


def test_a_bls_model_has_instances_and_calls() -> None:
    steps = (Step("a"), Step("b", (0,), calls=2.5))
    served = network(pipeline(ComposedModel("top", "bls", steps)), "top")
    assert served.batchers[3].name == "top"
    assert served.batchers[3].calls == (NetworkCall(0), NetworkCall(1, (0,), 2.5))
    assert served.sources[0].calls == (NetworkCall(3),)
    assert served.visits == ((1.0, 2.5, 0.0, 1.0),)


def test_streams_have_sources_and_shares() -> None:
    config = ServingConfig((model("a"), model("b")))
    served = network(config, "a", "b")
    assert [source.calls for source in served.sources] == [(NetworkCall(0),), (NetworkCall(1),)]
    workload = Workload((stream("a", 30.0), stream("b", 10.0)))
    assert [each.share for each in offered_streams(workload)] == [0.75, 0.25]


ENSEMBLE = ComposedModel("top", "ensemble", in_sequence("ab"))
CONFIG = ServingConfig((model("a"), model("b", 8), model("top")), ModelGraph((ENSEMBLE,)))
TOP = ServerSplit("top", 800, 0.0, 0.0, 49.0, 0.0, (BatchPoint(1, 800, 49.0),), ensemble=True)
USE = MachineUse(2.0, 4, None, None, None)


def saturated(config: ServingConfig, *splits: ServerSplit) -> LoadLevel:
    """A level of 400 requests/s."""
    shown = level(400 / 1000, kind="saturation")
    streams = tuple(replace(each, achieved_per_second=400.0) for each in shown.streams)
    return replace(shown, streams=streams, server=splits, replied_ms=40.0, machine=USE)


def test_a_step_that_fills_its_instances_shows_their_rate_and_others_what_they_compute() -> None:
    """A batch of 8 is executed 50 times a second, so that it takes 20 ms; it computes for 18."""
    first = ServerSplit("a", 800, 0.1, 0.05, 0.5, 0.05, (BatchPoint(1, 800, 0.5),), step=True)
    second = ServerSplit("b", 800, 30.0, 0.1, 18.0, 0.1, (BatchPoint(8, 100, 18.0),), step=True)
    one, two = observe(CONFIG, saturated(CONFIG, first, second, TOP))
    assert (one.layout.model, two.layout.model) == ("a", "b")
    assert one.times[0].occupancy_ms == pytest.approx(0.6)
    assert two.times[0].occupancy_ms == pytest.approx(20.0)
    assert [other.name for other in one.others] == ["b"]
    assert one.others[0].mean_busy == pytest.approx(50 * 18.2e-3)
    assert two.others[0].mean_busy == pytest.approx(400 * 0.6e-3)


def test_the_own_time_of_a_bls_model_is_without_that_of_its_steps() -> None:
    graph = ModelGraph((ComposedModel("top", "bls", in_sequence("ab")),))
    config = ServingConfig((model("a"), model("b"), model("top", 1, 4)), graph)
    first = ServerSplit("a", 800, 0.2, 0.0, 0.8, 0.0, (BatchPoint(1, 800, 0.8),), step=True)
    second = ServerSplit("b", 800, 1.0, 0.0, 2.0, 0.0, (BatchPoint(1, 800, 2.0),), step=True)
    top = ServerSplit("top", 800, 9.0, 0.0, 4.5, 0.0, (BatchPoint(1, 800, 4.5),))
    *_, own = observe(config, saturated(config, first, second, top))
    assert own.layout.model == "top"
    assert own.times[0].occupancy_ms == pytest.approx(0.5)


def test_what_executes_at_the_same_time_is_simulated() -> None:
    """Steps of one request never run at once: where one client waits, there is no overlap."""
    first = ServerSplit("a", 800, 0.1, 0.0, 1.0, 0.0, (BatchPoint(1, 800, 1.0),), step=True)
    second = ServerSplit("b", 800, 0.1, 0.0, 1.5, 0.0, (BatchPoint(1, 800, 1.5),), step=True)
    shown = saturated(CONFIG, first, second, TOP)
    service = ServiceModel(observe(CONFIG, shown))
    workload = Workload((stream("top"),))
    alone = overlaps_of(CONFIG, shown, service, workload, concurrency=1)
    assert alone["a"]["b"] == pytest.approx(0.0, abs=1e-6)
    many = overlaps_of(CONFIG, shown, service, workload, concurrency=20)
    assert many["a"]["b"] > 0.5


def test_contention_is_told_from_own_times_by_a_light_load() -> None:
    """The same step takes a third longer while the other one is always busy."""

    def shown(kind: LevelKind, a_ms: float, per_second: float) -> LoadLevel:
        first = ServerSplit("a", 800, 0.1, 0.0, a_ms, 0.0, (BatchPoint(1, 800, a_ms),), step=True)
        second = ServerSplit("b", 800, 9.0, 0.0, 1.0, 0.0, (BatchPoint(1, 800, 1.0),), step=True)
        own = replace(saturated(CONFIG, first, second, TOP), kind=kind)
        streams = tuple(replace(x, achieved_per_second=per_second) for x in own.streams)
        return replace(own, streams=streams)

    runs = [shown("saturation", 2.0, 990.0), shown("open_loop", 1.6, 300.0)]
    service = ServiceModel(4 * observe(CONFIG, *runs))
    contention = service.contention(["a", "b"])
    assert contention.pairs[0][1] == pytest.approx(math.log(2.0 / 1.6) / 0.69, abs=0.08)
    assert service.curve(CONFIG.models[0]).execution_ms[0] == pytest.approx(1.5, rel=0.06)
