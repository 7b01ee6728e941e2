"""Several batchers that a model graph joins, and that share a machine.

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

from optimizer.simulator.batcher import ONE_SHAPE, Scheduler, Shapes, draw
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
    """

    name: str
    scheduler: Scheduler
    curve: ServiceCurve
    calls: tuple[NetworkCall, ...] = ()


@dataclass(frozen=True)
class NetworkSource:
    """Requests of one kind, and the calls that they go through.

    Attributes:
        hit_rate: share of the requests that a response cache answers before any call.
    """

    calls: tuple[NetworkCall, ...]
    shapes: Shapes = ONE_SHAPE
    hit_rate: float = 0.0


@dataclass(frozen=True)
class Contention:
    """How much executions slow each other down.

    While n[b] instances execute the batch of another batcher b, an execution of a takes
    exp(sum of pairs[a][b] n[b]) times as long. The curve of a model already has what its own
    instances do to each other.
    """

    pairs: tuple[tuple[float, ...], ...] = ()


NO_CONTENTION = Contention()


@dataclass(frozen=True)
class Network:
    """Batchers, the sources of their requests, and their contention.

    Attributes:
        outside_ms: time of a request between client and server.
        hit_ms: time of a request in the server that a response cache answers.
        most_per_second: requests that the server takes in and answers at most, where a response
            cache answers some of them; the calls are not limited by it.

    Raises:
        ValueError: where a call names a batcher that does not exist, or waits for itself.
    """

    batchers: tuple[Batcher, ...]
    sources: tuple[NetworkSource, ...]
    contention: Contention = NO_CONTENTION
    outside_ms: float = 0.0
    hit_ms: float = 0.0
    most_per_second: float = math.inf

    def __post_init__(self) -> None:
        """Check the calls."""
        for calls in self.programs:
            _check_calls(calls, len(self.batchers))
        if any(math.inf in row for row in self.visits):
            raise ValueError("a composed model calls itself")

    @property
    def programs(self) -> list[tuple[NetworkCall, ...]]:
        """The calls of every source, and then of every composed model."""
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
            fresh *= 1.0 if whole else 1.0 - source.hit_rate
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
        chance, hit = rng.random(requests), np.zeros(requests, dtype=np.bool_)
        if any(each.hit_rate for each in self.sources):
            hit = rng.random(requests) < np.array([each.hit_rate for each in self.sources])[source]
        return NetworkDraws(source, shape, factor, noise, chance, hit)

    def executed_share(self, mix: Sequence[float]) -> float:
        """Return the share of the requests that no response cache answers.

        Args:
            mix: share of each source.
        """
        pairs = zip(mix, self.sources, strict=True)
        return sum(share * (1.0 - each.hit_rate) for share, each in pairs) / sum(mix)

    @property
    def single(self) -> bool:
        """Whether it is one batcher alone, each of whose requests is one of its source."""
        return (
            len(self.batchers) == len(self.sources) == 1
            and not self.batchers[0].calls
            and self.sources[0].calls == (NetworkCall(0),)
            and self.sources[0].hit_rate == 0
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
        source: source of each request, shape [requests], as the next two and the last two.
        shape, factor: index of the request's shape, and its factor of execution times.
        noise: of each batcher, the time factor of each of its executions.
        chance: decides about further calls, from 0 to 1.
        hit: whether a response cache answers the request.
    """

    source: NDArray[np.int64]
    shape: NDArray[np.int32]
    factor: NDArray[np.float64]
    noise: tuple[NDArray[np.float64], ...]
    chance: NDArray[np.float64]
    hit: NDArray[np.bool_]

    def with_mean_noise(self) -> NetworkDraws:
        """Return the numbers with a mean noise of exactly 1."""
        return replace(self, noise=tuple(own / own.mean() for own in self.noise))


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
