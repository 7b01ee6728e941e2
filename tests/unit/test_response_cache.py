"""The response cache: its entries, the share of hits that is expected, and its recommendation."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import model_config_pb2, service_pb2

from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import (
    ArtifactSpec,
    ModelServing,
    ServerOptions,
    ServingConfig,
    describe,
)
from optimizer.errors import ConfigMismatch
from optimizer.export.bundle.commented_config import commented, origins_in, with_hits
from optimizer.load.request_sequence import Popular, Recorded
from optimizer.measurement.cache_use import CacheUse, cache_uses
from optimizer.measurement.level import BatchPoint, LoadLevel, ServerSplit
from optimizer.search.response_cache import (
    held_numbers,
    with_expected_hits,
    without_cache,
    without_repeats,
)
from optimizer.simulator.response_cache import (
    CachedOutput,
    CachedTraffic,
    SteadyCache,
    entry_bytes,
    eviction_seconds,
    last_different,
    steady_cache,
)
from optimizer.simulator.service_observation import observe
from optimizer.space_file.parameter_schema import ParametersSection
from optimizer.study.decision import decide
from optimizer.study.searched_space import check_workload
from optimizer.triton.deployed_config import deployed_values, overlay
from optimizer.triton.model_config import differences, model_config
from optimizer.triton.server_options import option_flags
from optimizer.triton.statistics import server_split
from optimizer.workload.arrivals import ArrivalTrace
from optimizer.workload.repeats import ZipfRepeats
from optimizer.workload.streams import LatencyLimit, Payloads, Stream, Workload
from tests.unit.studies import DEMAND, HARDWARE, PRICE, level, ok, record_of
from tests.unit.test_model_config import OUTPUT, PAYLOADS, TEMPLATE
from tests.unit.test_space_file import changed, load, mistakes

MIB = 2**20
STREAM = Stream("bert", "bert", "poisson", Payloads(()), LatencyLimit(95, 100), 100.0)


def steady(streams: Sequence[Stream], sizes: Mapping[str, int], size_bytes: int) -> SteadyCache:
    """The steady state where the response of every stream's model is cached."""
    artifact = ArtifactSpec("m", "repository", "python", "as_deployed")
    models = tuple(ModelServing(stream.target, artifact, cache=True) for stream in streams)
    config = ServingConfig(models, server=ServerOptions(cache_bytes=size_bytes))
    return steady_cache(config, streams, sizes)


@pytest.mark.parametrize(
    ("outputs", "entries"),
    [
        ([CachedOutput("OUT", "UINT8", 2, 20)], 10921),
        ([CachedOutput("OUT", "UINT8", 2, 52)], 8190),
        ([CachedOutput("OUT", "UINT8", 2, 1008)], 978),
        ([CachedOutput("OUT", "UINT8", 2, 1010)], 963),
        ([CachedOutput("OUTPUT_LONG_NAME_XX", "UINT8", 2, 1012)], 949),
        ([CachedOutput("OUT", "UINT8", 4, 1004)], 963),
        ([CachedOutput("OUT", "UINT8", 2, 1004), CachedOutput("OUB", "UINT8", 2, 100)], 851),
        ([CachedOutput("OUT", "BYTES", 2, 1100)], 897),
    ],
)
def test_entries_are_as_large_as_those_of_triton(outputs: list[CachedOutput], entries: int) -> None:
    """By the entries of a full cache of 1 MiB, which a real server reported."""
    assert MIB // entry_bytes(outputs) == pytest.approx(entries, abs=2)


def simulated_hits(numbers: Iterable[int], entries: int, warm: int) -> float:
    held: OrderedDict[int, None] = OrderedDict()
    hits = asked = 0
    for position, number in enumerate(numbers):
        hit = number in held
        hits += hit and position >= warm
        asked += position >= warm
        held[number] = None
        held.move_to_end(number)
        if len(held) > entries:
            held.popitem(last=False)
    return hits / asked


@pytest.mark.parametrize(("exponent", "entries"), [(1.1, 100), (0.8, 500), (0.0, 1000)])
def test_the_expected_share_of_hits_is_that_of_a_simulated_cache(
    exponent: float, entries: int
) -> None:
    repeats = ZipfRepeats(exponent, 2000)
    stream = replace(STREAM, repeats=repeats)
    expected = steady([stream], {"bert": 1000}, entries * 1000)
    numbers = islice(Popular(repeats, seed=1).numbers(), 60_000)
    hits = simulated_hits(numbers, entries, warm=20_000)
    assert expected.hit_rates["bert"] == pytest.approx(hits, abs=0.01)
    assert expected.entries["bert"] == pytest.approx(entries, abs=1)


def test_a_cache_that_holds_everything_answers_everything() -> None:
    stream = replace(STREAM, repeats=ZipfRepeats(1.1, 50))
    expected = steady([stream], {"bert": 1000}, 51_000)
    assert expected.hit_rates["bert"] == pytest.approx(1.0)
    assert expected.entries == {"bert": 50}
    assert held_numbers(stream, 50, np.random.default_rng(0)).tolist() == [*range(50)][::-1]


def test_unique_requests_are_never_answered_and_take_the_room_of_others() -> None:
    alone = replace(STREAM, repeats=ZipfRepeats(1.0, 1000))
    unique = replace(STREAM, name="other", target="other")
    sizes = {"bert": 1000, "other": 1000}
    together = steady([alone, unique], sizes, 200_000)
    by_itself = steady([alone], {"bert": 1000}, 200_000)
    assert together.hit_rates["other"] == 0.0
    assert together.hit_rates["bert"] < by_itself.hit_rates["bert"] - 0.1
    assert sum(together.entries.values()) == pytest.approx(200, abs=2)
    assert held_numbers(unique, 100, np.random.default_rng(0)).tolist() == []


def test_the_time_to_eviction_is_infinite_where_nothing_is_evicted() -> None:
    traffic = CachedTraffic(10.0, np.array([0.5, 0.5]), 100)
    assert eviction_seconds([traffic], 1000) == np.inf
    assert eviction_seconds([traffic], 100) < np.inf


def test_keys_of_a_recording_are_replayed() -> None:
    rng = np.random.default_rng(2)
    drawn = rng.choice(300, size=3000, p=ZipfRepeats(1.0, 300).probabilities()).tolist()
    numbers = {key: n for n, key in enumerate(dict.fromkeys(drawn))}
    keys = tuple(numbers[key] for key in drawn)
    trace = ArrivalTrace("ab", tuple(map(float, range(3000))), 3000.0, keys)
    stream = replace(STREAM, arrivals=trace)
    expected = steady([stream], {"bert": 100}, 5000).hit_rates["bert"]
    again = simulated_hits(islice(Recorded(np.array(keys)).numbers(), 6000), 50, warm=3000)
    assert expected == pytest.approx(again, abs=1e-9)
    held = held_numbers(stream, 5, np.random.default_rng(0))
    assert held[-1] == next(k for k in reversed(keys) if keys.count(k) > 1)
    assert stream.population == 1 + max(keys)


def test_a_filled_cache_answers_as_many_at_once_as_later() -> None:
    stream = replace(STREAM, repeats=ZipfRepeats(0.9, 5000))
    held = held_numbers(stream, 300, np.random.default_rng(4))
    assert len(set(held.tolist())) == 300
    numbers = islice(Popular(ZipfRepeats(0.9, 5000), seed=3).numbers(), 2000)
    at_once = simulated_hits([*held.tolist(), *numbers], 300, warm=300)
    expected = steady([stream], {"bert": 1}, 300).hit_rates["bert"]
    assert at_once == pytest.approx(expected, abs=0.03)
    assert last_different([1, 2, 1, 3], 2).tolist() == [1, 3]


def space(**listed: object) -> SearchSpace:
    listed = {"runtime": ["openvino"], **listed}
    return SearchSpace(ParametersSection.model_validate(listed).to_values("bert"), HARDWARE)


def test_the_cache_and_its_size_are_parameters() -> None:
    both = space(response_cache=[False, True], response_cache_mib=[16, 64])
    configs = [both.config(both.at(row)) for row in range(len(both))]
    chosen = [(c.models[0].cache, c.server.cache_bytes) for c in configs]
    assert sorted(chosen, key=str) == [(False, None), (True, 16 * MIB), (True, 64 * MIB)]
    assert [both.position_of(config) for config in configs] == [both.at(row) for row in range(3)]
    cached = next(config for config in configs if config.server.cache_bytes == 16 * MIB)
    assert option_flags(cached.server) == [f"--cache-config=local,size={16 * MIB}"]
    assert describe(cached).endswith("response_cache, cache size 16 MiB")
    assert both.cache_bytes("bert") == 64 * MIB
    assert space().cache_bytes("bert") == 0
    assert both.config(both.baseline).server == ServerOptions()


def test_models_share_one_size() -> None:
    listed = {"runtime": ["openvino"], "response_cache": [False, True]}
    first = ParametersSection.model_validate({**listed, "response_cache_mib": [16, 64]})
    second = ParametersSection.model_validate({**listed, "response_cache_mib": [64]})
    both = SearchSpace((*first.to_values("a"), *second.to_values("b")), HARDWARE)
    configs = [both.config(both.at(row)) for row in range(len(both))]
    sizes = {(*(m.cache for m in c.models), c.server.cache_bytes) for c in configs}
    assert sizes == {
        (False, False, None), (True, False, 16 * MIB), (True, False, 64 * MIB),
        (False, True, 64 * MIB), (True, True, 64 * MIB),
    }  # fmt: skip
    assert all(both.position_of(config) is not None for config in configs)


def test_what_the_server_runs_is_compared() -> None:
    both = space(response_cache=[False, True])
    off, on = (both.config(both.at(row)).models[0] for row in range(2))
    messages = [model_config(model, PAYLOADS, [OUTPUT], TEMPLATE) for model in (off, on)]
    assert [message.response_cache.enable for message in messages] == [False, True]
    assert differences(messages[1], messages[0]) == [
        "response_cache.enable: requested True, the server runs False"
    ]
    assert differences(messages[0], messages[1]) == [
        "response_cache.enable: requested False, the server runs True"
    ]


@pytest.mark.parametrize("deployed", [False, True])
def test_a_deployed_model_keeps_its_cache_unless_another_value_is_chosen(deployed: bool) -> None:
    base = model_config_pb2.ModelConfig(name="m", max_batch_size=4)
    if deployed:
        base.response_cache.enable = True
    assert deployed_values(base)["response_cache"] is deployed
    model = replace(space().config(space().baseline).models[0], name="m", max_batch_size=4)
    assert overlay(base, replace(model, cache=deployed)).response_cache.enable is deployed
    assert overlay(base, replace(model, cache=not deployed)).response_cache.enable is not deployed


def split(hits: int, misses: int, expected: float | None = None) -> ServerSplit:
    executed = (BatchPoint(1, misses, 2.0),) if misses else ()
    return ServerSplit(
        model="bert",
        requests=hits + misses,
        queue_ms=1.0,
        compute_input_ms=0.0,
        compute_infer_ms=2.0,
        compute_output_ms=0.0,
        batches=executed,
        cache_hits=hits,
        cache_misses=misses,
        cache_ms=0.5,
        expected_hit_rate=expected,
    )


def test_hits_are_counted_from_the_servers_statistics() -> None:
    before, after = service_pb2.ModelStatistics(name="bert"), service_pb2.ModelStatistics()
    after.name = "bert"
    after.inference_stats.success.count = 10
    after.inference_stats.cache_hit.count, after.inference_stats.cache_hit.ns = 8, 4_000_000
    after.inference_stats.cache_miss.count, after.inference_stats.cache_miss.ns = 2, 6_000_000
    counted = server_split(before, after)
    assert (counted.cache_hits, counted.cache_misses, counted.hit_rate) == (8, 2, 0.8)
    assert counted.cache_ms == pytest.approx(1.0)
    assert counted.total_ms == pytest.approx(1.0)
    assert server_split(before, before).hit_rate is None


def test_levels_are_counted_together() -> None:
    levels = [replace(level(0.5), server=(split(30, 70, 0.5),)) for _ in range(2)]
    assert cache_uses(levels) == (CacheUse("bert", 200, 60, 0.5),)
    assert cache_uses([level(0.5)]) == ()


def saturated(server: ServerSplit) -> LoadLevel:
    return replace(level(1.0, kind="saturation"), server=(server,))


def test_service_times_are_not_learnt_where_the_cache_answers() -> None:
    both = space(response_cache=[False, True])
    config = both.config(both.at(1))
    assert observe(config, saturated(split(90, 10))) == ()
    assert len(observe(config, saturated(split(0, 100)))) == 1


def test_a_cache_that_answers_nothing_is_not_recommended_for_noise() -> None:
    both = space(response_cache=[False, True])
    off, on = (both.config(both.at(row)) for row in range(2))

    def best(hits: int) -> ServingConfig | None:
        own = ok(120.0)
        assert own.measurement is not None
        levels = tuple(replace(x, server=(split(hits, 50),)) for x in own.measurement.levels)
        cached = replace(own, measurement=replace(own.measurement, levels=levels))
        trials = [record_of(0, off, ok(100.0)), record_of(1, on, cached)]
        decided = decide(trials, [], PRICE, replace(DEMAND, requests_per_second=10_000.0)).best
        return decided.config if decided is not None else None

    assert best(0) == off
    assert best(50) == on


REPEATS = "traffic: {repeats: {zipf: 1.1, population: 10000}}\nprice:"
ONE_ID = (
    ("minimum: 0, maximum: 99", "shape: [1], minimum: 0, maximum: 99"),
    ("    lengths: {fixed: 32}\n", ""),
)
CACHED = ("parameters:\n", "parameters:\n  response_cache: [false, true]\n")


def test_a_space_file_says_how_requests_repeat(tmp_path: Path) -> None:
    [stream] = load(tmp_path, changed(("price:", REPEATS), CACHED)).workload.streams
    assert stream.repeats == ZipfRepeats(1.1, 10_000)
    assert stream.population == 10_000
    [plain] = load(tmp_path, changed(CACHED)).workload.streams
    assert plain.population is None
    rows = "".join(f"{n},{'ab'[n % 2]}\n" for n in range(4))
    (tmp_path / "t.csv").write_text("seconds,user\n" + rows)
    arrivals = "traffic: {arrivals: {trace: t.csv, keys: user}}\nprice:"
    [recorded] = load(tmp_path, changed(("price:", arrivals), CACHED)).workload.streams
    assert recorded.keys == (0, 1, 0, 1)
    assert "keys" in load(tmp_path, changed(("price:", arrivals))).content["traffic"]["arrivals"]


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (
            [*ONE_ID, CACHED],
            "traffic.repeats: must be given with response_cache: bert has only 100 different "
            "requests, which the cache could answer although the traffic is said not to repeat",
        ),
        (
            [*ONE_ID, ("price:", REPEATS)],
            "traffic.repeats.population: must be at most 100, the number of different requests to "
            "bert, got 10000",
        ),
        (
            [("price:", "traffic: {transport: {protocol: http, encoding: json}}\nprice:"), CACHED],
            "traffic.transport.encoding: must be binary with response_cache, traffic.repeats or "
            "keys, where each request has its own bytes, got json",
        ),
        (
            [("price:", "traffic: {transport: {shared_memory: true}}\nprice:"), CACHED],
            "traffic.transport.shared_memory: must be false with response_cache, traffic.repeats "
            "or keys, where each request has its own bytes, got true",
        ),
    ],
)  # fmt: skip
def test_traffic_that_cannot_be_as_it_says_is_refused(
    tmp_path: Path, edits: list[tuple[str, str]], message: str
) -> None:
    assert [each.partition(": ")[2] if each.startswith("line") else each
            for each in mistakes(tmp_path, changed(*edits))] == [message]  # fmt: skip


def test_keys_of_a_recording_and_a_law_are_not_given_together(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("seconds,user\n1,a\n2,b\n")
    both = "traffic: {arrivals: {trace: t.csv, keys: user}, repeats: {zipf: 1, population: 9}}"
    [mistake] = mistakes(tmp_path, changed(("price:", f"{both}\nprice:")))
    assert "traffic.repeats: must be left out: the keys of the recorded trace tell" in mistake
    missing = "traffic: {arrivals: {trace: t.csv, keys: users}}\nprice:"
    [mistake] = mistakes(tmp_path, changed(("price:", missing)))
    assert "must have a column 'users' in its first line, got ['seconds', 'user']" in mistake


def test_a_remote_server_keeps_the_cache_that_it_has(tmp_path: Path) -> None:
    remote = "server: {launcher: remote, grpc: 'a:1', http: 'a:2', metrics: 'a:3', repository: .}"
    [mistake] = mistakes(tmp_path, changed(("price:", f"{remote}\nprice:"), CACHED))
    assert "response_cache: must be False with launcher remote" in mistake


def test_a_server_that_caches_nothing_fails_the_level() -> None:
    both = space(response_cache=[False, True])
    off, on = (both.config(both.at(row)) for row in range(2))
    expected = SteadyCache({"bert": 0.5}, {}, {"bert": 64})
    shown = with_expected_hits(split(1, 1), on, expected)
    assert (shown.expected_hit_rate, shown.entry_bytes) == (0.5, 64)
    uncached = replace(split(0, 0), requests=5)
    assert with_expected_hits(uncached, off, expected) == uncached
    with pytest.raises(ConfigMismatch, match="bert: response_cache is on, and the server caches"):
        with_expected_hits(uncached, on, expected)


def test_an_exported_configuration_says_how_much_the_cache_answered() -> None:
    both = space(response_cache=[False, True])
    on = both.config(both.at(1))
    own = ok(100.0).measurement
    assert own is not None
    levels = tuple(replace(each, server=(split(3, 1, 0.7),)) for each in own.levels)
    origins = with_hits(origins_in(both), replace(own, levels=levels))
    text = commented(
        model_config(on.models[0], PAYLOADS, [OUTPUT], TEMPLATE), on.models[0], origins
    )
    assert (
        "# parameter response_cache: searched among False, True\n"
        "# measured: it answered 75.0% of the requests, 70.0% expected\n"
        "response_cache {"
    ) in text


def test_streams_of_a_damaged_study_are_refused() -> None:
    wrong = replace(STREAM, payloads=PAYLOADS, repeats=ZipfRepeats(1.0, 0))
    with pytest.raises(ValueError, match=r"repeats\.population must be at least 1"):
        check_workload(Workload((wrong,)), ["bert"])


def test_transports_are_compared_on_requests_that_are_executed() -> None:
    both = space(response_cache=[False, True])
    off, on = (both.config(both.at(row)) for row in range(2))
    assert without_cache(on) == off
    trace = ArrivalTrace("ab", (0.0, 1.0), 2.0, (0, 0))
    repeating = (replace(STREAM, arrivals=trace), replace(STREAM, repeats=ZipfRepeats(1.0, 9)))
    plain = without_repeats(Workload(repeating))
    assert [stream.population for stream in plain.streams] == [None, None]
    assert plain.streams[1] == STREAM
