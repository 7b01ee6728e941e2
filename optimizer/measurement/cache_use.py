"""How much the response cache answered over load levels. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from optimizer.measurement.level import LoadLevel


@dataclass(frozen=True)
class CacheUse:
    """One model's use of the response cache.

    Attributes:
        requests, hits: all requests, and those that it answered.
        expected_hit_rate: see `ServerSplit`.
    """

    model: str
    requests: int
    hits: int
    expected_hit_rate: float | None

    @property
    def hit_rate(self) -> float:
        """Share of requests that were answered by the cache."""
        return self.hits / self.requests


def cache_uses(levels: Iterable[LoadLevel]) -> tuple[CacheUse, ...]:
    """Return the use of the cache over levels by each model that has one."""
    uses: dict[str, CacheUse] = {}
    for split in (split for level in levels for split in level.server):
        if split.hit_rate is not None:
            before = uses.get(split.model, CacheUse(split.model, 0, 0, None))
            requests, hits = before.requests + split.requests, before.hits + split.cache_hits
            uses[split.model] = CacheUse(split.model, requests, hits, split.expected_hit_rate)
    return tuple(uses.values())
