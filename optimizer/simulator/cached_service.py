"""What a response cache answers, and what measured levels tell of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.level import LoadLevel
from optimizer.simulator.response_cache import steady_cache
from optimizer.simulator.service_observation import busy_shares
from optimizer.workload.streams import Workload

_MOST_HITS = 0.999
"""Largest hit rate: no prediction takes a model for one that is never executed."""

_FILLED = 0.8
"""Share of the time that instances of a saturated model are busy, at least."""


@dataclass(frozen=True)
class Hits:
    """What the cache answers under some traffic.

    Attributes:
        rates: share of the requests to a model that it answers, by model.
        lookup_ms: time of such a request in the server.
        most_per_second: requests that the server takes in and answers at most.
    """

    rates: Mapping[str, float] = field(default_factory=dict)
    lookup_ms: float = 0.0
    most_per_second: float = math.inf

    def of(self, model: str) -> float:
        """Return the hit rate of a model; 0 without a cache."""
        return self.rates.get(model, 0.0)


NO_HITS = Hits()


@dataclass(frozen=True)
class CachedLevel:
    """What a saturated level shows of the cache.

    Attributes:
        entry_bytes: (model, bytes of a response in the cache) pairs.
        lookup_ms: mean time of lookups and insertions of a request.
        per_second: requests of all streams.
        limited_by_models: whether the instances of some model were busy all the time; otherwise it
            was the server, or the clients, that could not take more.
    """

    entry_bytes: tuple[tuple[str, int], ...]
    lookup_ms: float
    per_second: float
    limited_by_models: bool


def cached_level(config: ServingConfig, level: LoadLevel) -> CachedLevel | None:
    """Return what a saturated level shows of the cache; None where this answered nothing."""
    answering = [split for split in level.server if split.cache_hits]
    if not answering or level.kind != "saturation" or not level.requests_received:
        return None
    return CachedLevel(
        tuple((s.model, s.entry_bytes) for s in level.server if s.entry_bytes is not None),
        sum(split.cache_ms for split in answering),
        level.achieved_per_second,
        max(busy_shares(config, level).values(), default=0.0) >= _FILLED,
    )


def hits_of(levels: Sequence[CachedLevel], config: ServingConfig, workload: Workload) -> Hits:
    """Return what the cache of a configuration answers.

    Nothing where requests do not repeat, and where no level tells how large responses are.
    """
    repeating = tuple(stream for stream in workload.streams if stream.population is not None)
    if not levels or not repeating or config.server.cache_bytes is None:
        return NO_HITS
    sizes = dict(pair for level in levels for pair in level.entry_bytes)
    # Those that do not repeat take memory too.
    rates = steady_cache(config, workload.streams, sizes).hit_rates
    if not any(rates.values()):
        return NO_HITS
    fastest = max(levels, key=lambda level: level.per_second)
    return Hits(
        {model: min(rate, _MOST_HITS) for model, rate in rates.items()},
        sum(level.lookup_ms for level in levels) / len(levels),
        math.inf if fastest.limited_by_models else fastest.per_second,
    )
