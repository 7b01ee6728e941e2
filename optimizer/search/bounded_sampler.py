"""Samplers of Optuna that learn from a bounded number of trials.

The time of a Gaussian process grows with the cube of the number of trials, and that of a
tree-structured Parzen estimator with the number itself. Beyond some hundred trials the others add
little: what matters is where the best ones are, and where the space is known to be worse.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any, cast

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from optimizer.search.informative_trials import informative

MOST_TRIALS = 500
"""Completed trials that a sampler learns from: half of them the best, the others spread evenly over
the ranks of the rest."""


def bounded_text(sampler: str) -> str:
    """Return what a run says of a sampler that will not learn from all of its trials."""
    best = MOST_TRIALS // 2
    return (
        f"{sampler} learns from at most {MOST_TRIALS} trials: the {best} best, and {best} spread "
        "over the others"
    )


class BoundedSampler(BaseSampler):
    """Proposes what another sampler proposes by at most `MOST_TRIALS` completed trials."""

    def __init__(self, sampler: BaseSampler) -> None:
        self._sampler = sampler
        self._view: Study | None = None

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the parameters that are sampled together; called first for each proposal."""
        self._view = cast(Study, _SomeTrials(study))
        return self._sampler.infer_relative_search_space(self._view, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return values for them."""
        return self._sampler.sample_relative(self._view or study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return a value for a parameter that is not among them."""
        view = self._view or study
        return self._sampler.sample_independent(view, trial, param_name, param_distribution)


class _SomeTrials:
    """A study as a sampler sees it that is to learn from some of its trials."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._trials = selected(study.get_trials(deepcopy=False))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        del deepcopy, use_cache
        return [trial for trial in self._trials if states is None or trial.state in states]

    get_trials = _get_trials


def selected(trials: Sequence[FrozenTrial], most: int = MOST_TRIALS) -> Sequence[FrozenTrial]:
    """Return the trials that a sampler learns from, in their order.

    Those that are running or failed are all among them.
    """
    completed = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if len(completed) <= most:
        return trials
    kept = {trial.number for trial in informative(sorted(completed, key=_rank), most)}
    return [t for t in trials if t.state != TrialState.COMPLETE or t.number in kept]


def _rank(trial: FrozenTrial) -> tuple[bool, list[float], int]:
    return any(value > 0 for value in trial.constraints.values()), trial.values, trial.number
