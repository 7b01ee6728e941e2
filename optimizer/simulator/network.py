"""Simulation of several batchers that a model graph joins, and that share a machine.

A request of a source passes through calls: of one model, of the steps of an ensemble, which has no
time of its own, or of a composed model with instances of its own (BLS). Of the latter, an execution
takes its own time and then makes the calls of its requests, one request after another, while its
instance is occupied. Every batcher follows the rules of `batcher`.

`Contention` says how much executions slow each other down. Their speed changes at the instant at
which another execution begins or ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from optimizer.simulator.batcher import (
    ONE_SHAPE,
    Draws,
    Scheduler,
    Shapes,
    Simulation,
    closed_loop,
    draw,
    open_loop,
    rows_of,
    rules_of,
    simulation_of,
    steps_of,
)
from optimizer.simulator.network_layout import (
    CALL,
    JOB,
    NODE,
    PROGRESS,
    REQUEST,
    RUN,
)
from optimizer.simulator.service_curve import ServiceCurve


@dataclass(frozen=True)
class NetworkCall:
    """A call of a batcher.

    Attributes:
        batcher: index in `Network.batchers`.
        after: indices of the calls, of the same source or composed model, that it waits for.
        count: how often it is made, one after another. Of a fraction, that share of the requests
            makes a further call.
    """

    batcher: int
    after: tuple[int, ...] = ()
    count: float = 1.0


@dataclass(frozen=True)
class Batcher:
    """A model with its queue and its instances.

    Attributes:
        calls: what each of its requests calls while it occupies an instance.
        cores: that an execution uses.
    """

    name: str
    scheduler: Scheduler
    curve: ServiceCurve
    calls: tuple[NetworkCall, ...] = ()
    cores: float = 0.0


@dataclass(frozen=True)
class NetworkSource:
    """Requests of one kind, and the calls that they go through."""

    calls: tuple[NetworkCall, ...]
    shapes: Shapes = ONE_SHAPE


@dataclass(frozen=True)
class Contention:
    """How much executions slow each other down.

    While n[b] instances execute the batch of another batcher b, an execution of a takes
    exp(sum of pairs[a][b] n[b]) times as long. Where all executions together use more than `cores`,
    everything slows down in proportion. The curve of a model already has what its own instances do
    to each other.
    """

    pairs: tuple[tuple[float, ...], ...] = ()
    cores: float = math.inf


NO_CONTENTION = Contention()


@dataclass(frozen=True)
class Network:
    """Batchers, the sources of their requests, and their contention.

    Attributes:
        outside_ms: time of a request between client and server.

    Raises:
        ValueError: where a call names a batcher that does not exist, or waits for itself.
    """

    batchers: tuple[Batcher, ...]
    sources: tuple[NetworkSource, ...]
    contention: Contention = NO_CONTENTION
    outside_ms: float = 0.0

    def __post_init__(self) -> None:
        """Check the calls."""
        for calls in self._programs:
            _check_calls(calls, len(self.batchers))
        if any(math.inf in row for row in self.visits):
            raise ValueError("a composed model calls itself")

    @property
    def _programs(self) -> list[tuple[NetworkCall, ...]]:
        composed = [batcher.calls for batcher in self.batchers if batcher.calls]
        return [*(source.calls for source in self.sources), *composed]

    @cached_property
    def visits(self) -> tuple[tuple[float, ...], ...]:
        """Mean number of calls of every batcher by a request of each source."""
        return self._visits(whole=False)

    def _visits(self, whole: bool) -> tuple[tuple[float, ...], ...]:
        """Return the mean number of calls, or the largest possible one."""
        result = []
        for source in self.sources:
            visits = np.zeros(len(self.batchers))
            fresh = _counts(source.calls, len(visits), whole)
            for _ in range(len(visits) + 1):
                visits += fresh
                calls = [_counts(batcher.calls, len(visits), whole) for batcher in self.batchers]
                fresh = np.array(calls).T @ fresh
            result.append(tuple(np.where(fresh > 0, math.inf, visits).tolist()))
        return tuple(result)

    def draw(self, source: NDArray[np.int64], rng: np.random.Generator) -> NetworkDraws:
        """Draw the random numbers of requests of these sources, shape [requests]."""
        requests = len(source)
        most = requests * np.array(self._visits(whole=True)).max(axis=0)
        noise = tuple(
            draw(int(n), batcher.curve.spread, ONE_SHAPE, rng).noise
            for n, batcher in zip(most, self.batchers, strict=True)
        )
        shape, factor = np.zeros(requests, dtype=np.int32), np.ones(requests)
        distinct = list(dict.fromkeys(each.shapes for each in self.sources))
        for n, each in enumerate(self.sources):
            own = source == n
            drawn = draw(int(own.sum()), 0.0, each.shapes, rng)
            first = sum(len(other.shares) for other in distinct[: distinct.index(each.shapes)])
            shape[own], factor[own] = first + drawn.shape, drawn.factors[drawn.shape]
        return NetworkDraws(source, shape, factor, noise, rng.random(requests))

    @property
    def single(self) -> bool:
        """Whether it is one batcher alone, each of whose requests is one of its source."""
        return (
            len(self.batchers) == len(self.sources) == 1
            and not self.batchers[0].calls
            and self.sources[0].calls == (NetworkCall(0),)
        )

    def slower(self, factor: float) -> Network:
        """Return the network with all execution times multiplied."""
        batchers = (replace(each, curve=each.curve.slower(factor)) for each in self.batchers)
        return replace(self, batchers=tuple(batchers))


def one_batcher(scheduler: Scheduler, curve: ServiceCurve, shapes: Shapes = ONE_SHAPE) -> Network:
    """Return the network of one model that serves one stream."""
    source = NetworkSource((NetworkCall(0),), shapes)
    return Network((Batcher("", scheduler, curve),), (source,), outside_ms=curve.outside_ms)


@dataclass(frozen=True)
class NetworkDraws:
    """Random numbers of a simulation, drawn beforehand so that several loads can share them.

    Attributes:
        source: source of each request, shape [requests], as the next two and the last.
        shape, factor: index of the request's shape, and its factor of execution times.
        noise: of each batcher, the time factor of each of its executions.
        chance: decides about further calls, from 0 to 1.
    """

    source: NDArray[np.int64]
    shape: NDArray[np.int32]
    factor: NDArray[np.float64]
    noise: tuple[NDArray[np.float64], ...]
    chance: NDArray[np.float64]

    def with_mean_noise(self) -> NetworkDraws:
        """Return the numbers with a mean noise of exactly 1."""
        return replace(self, noise=tuple(own / own.mean() for own in self.noise))


@dataclass(frozen=True)
class NetworkSimulation:
    """Every request of a simulation; times in ms since the start.

    Attributes:
        source: shape [requests], as the next three.
        arrive_ms: when the request reaches the server.
        done_ms: when it is answered.
        refused: whether a batcher refused it.
        batchers: requests and executions of each batcher.
    """

    source: NDArray[np.int64]
    arrive_ms: NDArray[np.float64]
    done_ms: NDArray[np.float64]
    refused: NDArray[np.bool_]
    batchers: tuple[Simulation, ...]
    outside_ms: float

    @property
    def latency_ms(self) -> NDArray[np.float64]:
        """Latency at the client of every request, refused ones included; shape [requests]."""
        return self.done_ms - self.arrive_ms + self.outside_ms


def network_open_loop(
    network: Network, arrive_ms: NDArray[np.float64], draws: NetworkDraws
) -> NetworkSimulation:
    """Simulate requests that arrive at given times, ascending, shape [requests].

    Raises:
        ValueError: when scheduler, curve and request size of a batcher do not fit together.
    """
    if network.single:
        [own] = network.batchers
        alone = open_loop(own.scheduler, own.curve, arrive_ms, _draws_of_one(draws))
        return _simulation_of_one(alone, network, draws)
    requests = _requests(draws)
    requests["arrive"] = arrive_ms
    return _simulate(network, requests, draws, arrivals=len(arrive_ms))


def network_closed_loop(
    network: Network, concurrency: int, draws: NetworkDraws
) -> NetworkSimulation:
    """Simulate clients that keep `concurrency` requests outstanding until all are sent.

    All clients begin at once, and each sends the next request of any source on a reply.

    Raises:
        ValueError: when scheduler, curve and request size of a batcher do not fit together.
    """
    if network.single:
        [own] = network.batchers
        alone = closed_loop(own.scheduler, own.curve, concurrency, _draws_of_one(draws))
        return _simulation_of_one(alone, network, draws)
    requests = _requests(draws)
    return _simulate(network, requests, draws, arrivals=min(concurrency, len(requests)))


def _draws_of_one(draws: NetworkDraws) -> Draws:
    factors = np.ones(int(draws.shape.max(initial=0)) + 1)
    factors[draws.shape] = draws.factor
    return Draws(draws.noise[0], draws.shape, factors)


def _simulation_of_one(
    alone: Simulation, network: Network, draws: NetworkDraws
) -> NetworkSimulation:
    times = (alone.arrive_ms, alone.done_ms, alone.refused)
    return NetworkSimulation(draws.source, *times, (alone,), network.outside_ms)


def _check_calls(calls: Sequence[NetworkCall], batchers: int) -> None:
    for n, call in enumerate(calls):
        if not 0 <= call.batcher < batchers:
            raise ValueError(f"call {n} names batcher {call.batcher}, there are {batchers}")
    done: set[int] = set()
    while ready := {n for n, call in enumerate(calls) if n not in done and done >= {*call.after}}:
        done |= ready
    if len(done) < len(calls):
        waiting = sorted({*range(len(calls))} - done)
        raise ValueError(f"calls {waiting} wait for each other, or for calls that do not exist")


def _counts(calls: Sequence[NetworkCall], batchers: int, whole: bool) -> NDArray[np.float64]:
    counts = np.zeros(batchers)
    for call in calls:
        counts[call.batcher] += math.ceil(call.count) if whole else call.count
    return counts


def _requests(draws: NetworkDraws) -> NDArray[np.void]:
    requests = np.zeros(len(draws.source), dtype=REQUEST)
    for name in ("source", "shape", "factor", "chance"):
        requests[name] = getattr(draws, name)
    return requests


def _simulate(
    network: Network, requests: NDArray[np.void], draws: NetworkDraws, arrivals: int
) -> NetworkSimulation:
    # numba takes a second to import: only what simulates pays for it.
    from optimizer.simulator.network_kernel import new_arrays, run

    batchers, contention = network.batchers, network.contention
    pairs = np.array(contention.pairs or np.zeros((len(batchers), len(batchers))))
    programs, waiting = _programs(network)
    steps = [steps_of(each.scheduler, each.curve) for each in batchers]
    rows = [
        rows_of(Draws(noise, np.zeros(len(noise), dtype=np.int32), np.ones(1)))
        for noise in draws.noise
    ]
    nodes = _nodes(network, [len(own) for own in steps], [len(own) for own in rows], len(requests))
    runs = len(requests) + sum(
        len(own) for own, batcher in zip(rows, batchers, strict=True) if batcher.calls
    )
    slows = bool(pairs.any()) or sum(n.cores * n.scheduler.instances for n in batchers) > (
        contention.cores
    )
    arrays = new_arrays(
        np.concatenate([rules_of(each.scheduler, each.curve) for each in batchers]),
        (network.outside_ms, arrivals, slows, contention.cores),
        steps=np.concatenate(steps),
        rows=np.concatenate(rows),
        nodes=nodes,
        pairs=pairs,
        programs=programs,
        waiting=waiting,
        runs=np.zeros(runs, dtype=RUN),
        progress=np.zeros((runs, programs.shape[1]), dtype=PROGRESS),
        jobs=np.zeros(sum(map(len, rows)), dtype=JOB),
        requests=requests,
    )
    run(arrays)
    return _simulation_of(network, requests, arrays.rows, nodes, arrays.states)


def _simulation_of(
    network: Network,
    requests: NDArray[np.void],
    rows: NDArray[np.void],
    nodes: NDArray[np.void],
    states: NDArray[np.void],
) -> NetworkSimulation:
    """Return what a run of the kernel has left in its arrays."""
    return NetworkSimulation(
        source=np.ascontiguousarray(requests["source"]),
        arrive_ms=np.ascontiguousarray(requests["arrive"]),
        done_ms=np.ascontiguousarray(requests["done"]),
        refused=np.ascontiguousarray(requests["refused"]),
        batchers=tuple(
            simulation_of(
                batcher.scheduler,
                rows[node["row"] : node["row"] + state["arrivals"]],
                rows[node["row"] : node["row"] + state["executions"]],
                outside_ms=0.0,
            )
            for batcher, node, state in zip(network.batchers, nodes, states, strict=True)
        ),
        outside_ms=network.outside_ms,
    )


def _programs(network: Network) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
    """Return the programs and which of their calls wait for which."""
    listed = network._programs
    most = max(map(len, listed))
    programs = np.zeros((len(listed), most), dtype=CALL)
    programs["node"] = -1
    waiting = np.zeros((len(listed), most, most), dtype=np.bool_)
    for p, calls in enumerate(listed):
        for c, call in enumerate(calls):
            further, whole = math.modf(call.count)
            programs[p, c] = (call.batcher, int(whole), further, len({*call.after}))
            waiting[p, list(call.after), c] = True
    return programs, waiting


def _nodes(
    network: Network, steps: Sequence[int], rows: Sequence[int], requests: int
) -> NDArray[np.void]:
    nodes = np.zeros(len(steps), dtype=NODE)
    for name, lengths in (("step", steps), ("row", rows)):
        nodes[f"{name}_end"] = np.cumsum(lengths)
        nodes[name] = nodes[f"{name}_end"] - lengths
    nodes["cores"] = [batcher.cores for batcher in network.batchers]
    program, first_run = len(network.sources), requests
    for k, batcher in enumerate(network.batchers):
        nodes[k]["program"] = program if batcher.calls else -1
        if batcher.calls:
            nodes[k]["run"] = first_run
            program, first_run = program + 1, first_run + rows[k]
    return nodes
