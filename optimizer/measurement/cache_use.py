"""How much the response cache answered over load levels. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from optimizer.measurement.level import LoadLevel


@dataclass(frozen=True)
class CacheUse:
    """One model's use of the response cache.

    Attributes:
        hits, misses: requests that it answered, and that it was asked for in vain.
        expected_hit_rate: see `ServerSplit`.
    """

    model: str
    hits: int
    misses: int
    expected_hit_rate: float | None

    @property
    def hit_rate(self) -> float:
        """Share of requests that were answered by the cache."""
        return self.hits / (self.hits + self.misses)


def cache_uses(levels: Iterable[LoadLevel]) -> tuple[CacheUse, ...]:
    """Return the use of the cache over levels by each model that has one."""
    uses: dict[str, CacheUse] = {}
    for split in (split for level in levels for split in level.server):
        if split.hit_rate is not None:
            before = uses.get(split.model, CacheUse(split.model, 0, 0, None))
            hits, misses = before.hits + split.cache_hits, before.misses + split.cache_misses
            uses[split.model] = CacheUse(split.model, hits, misses, split.expected_hit_rate)
    return tuple(uses.values())
