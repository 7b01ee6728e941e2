"""Samplers of ours, which choose among the valid points of a space."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from optimizer.configuration.model_space import Position
from optimizer.configuration.search_space import SearchSpace
from optimizer.study.optuna_space import OptunaSpace


@dataclass(frozen=True)
class RequestedPoint:
    """A point that some trial of the study has or had, and whether it is being measured."""

    position: Position
    running: bool


class PointSampler(BaseSampler):
    """Proposes what `choose` chooses, and anything where that is None.

    Args:
        seed: of these arbitrary proposals.
    """

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self._space = OptunaSpace(space)
        self._random = RandomSampler(seed=seed)

    @abstractmethod
    def choose(self, asked: Sequence[RequestedPoint]) -> Position | None:
        """The next point; None when there is none left.

        Args:
            asked: by other trials of the study, in their order.
        """

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """All parameters are chosen together."""
        return self._space.distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The chosen point, as Optuna's parameters."""
        # A trial that another worker asks for just now has no parameters yet.
        asked = [
            RequestedPoint(self._space.position(other.params), other.state == TrialState.RUNNING)
            for other in study.get_trials(deepcopy=False)
            if other.number != trial.number and other.params.keys() == search_space.keys()
        ]
        position = self.choose(asked)
        return dict(self._space.params(position)) if position is not None else {}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Any value, where nothing was chosen."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)
