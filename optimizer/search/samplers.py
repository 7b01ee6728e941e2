"""The samplers that a study can be searched with, by name."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from optimizer.configuration.model_space import Position
from optimizer.configuration.search_space import SearchSpace
from optimizer.search.bounded_sampler import BoundedSampler
from optimizer.search.surrogate.acquisition import AcquisitionPolicy
from optimizer.study.optuna_space import OptunaSpace
from optimizer.study.optuna_study import SamplerFactory
from optimizer.study.search_status import Advisor, CalibratedBy, Explain, SearchStatus

_STARTUP_TRIALS = 6


class PointSampler(BaseSampler):
    """A sampler that chooses among the valid points of a space.

    Where `choose` returns None it proposes a random combination of values.

    Args:
        seed: of those random combinations.
        states: of the trials whose points it is given; None for all.
    """

    def __init__(
        self, space: SearchSpace, seed: int, states: Container[TrialState] | None = None
    ) -> None:
        self._space = OptunaSpace(space)
        self._random = RandomSampler(seed=seed)
        self._states = states

    @abstractmethod
    def choose(self, requested: Sequence[Position]) -> Position | None:
        """Return the next point, None when none is left.

        Args:
            requested: the points of the study's other trials in these states, in their order.
        """

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return all parameters: they are chosen together."""
        return self._space.distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the chosen point as Optuna's parameters."""
        # A trial that another worker is creating at this moment has no parameters yet.
        requested = [
            self._space.position(other.params)
            for other in study.get_trials(deepcopy=False, states=self._states)
            if other.number != trial.number and other.params.keys() == search_space.keys()
        ]
        position = self.choose(requested)
        return dict(self._space.params(position)) if position is not None else {}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return a random value: called where no point was chosen."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)


class GuidedSampler(PointSampler):
    """Proposes what an acquisition policy proposes, given the trials that are running.

    Proposals depend only on the policy's seed, its history and the running trials. No point is
    proposed twice until every point is measured or ruled out.
    """

    def __init__(self, policy: AcquisitionPolicy, seed: int) -> None:
        super().__init__(policy.space, seed, states=(TrialState.RUNNING,))
        self._policy = policy

    def choose(self, requested: Sequence[Position]) -> Position | None:
        """Return the policy's proposal; the policy reads results from its own history."""
        return self._policy.propose(requested)


class GridSampler(PointSampler):
    """Visits every valid point once; Optuna's own GridSampler visits invalid combinations too.

    Args:
        order_seed: of the order, the same throughout a study.
    """

    def __init__(self, space: SearchSpace, order_seed: int, seed: int) -> None:
        super().__init__(space, seed)
        self._points = space
        self._order_seed = order_seed

    def choose(self, requested: Sequence[Position]) -> Position | None:
        """Return the first point in the order that no trial was given."""
        visited = set(requested)
        order = np.random.default_rng(self._order_seed).permutation(len(self._points))
        points = (self._points.at(int(row)) for row in order)
        return next((point for point in points if point not in visited), None)


@dataclass(frozen=True)
class Strategy:
    """A sampler with its reasons for a proposal and its rule for ending the search.

    By default it has no model of the cost: it gives no reasons and never ends the search.
    """

    make_sampler: SamplerFactory
    advise: Advisor = SearchStatus
    explain: Explain = lambda _: None
    calibrated_by: CalibratedBy = lambda: 0


SAMPLERS: Mapping[str, Callable[[AcquisitionPolicy], Strategy]] = {
    "guided": lambda policy: Strategy(
        lambda seed: GuidedSampler(policy, seed), policy.status, policy.explain
    ),
    "gp": lambda _: Strategy(
        lambda seed: BoundedSampler(
            GPSampler(seed=seed, n_startup_trials=_STARTUP_TRIALS, warn_independent_sampling=False)
        )
    ),
    "tpe": lambda _: Strategy(
        lambda seed: BoundedSampler(TPESampler(seed=seed, n_startup_trials=_STARTUP_TRIALS))
    ),
    "random": lambda _: Strategy(lambda seed: RandomSampler(seed=seed)),
    "grid": lambda policy: Strategy(lambda seed: GridSampler(policy.space, policy.seed, seed)),
}

SAMPLER_PACKAGES: Mapping[str, frozenset[str]] = {
    "guided": frozenset(),
    "gp": frozenset({"torch", "scipy"}),
    "tpe": frozenset(),
    "random": frozenset(),
    "grid": frozenset(),
}
"""Packages that a sampler imports in addition to Optuna."""

BOUNDED = frozenset({"gp", "tpe"})
"""Samplers that learn from at most `MOST_TRIALS` trials."""

CALIBRATED = frozenset({"guided"})
"""Samplers that use a forecast and therefore need the calibrate phase."""
