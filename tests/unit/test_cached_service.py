"""Repeated requests that a response cache answers, against a simulation of each single entry."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from optimizer.configuration.serving_config import ServerOptions, ServingConfig
from optimizer.measurement.level import BatchPoint, LoadLevel, ServerSplit
from optimizer.simulator.batcher import Scheduler
from optimizer.simulator.cached_service import NO_HITS, CachedLevel, Hits, cached_level, hits_of
from optimizer.simulator.calibration import cached_point, calibration_points, executed_points
from optimizer.simulator.network import (
    Batcher,
    Network,
    NetworkCall,
    NetworkSource,
    one_batcher,
)
from optimizer.simulator.network_forecast import NetworkForecaster, forecaster_of
from optimizer.simulator.network_simulation import network_open_loop
from optimizer.simulator.prediction import Loads, OfferedStream, predict_capacity
from optimizer.simulator.response_cache import CachedTraffic, eviction_seconds, steady_cache
from optimizer.simulator.served_network import served_network
from optimizer.simulator.service_curve import ServiceCurve
from optimizer.simulator.service_model import ServiceModel
from optimizer.simulator.service_observation import observe
from optimizer.workload.repeats import ZipfRepeats
from optimizer.workload.streams import LatencyLimit, Workload
from tests.unit.service_truths import affine_truth, saturated
from tests.unit.studies import level
from tests.unit.test_response_cache import STREAM, space, split
from tests.unit.test_served_network import CONFIG

CURVE = ServiceCurve((1, 8), (4.0, 11.0))
SCHEDULER = Scheduler(8, (), 0, dynamic=True)
OUTSIDE_MS = 0.5


class LiteralServer:
    """One instance that takes up to eight waiting requests, behind a cache of so many entries.

    A response is in the cache from the end of its execution on, and the least recently used one
    leaves it.
    """

    def __init__(self, entries: int, arrive_ms: NDArray[np.float64], keys: list[int]) -> None:
        self.entries, self.held = entries, OrderedDict[int, None]()
        self.arrive_ms, self.keys = arrive_ms, keys
        self.latency_ms = np.zeros(len(keys))
        self.hits = 0
        self.waiting, self.batch, self.free_ms = list[int](), list[int](), 0.0

    def run(self) -> None:
        for n, key in enumerate(self.keys):
            self._serve_until(self.arrive_ms[n])
            if key in self.held:
                self.use(key)
                self.hits += 1
                continue
            self.waiting.append(n)
            if not self.batch:
                self._begin(self.arrive_ms[n])
        self._serve_until(math.inf)

    def _serve_until(self, now_ms: float) -> None:
        while self.batch and self.free_ms <= now_ms:
            for n in self.batch:
                self.latency_ms[n] = self.free_ms - self.arrive_ms[n]
                self.use(self.keys[n])
            self.batch = []
            if self.waiting:
                self._begin(self.free_ms)

    def _begin(self, now_ms: float) -> None:
        self.batch, self.waiting = self.waiting[:8], self.waiting[8:]
        took_ms = np.interp(len(self.batch), CURVE.batch_sizes, CURVE.execution_ms)
        self.free_ms = now_ms + float(took_ms)

    def use(self, key: int) -> None:
        self.held[key] = None
        self.held.move_to_end(key)
        if len(self.held) > self.entries:
            self.held.popitem(last=False)


def literal(
    repeats: ZipfRepeats, entries: int, per_second: float, requests: int = 100_000
) -> tuple[float, NDArray[np.float64]]:
    """Hit rate and latencies; as many requests before them have filled the cache."""
    rng = np.random.default_rng(3)
    keys = rng.choice(repeats.population, size=2 * requests, p=repeats.probabilities()).tolist()
    arrive_ms = np.cumsum(rng.exponential(1e3 / per_second, size=requests))
    server = LiteralServer(entries, arrive_ms, keys[requests:])
    for key in keys[:requests]:
        server.use(key)
    server.run()
    return server.hits / requests, server.latency_ms + OUTSIDE_MS


def hit_rate(repeats: ZipfRepeats, entries: int) -> float:
    traffic = CachedTraffic(1.0, repeats.probabilities(), 1)
    return traffic.hit_rate(eviction_seconds([traffic], entries))


def network(rate: float) -> Network:
    [batcher] = one_batcher(SCHEDULER, CURVE).batchers
    source = NetworkSource((NetworkCall(0),), hit_rate=rate)
    return Network((batcher,), (source,), outside_ms=OUTSIDE_MS)


OFFERED = (OfferedStream("poisson", LatencyLimit(95.0, 25.0)),)


@pytest.mark.parametrize(
    ("repeats", "entries", "share"),
    [
        (ZipfRepeats(1.1, 20_000), 2_000, 0.5),
        (ZipfRepeats(0.8, 20_000), 4_000, 0.5),
        (ZipfRepeats(0.8, 20_000), 4_000, 0.85),
        (ZipfRepeats(0.6, 5_000), 100, 0.7),
    ],
)
def test_latencies_are_those_of_a_cache_of_single_entries(
    repeats: ZipfRepeats, entries: int, share: float
) -> None:
    rate = hit_rate(repeats, entries)
    per_second = share * 8_000 / 11.0 / (1 - rate)
    hits, latencies_ms = literal(repeats, entries, per_second)
    assert hits == pytest.approx(rate, abs=0.02)
    percentiles = (50.0, 90.0, 95.0, 99.0)
    [predicted] = Loads(network(rate), OFFERED, 40_000, 0).levels(per_second, percentiles)
    for percentile in percentiles:
        measured = np.percentile(latencies_ms, percentile)
        assert predicted.latency_ms(percentile) == pytest.approx(measured, rel=0.1)


def test_a_capacity_holds_behind_a_cache_of_single_entries() -> None:
    repeats, entries = ZipfRepeats(0.9, 20_000), 3_000
    found = predict_capacity(network(hit_rate(repeats, entries)), OFFERED, 32, 0, 20_000)
    assert 0 < found.per_second < found.saturation.per_second
    for factor, met in ((0.93, True), (1.07, False)):
        _, latencies_ms = literal(repeats, entries, factor * found.per_second)
        assert (np.percentile(latencies_ms, 95) <= 25.0) is np.bool_(met)


def test_saturation_is_that_of_the_requests_that_are_executed() -> None:
    plain = predict_capacity(network(0.0), OFFERED, 32, 0)
    cached = predict_capacity(network(0.9), OFFERED, 32, 0)
    ratio = cached.saturation.per_second / plain.saturation.per_second
    assert ratio == pytest.approx(10, rel=0.1)
    slow = replace(network(0.9), most_per_second=2_000.0)
    limited = predict_capacity(slow, OFFERED, 32, 0)
    assert limited.saturation.per_second == 2_000
    assert limited.per_second <= 2_000


def test_a_hit_takes_its_lookup_and_passes_the_queue_by() -> None:
    always = replace(network(1.0), hit_ms=0.2)
    rng = np.random.default_rng(0)
    draws = always.draw(np.zeros(100, dtype=np.int64), rng)
    simulated = network_open_loop(always, np.zeros(100), draws)
    np.testing.assert_allclose(simulated.latency_ms, OUTSIDE_MS + 0.2)
    assert len(simulated.batchers[0].arrive_ms) == 0


def test_a_cached_step_is_executed_by_the_rest() -> None:
    batchers = tuple(Batcher(n, Scheduler(1), ServiceCurve((1,), (1.0,))) for n in "ab")
    calls = (NetworkCall(0, count=0.25), NetworkCall(1, (0,)))
    pipeline = Network(batchers, (NetworkSource(calls),))
    draws = pipeline.draw(np.zeros(4_000, dtype=np.int64), np.random.default_rng(0))
    simulated = network_open_loop(pipeline, np.arange(4_000) * 10.0, draws)
    assert len(simulated.batchers[0].arrive_ms) == pytest.approx(1_000, rel=0.1)
    assert len(simulated.batchers[1].arrive_ms) == 4_000


REPEATING = replace(STREAM, repeats=ZipfRepeats(0.9, 20_000))
WORKLOAD = Workload((REPEATING,))
BOTH = space(response_cache=[False, True], max_batch_size=[4, 8], batching=[True])
SHOWN = CachedLevel((("bert", 16_384),), 0.1, 5_000.0, limited_by_models=True)


def configs(cached: bool) -> list[int]:
    rows = range(len(BOTH))
    return [row for row in rows if BOTH.config(BOTH.at(row)).models[0].cache is cached]


def test_what_a_cache_answers_follows_from_its_size_and_the_traffic() -> None:
    on, off = (BOTH.config(BOTH.at(configs(cached)[0])) for cached in (True, False))
    hits = hits_of([SHOWN], on, WORKLOAD)
    expected = steady_cache(on, WORKLOAD.streams, {"bert": 16_384}).hit_rates["bert"]
    assert hits.of("bert") == expected
    assert 0.5 < expected < 0.9
    small = replace(SHOWN, entry_bytes=(("bert", 64),))
    assert hits_of([small], on, WORKLOAD).of("bert") == 0.999, "everything fits"
    assert (hits.lookup_ms, hits.most_per_second) == (0.1, float("inf"))
    assert hits_of([SHOWN], off, WORKLOAD) == NO_HITS
    assert hits_of([SHOWN], on, Workload((STREAM,))) == NO_HITS
    assert hits_of([], on, WORKLOAD) == NO_HITS
    slower = replace(SHOWN, per_second=3_000.0, limited_by_models=False)
    assert hits_of([SHOWN, slower], on, WORKLOAD).most_per_second == float("inf")
    faster = replace(SHOWN, per_second=9_000.0, limited_by_models=False)
    assert hits_of([SHOWN, faster], on, WORKLOAD).most_per_second == 9_000


def with_split(split: ServerSplit) -> LoadLevel:
    return replace(level(1.0, kind="saturation"), server=(split,))


def test_a_level_shows_the_size_of_responses_and_who_limited_it() -> None:
    config = BOTH.config(BOTH.at(configs(True)[0]))
    idle = (BatchPoint(1, 10, 0.01),)
    answered = replace(split(90, 10), entry_bytes=512, cache_ms=0.25, batches=idle)
    shown = cached_level(config, with_split(answered))
    assert shown is not None
    assert (shown.entry_bytes, shown.lookup_ms) == ((("bert", 512),), 0.25)
    assert not shown.limited_by_models
    busy = replace(answered, batches=(BatchPoint(1, 10_000, 10_000.0),))
    assert cached_level(config, with_split(busy)) == replace(shown, limited_by_models=True)
    assert cached_level(config, with_split(split(0, 100))) is None


def test_a_step_behind_a_cached_model_answers_nothing() -> None:
    streams = (replace(REPEATING, name="top", target="top"),)
    server = ServerOptions(cache_bytes=2**24)

    def served(*names: str) -> ServingConfig:
        models = tuple(replace(own, cache=own.name in names) for own in CONFIG.models)
        return replace(CONFIG, models=models, server=server)

    both = steady_cache(served("top", "a"), streams, {"top": 64, "a": 64})
    assert both.hit_rates == {"top": pytest.approx(1.0), "a": 0.0}
    alone = steady_cache(served("a"), streams, {"a": 64})
    assert alone.hit_rates == {"a": pytest.approx(1.0)}
    assert steady_cache(served("a"), streams, {}).hit_rates == {}


def test_one_run_with_the_largest_cache_is_part_of_the_calibration() -> None:
    sizes = space(response_cache=[True, False], response_cache_mib=[1, 64], batching=[True, False])
    point = cached_point(sizes, WORKLOAD, sizes.baseline)
    assert point is not None
    config = sizes.config(point)
    assert (config.models[0].cache, config.server.cache_bytes) == (True, 64 * 2**20)
    other = sizes.config(sizes.baseline).models[0]
    assert replace(config.models[0], cache=False) == replace(other, cache=False)
    assert cached_point(sizes, Workload((STREAM,)), sizes.baseline) is None


def test_service_times_are_calibrated_without_the_cache() -> None:
    sizes = space(response_cache=[False, True], instance_count=[1, 2], batching=[True, False])
    executed = executed_points(sizes, WORKLOAD)
    assert 0 < executed.sum() < len(sizes)
    points = calibration_points(sizes, executed=executed)
    assert len(points) == 4
    assert not any(sizes.config(point).models[0].cache for point in points)
    assert executed_points(sizes, Workload((STREAM,))).all()
    always = space(response_cache=[True], instance_count=[1, 2])
    assert executed_points(always, WORKLOAD).all()


def test_the_forecast_of_a_space_with_a_cache_is_that_of_its_networks() -> None:
    runs = [BOTH.config(BOTH.at(row)) for row in configs(False)]
    observations = tuple(
        each for config in runs for each in observe(config, saturated(config, affine_truth(0), 1.0))
    )
    service = ServiceModel(observations, cached_levels=(SHOWN,))
    forecaster = forecaster_of(BOTH, WORKLOAD, lambda _: 32, seed=0)
    assert isinstance(forecaster, NetworkForecaster)
    forecast = forecaster.forecast(service)
    rate = service.hits(BOTH.config(BOTH.at(configs(True)[0])), WORKLOAD).of("bert")
    off, on = (forecast.saturation[configs(cached)] for cached in (False, True))
    np.testing.assert_allclose(on, off / (1 - rate), rtol=0.15)
    assert forecaster.utilisations(service, 0) == {}
    cached = served_network(BOTH.config(BOTH.at(configs(True)[0])), service, WORKLOAD)
    assert cached.sources[0].hit_rate == rate
    assert Hits().of("bert") == 0.0
