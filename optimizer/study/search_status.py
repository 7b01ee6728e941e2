"""What a search may still find: the seam by which it ends before its budget. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from optimizer.configuration.model_space import Position


@dataclass(frozen=True)
class SearchStatus:
    """What is left to find.

    Attributes:
        stop_reason: why the search is over, None while it goes on.
        regret_bound: upper 95 % bound on the share of the incumbent's cost that an unmeasured
            configuration may still save; None where the sampler has no model of the cost.
    """

    stop_reason: str | None = None
    regret_bound: float | None = None


Advisor = Callable[[], SearchStatus]
"""Asked before every proposal, and in the end."""


def no_search_status() -> SearchStatus:
    """Of a search that has no expectations: it goes on, and nobody knows."""
    return SearchStatus()


@dataclass(frozen=True)
class ExpectedCost:
    """What a sampler expects of the configuration that it has proposed, and why it did.

    Attributes:
        why: in a few words.
        usd_per_million: expected cost at the capacity; `low` and `high` its interval at 95 %.
        feasible: probability that the limits are met.
        saving: expected share of the best one's cost that is saved; None while there is no best.
        seconds: that measuring is expected to take.
    """

    why: str
    usd_per_million: float
    low: float
    high: float
    feasible: float
    saving: float | None
    seconds: float


Explain = Callable[[Position], ExpectedCost | None]
"""Asked after a proposal what is expected of it."""


def no_expectation(_: Position) -> ExpectedCost | None:
    """Of a sampler that has none."""
    return None
