"""The status of a search: whether the sampler has converged, and what it expects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from optimizer.configuration.model_space import Position
from optimizer.measurement.estimates import CONFIDENCE


@dataclass(frozen=True)
class SearchStatus:
    """The sampler's estimate of what is left to find.

    Attributes:
        stop_reason: why the search is over, None while it continues.
        regret_bound: upper bound on the share by which a configuration of the space may be cheaper
            than the best of the cheapest trials, as the confirm phase tells them apart. The bounds
            of all trials hold together with the probability `CONFIDENCE`. None where the sampler
            has no model of the cost.
    """

    stop_reason: str | None = None
    regret_bound: float | None = None


@dataclass(frozen=True)
class SearchEnd:
    """Why a search ended.

    Attributes:
        exhausted: whether every valid configuration was measured.
        converged: whether the sampler expected no further improvement.
        regret_bound: as in `SearchStatus`.
    """

    reason: str
    exhausted: bool = False
    converged: bool = False
    regret_bound: float | None = None


Advisor = Callable[[], SearchStatus]
"""Called before every proposal, and at the end of the search."""


def is_certified(regret_bound: float | None, percent: float) -> bool:
    """Return whether no configuration is cheaper than the best one by more than a share of it."""
    return regret_bound is not None and regret_bound <= percent / 100


def stop_at_regret(advise: Advisor, percent: float) -> Advisor:
    """Return an advisor that ends the search by the bound on its regret, and by nothing else.

    Args:
        percent: of the best cost; a bound that is no higher ends the search.
    """
    reason = (
        f"no configuration is more than {percent:g}% cheaper than the best one "
        f"({CONFIDENCE:.0%} confidence)"
    )

    def advise_by_regret() -> SearchStatus:
        bound = advise().regret_bound
        return SearchStatus(reason if is_certified(bound, percent) else None, bound)

    return advise_by_regret


@dataclass(frozen=True)
class ExpectedCost:
    """The expected cost of a proposed configuration, and the reason for the proposal.

    Attributes:
        why: in a few words.
        usd_per_million: expected cost at the capacity; `low` and `high` its interval at 95 %.
        feasible: probability that the limits are met.
        saving: expected share of the incumbent's cost that is saved; None without an incumbent.
        seconds: expected duration of the trial.
    """

    why: str
    usd_per_million: float
    low: float
    high: float
    feasible: float
    saving: float | None
    seconds: float


Explain = Callable[[Position], ExpectedCost | None]
"""Called after a proposal for its expected cost."""

CalibratedBy = Callable[[], int | None]
"""Called before a proposal for the number of calibration runs that it would learn from; None while
these tell too little."""
