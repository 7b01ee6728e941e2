"""Compare transports on one configuration: protocols, encodings, shared memory, client batches.

All of them are measured on the same loaded models, in rounds of one level each, so that a machine
that changes meanwhile changes all alike. Every second round goes backwards.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

from optimizer.configuration.serving_config import ServingConfig
from optimizer.errors import ServerFailure, TrialFailure
from optimizer.load.capacity import RunLevel
from optimizer.load.level_plan import ClosedLoop, LevelPlan, OpenLoop
from optimizer.load.levels import refuse_if_all_failed
from optimizer.measurement.level import LoadLevel
from optimizer.measurement.level_checks import longest_lag_ms
from optimizer.measurement.transport_costs import (
    RefusedTransport,
    SentAs,
    TransportComparison,
    TransportCost,
)
from optimizer.search.cold_start import largest_request
from optimizer.search.evaluator import LiveEvaluator
from optimizer.search.level_runner import concurrency
from optimizer.search.response_cache import without_cache, without_repeats
from optimizer.triton.session import ServedConfiguration, files_of
from optimizer.workload.streams import Workload
from optimizer.workload.transport import Transport

_TRANSPORTS = (
    Transport("http", "json"),
    Transport("http", "binary"),
    Transport("grpc", "binary"),
    Transport("grpc", "binary", shared_memory=True),
)
_CLIENT_BATCH = 8
"""Inferences of a larger request, if the models take so many."""

_ROUNDS = 2
_LIGHT, _MODERATE = 0.1, 0.5
"""Common rates, as shares of the most that the slowest transport serves."""

_LIGHT_REQUESTS = 20
"""Requests of a level at the light rate, at least, unless that is the moderate rate."""

_WARMUP_SHARE = 0.2
_SHORTEST_SECONDS, _LONGEST_SECONDS = 0.3, 5.0
_BETWEEN_SECONDS = 0.2
"""Time of a level and of what comes before and after it."""

_OWNER = (
    "; the server's owner must start it on this machine, with --allow-client-shm=true from Triton "
    "2.68 on"
)


def compare_transports(
    evaluator: LiveEvaluator, config: ServingConfig, load_factor: float, seconds: float
) -> TransportComparison:
    """Measure every transport on a configuration within about `seconds`.

    Args:
        load_factor: certified load of the study's own transport.

    Raises:
        TrialFailure: the server is stopped.
    """
    session = evaluator.session
    plain = without_cache(config)
    memory = replace(plain, server=replace(plain.server, client_shared_memory=True))
    try:
        session.retire(wait=True)
        served = session.serve(memory, files_of(config, evaluator.files))
        with ExitStack() as stack:
            comparison = _Comparison(evaluator, plain, load_factor, seconds)
            comparison.open(served, stack)
            result = comparison.measure()
        session.retire()
    except TrialFailure as error:
        raise session.failure(error) from error
    return replace(result, config=config)


class _Comparison:
    """The transports of one configuration that is being served."""

    def __init__(
        self, evaluator: LiveEvaluator, config: ServingConfig, load_factor: float, seconds: float
    ) -> None:
        self._evaluator = evaluator
        # Every transport sends requests that are executed.
        self._workload = without_repeats(evaluator.workload)
        self._config = config
        self._load_factor = load_factor
        self._seconds = seconds
        self._workloads: dict[SentAs, Workload] = {}
        self._runs: dict[SentAs, RunLevel] = {}
        self._refused: dict[SentAs, str] = {}

    def open(self, served: ServedConfiguration, stack: ExitStack) -> None:
        """Serialise the requests of every transport; `stack` keeps them valid."""
        for sent_as in _variants(self._workload, self._config):
            workload = _sent_as(self._workload, self._config, sent_as)
            self._workloads[sent_as] = workload
            # The first, which is the study's own, warms up the server and its caches for all.
            levels, others = self._evaluator.levels, bool(self._runs)
            own = workload == self._evaluator.workload and not others
            levels = levels if own else levels.for_workload(workload)
            try:
                run = stack.enter_context(levels.on(served, self._config, cold=others))
                self._runs[sent_as] = run
            except UnicodeDecodeError:
                self._refused[sent_as] = "JSON holds text, and its inputs are other bytes"
            except ServerFailure as error:
                if not sent_as.transport.shared_memory:
                    raise
                owner = _OWNER if served.server.pid is None else ""
                self._refused[sent_as] = f"{error}{owner}"

    def measure(self) -> TransportComparison:
        levels = len(self._runs) * 3 * _ROUNDS
        affordable = self._seconds / levels - _BETWEEN_SECONDS
        seconds = min(_LONGEST_SECONDS, max(_SHORTEST_SECONDS, affordable))
        saturated = self._rounds(lambda sent_as: self._saturation(sent_as, seconds), first=True)
        certified = self._load_factor * _inferences(self._workload)
        served = [
            statistics.fmean(_throughputs(levels, self._workloads[each]))
            for each, levels in saturated.items()
        ]
        least = min(certified, *served)
        moderate = _MODERATE * least
        light = min(moderate, max(_LIGHT * least, self._least_rate(seconds)))
        at_light = self._rounds(lambda _: self._offered(light, seconds))
        at_moderate = self._rounds(lambda _: self._offered(moderate, seconds))
        costs = tuple(
            self._cost(each, saturated[each], at_light[each], at_moderate[each])
            for each in self._runs
        )
        refused = tuple(RefusedTransport(*each) for each in self._refused.items())
        longest_ms = longest_lag_ms(self._workload.shortest_limit_ms)
        return TransportComparison(
            self._config, costs, refused, light, moderate, seconds, _ROUNDS, longest_ms
        )

    def _rounds(
        self, plan: Callable[[SentAs], LevelPlan], *, first: bool = False
    ) -> Mapping[SentAs, Sequence[LoadLevel]]:
        """Run a level of every transport in each round.

        Args:
            first: whether a transport of which every request fails is left out from now on.
        """
        levels: defaultdict[SentAs, list[LoadLevel]] = defaultdict(list)
        for number in range(_ROUNDS):
            for sent_as in list(self._runs)[:: -1 if number % 2 else 1]:
                level = self._runs[sent_as](plan(sent_as))
                try:
                    refuse_if_all_failed(level)
                except TrialFailure as error:
                    own = sent_as.transport == self._workload.transport
                    if own or not first:
                        raise
                    self._refused[sent_as] = str(error)
                    del self._runs[sent_as]
                levels[sent_as].append(level)
        return {sent_as: levels[sent_as] for sent_as in self._runs}

    def _saturation(self, sent_as: SentAs, seconds: float) -> LevelPlan:
        own = self._workload.streams[0].batch_size
        outstanding = max(8, math.ceil(concurrency(self._config) * own / sent_as.batch_size))
        timeout = self._evaluator.protocols.search.saturation_timeout_seconds
        return _plan(ClosedLoop(outstanding), seconds, timeout)

    def _offered(self, inferences_per_second: float, seconds: float) -> LevelPlan:
        load = OpenLoop(inferences_per_second / _inferences(self._workload))
        return _plan(load, seconds, self._evaluator.protocols.search.check_timeout_seconds)

    def _least_rate(self, seconds: float) -> float:
        """Return inferences/s that make enough requests for a percentile, however large."""
        largest = max(sent_as.batch_size for sent_as in self._runs)
        return _LIGHT_REQUESTS * largest / seconds

    def _cost(
        self,
        sent_as: SentAs,
        saturated: Sequence[LoadLevel],
        light: Sequence[LoadLevel],
        moderate: Sequence[LoadLevel],
    ) -> TransportCost:
        workload = self._workloads[sent_as]
        inferences = sum(_received(level, workload) for level in moderate)
        client = sum(level.client.cpu_seconds for level in moderate)
        use = [level.machine.server_cpu_seconds for level in moderate if level.machine is not None]
        server = [seconds for seconds in use if seconds is not None]
        known = len(server) == len(moderate)
        return TransportCost(
            sent_as=sent_as,
            throughputs_per_second=_throughputs(saturated, workload),
            light_p50_ms=_latency_ms(light, 50),
            light_p95_ms=_latency_ms(light, 95),
            moderate_p50_ms=_latency_ms(moderate, 50),
            moderate_p95_ms=_latency_ms(moderate, 95),
            client_cpu_ms=client / inferences * 1e3,
            server_cpu_ms=sum(server) / inferences * 1e3 if known else None,
            lag_ms=max(level.client.lag_ms for level in (*light, *moderate)),
        )


def _plan(load: ClosedLoop | OpenLoop, seconds: float, timeout_seconds: float) -> LevelPlan:
    warmup = _WARMUP_SHARE * seconds
    return LevelPlan(load, warmup, seconds - warmup, timeout_seconds)


def _variants(workload: Workload, config: ServingConfig) -> Iterator[SentAs]:
    """Yield the study's own way to send requests, and then the others."""
    own = SentAs(workload.transport, workload.streams[0].batch_size)
    others = [replace(own, transport=transport) for transport in _TRANSPORTS]
    largest = max(largest_request(stream, config) for stream in workload.streams)
    sizes = {1, min(_CLIENT_BATCH, largest)}
    batches = [replace(own, batch_size=size) for size in sorted(sizes)]
    yield from dict.fromkeys([own, *others, *batches])


def _sent_as(workload: Workload, config: ServingConfig, sent_as: SentAs) -> Workload:
    """Return a workload of the same inferences, sent in another way."""
    streams = []
    for stream in workload.streams:
        size = stream.batch_size
        if sent_as.batch_size != workload.streams[0].batch_size:
            size = min(sent_as.batch_size, largest_request(stream, config))
        demand = stream.demand_per_second * stream.batch_size / size
        streams.append(replace(stream, batch_size=size, demand_per_second=demand))
    return replace(workload, streams=tuple(streams), transport=sent_as.transport)


def _inferences(workload: Workload) -> float:
    """Return the inferences/s of the whole demand."""
    return sum(stream.demand_per_second * stream.batch_size for stream in workload.streams)


def _throughputs(levels: Sequence[LoadLevel], workload: Workload) -> tuple[float, ...]:
    """Return the inferences/s that were answered in each level."""
    return tuple(
        sum(
            own.achieved_per_second * stream.batch_size
            for own, stream in zip(level.streams, workload.streams, strict=True)
        )
        for level in levels
    )


def _latency_ms(levels: Sequence[LoadLevel], percentile: float) -> float:
    return statistics.fmean(level.latency_ms(percentile) for level in levels)


def _received(level: LoadLevel, workload: Workload) -> int:
    """Return the inferences that the server got from clients, those of the warm-up included."""
    sizes = {stream.target: stream.batch_size for stream in workload.streams}
    return sum(
        split.requests * sizes[split.model] for split in level.server if split.model in sizes
    )
