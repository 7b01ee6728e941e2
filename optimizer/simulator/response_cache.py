"""Triton's response cache in steady state: its entries, and the share of requests it answers. Pure.

The local cache (github.com/triton-inference-server/local_cache) evicts the least recently used
entry when an allocation fails, and all models share it. Che's approximation of such a cache (Che,
Tung and Wang 2002) takes the time after which an unused entry is evicted as the same for all.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ServingConfig
from optimizer.workload.streams import Stream, Workload

_ALIGNMENT = 16
_RESPONSE_BYTES = 12
"""Number of outputs, and the header of the memory block."""

_OUTPUT_BYTES = 28
"""Lengths of an output, of its name, type, shape and content, and its number of dimensions."""

_DIMENSION_BYTES = 8

_ROUNDING = 1e-9
"""Of a sum of probabilities."""


@dataclass(frozen=True)
class CachedOutput:
    """An output of a response, as the cache keeps it.

    Attributes:
        data_type: Triton's name.
        content_bytes: its elements, as they are sent in binary.
    """

    name: str
    data_type: str
    dimensions: int
    content_bytes: int


def entry_bytes(outputs: Iterable[CachedOutput]) -> int:
    """Return the memory that the local cache takes for a response.

    Measured on Triton 2.51 with outputs of 20 to 1,111 bytes, short and long names, two and four
    dimensions, one and two outputs, by the number of entries of a full cache.
    """
    size = _RESPONSE_BYTES + sum(
        _OUTPUT_BYTES
        + len(each.name)
        + len(each.data_type)
        + _DIMENSION_BYTES * each.dimensions
        + each.content_bytes
        for each in outputs
    )
    return math.ceil(size / _ALIGNMENT) * _ALIGNMENT


@dataclass(frozen=True)
class CachedTraffic:
    """Requests of one stream to a model whose responses are cached.

    Attributes:
        per_second: rate of all of them, in any unit that the streams share.
        probabilities: of each request that repeats, shape [population]; the rest to 1 is unique.
        entry_bytes: of a response in the cache.
    """

    per_second: float
    probabilities: NDArray[np.float64]
    entry_bytes: int

    @property
    def unique_share(self) -> float:
        """Share of requests that never repeat."""
        share = 1.0 - float(self.probabilities.sum())
        return share if share > _ROUNDING else 0.0

    def occupied_bytes(self, seconds: float) -> float:
        """Return the mean memory of the responses to all requests of the last `seconds`."""
        unique = self.unique_share * self.per_second * seconds if self.unique_share else 0.0
        return self.entry_bytes * (float(self._present(seconds).sum()) + unique)

    @property
    def largest_bytes(self) -> float:
        """Memory of the responses to all requests that were ever sent."""
        return math.inf if self.unique_share else float(self.entry_bytes * len(self.probabilities))

    def hit_rate(self, seconds: float) -> float:
        """Return the share of requests that were sent in the last `seconds` too."""
        return min(1.0, float((self.probabilities * self._present(seconds)).sum()))

    def entries(self, seconds: float) -> int:
        """Return the mean number of different requests in the last `seconds`."""
        return round(self.occupied_bytes(seconds) / self.entry_bytes)

    def _present(self, seconds: float) -> NDArray[np.float64]:
        present: NDArray[np.float64] = -np.expm1(-self.probabilities * self.per_second * seconds)
        return present


def eviction_seconds(traffic: Sequence[CachedTraffic], size_bytes: int) -> float:
    """Return after how long an unused entry is evicted, in the unit of the rates; may be inf."""

    def spare(seconds: float) -> float:
        return size_bytes - sum(each.occupied_bytes(seconds) for each in traffic)

    if sum(each.largest_bytes for each in traffic) <= size_bytes:
        return math.inf
    high = 1.0 / max(each.per_second for each in traffic)
    while spare(high) > 0:
        high *= 2.0
    # This import takes a quarter of a second, and few searches have a response cache.
    from scipy import optimize

    return float(optimize.brentq(spare, 0.0, high))


def popularity_of_keys(keys: Sequence[int]) -> NDArray[np.float64]:
    """Return the probability of each key that a recording has more than once."""
    counts = np.bincount(np.asarray(keys))
    repeated: NDArray[np.float64] = counts[counts > 1] / len(keys)
    return repeated


def hit_rate_of_keys(keys: Sequence[int], entries: int) -> float:
    """Return the share of hits in a second round of a recording, as `Recorded` sends it.

    Args:
        entries: number of responses that fit in the cache.
    """
    repeats = np.bincount(np.asarray(keys)) > 1
    held: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for round_number in (0, 1):
        for position, key in enumerate(keys):
            content = key if repeats[key] else -1 - position - round_number * len(keys)
            if content in held:
                held.move_to_end(content)
                hits += round_number
                continue
            held[content] = None
            if len(held) > entries:
                held.popitem(last=False)
    return hits / len(keys)


@dataclass(frozen=True)
class SteadyCache:
    """The cache in its steady state.

    Attributes:
        hit_rates: share of the requests to a model that the cache answers, by model.
        entries: number of requests of a stream whose responses are in it, by stream.
        entry_bytes: of a response of a model in it, by model.
    """

    hit_rates: Mapping[str, float]
    entries: Mapping[str, int]
    entry_bytes: Mapping[str, int] = field(default_factory=dict)


EMPTY = SteadyCache({}, {})
"""Where no cache answers, or before it was asked."""


def cached_models(config: ServingConfig, target: str) -> tuple[str, ...]:
    """Return the models, of a target and its steps, whose responses are cached."""
    return tuple(model.name for model in config.part(target).models if model.cache)


def steady_cache(
    config: ServingConfig, streams: Sequence[Stream], entry_bytes: Mapping[str, int]
) -> SteadyCache:
    """Return the steady state of a configuration's cache.

    A response of each cached model is kept for a request, as equal requests are equal at all steps.
    Behind a model whose own response is cached, a step answers nothing: its entries are used less
    often, so they are evicted earlier.

    Args:
        entry_bytes: of a response in the cache, by model. Streams with a cached model that has none
            are left out.
    """
    cached = {
        stream.name: models
        for stream in streams
        if (models := cached_models(config, stream.target)) and entry_bytes.keys() >= {*models}
    }
    size_bytes = config.server.cache_bytes
    if not cached or size_bytes is None:
        return EMPTY
    sizes = {name: sum(entry_bytes[model] for model in own) for name, own in cached.items()}
    own = tuple(stream for stream in streams if stream.name in cached)
    rates, entries = _steady_state(own, tuple(sizes[stream.name] for stream in own), size_bytes)
    hit_rates = {
        model: 0.0 if stream.target in cached[stream.name] and model != stream.target else rate
        for stream, rate in zip(own, rates, strict=True)
        for model in cached[stream.name]
    }
    names = [stream.name for stream in own]
    return SteadyCache(hit_rates, dict(zip(names, entries, strict=True)), dict(entry_bytes))


@lru_cache(maxsize=64)
def _steady_state(
    streams: tuple[Stream, ...], entry_bytes: tuple[int, ...], size_bytes: int
) -> tuple[list[float], list[int]]:
    """Return hit rate and number of entries of each stream."""
    traffic = [
        CachedTraffic(stream.demand_per_second, _probabilities(stream), size)
        for stream, size in zip(streams, entry_bytes, strict=True)
    ]
    seconds = eviction_seconds(traffic, size_bytes)
    hit_rates = [own.hit_rate(seconds) for own in traffic]
    if len(streams) == 1 and streams[0].keys:
        hit_rates = [hit_rate_of_keys(streams[0].keys, size_bytes // entry_bytes[0])]
    return hit_rates, [own.entries(seconds) for own in traffic]


def _probabilities(stream: Stream) -> NDArray[np.float64]:
    if stream.repeats is not None:
        return stream.repeats.probabilities()
    return popularity_of_keys(stream.keys) if stream.keys else np.zeros(0)


def answered_by_cache(workload: Workload, space: SearchSpace) -> tuple[str, ...]:
    """Return the models whose requests repeat and may be answered by a response cache."""
    return tuple(
        stream.target
        for stream in workload.streams
        if stream.population is not None and space.cache_bytes(stream.target)
    )


def cache_columns(space: SearchSpace) -> list[int]:
    """Return the columns of a space's points that decide what the response cache answers."""
    names = ("response_cache", "response_cache_mib")
    return [n for n, parameter in enumerate(space.parameters) if parameter.name in names]


def last_different(numbers: Sequence[int] | NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the last `count` different numbers of a sequence, the least recent first."""
    backwards = np.asarray(numbers, dtype=np.int64)[::-1]
    _, first = np.unique(backwards, return_index=True)
    last: NDArray[np.int64] = backwards[np.sort(first)[:count]][::-1]
    return last
