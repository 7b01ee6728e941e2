"""The samplers by the names that people choose them by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from optuna.samplers import GPSampler, RandomSampler, TPESampler

from optimizer.search.samplers.grid import GridSampler
from optimizer.search.samplers.guided import GuidedSampler
from optimizer.search.surrogate.acquisition import AcquisitionPolicy
from optimizer.study.optuna_study import SamplerFactory
from optimizer.study.search_status import Advisor, Explain, no_expectation, no_search_status

_STARTUP_TRIALS = 6


@dataclass(frozen=True)
class Strategy:
    """What makes the proposals, who says why, and who says when the search is over."""

    make_sampler: SamplerFactory
    advise: Advisor = no_search_status
    explain: Explain = no_expectation


SAMPLERS: Mapping[str, Callable[[AcquisitionPolicy], Strategy]] = {
    "guided": lambda policy: Strategy(
        lambda seed: GuidedSampler(policy, seed), policy.status, policy.explain
    ),
    "gp": lambda _: Strategy(
        lambda seed: GPSampler(
            seed=seed, n_startup_trials=_STARTUP_TRIALS, warn_independent_sampling=False
        )
    ),
    "tpe": lambda _: Strategy(lambda seed: TPESampler(seed=seed, n_startup_trials=_STARTUP_TRIALS)),
    "random": lambda _: Strategy(lambda seed: RandomSampler(seed=seed)),
    "grid": lambda policy: Strategy(lambda seed: GridSampler(policy.space, policy.seed, seed)),
}
"""Only the guided one asks the policy for more than its space and seed."""

SAMPLER_PACKAGES: Mapping[str, frozenset[str]] = {
    "guided": frozenset(),
    "gp": frozenset({"torch", "scipy"}),
    "tpe": frozenset(),
    "random": frozenset(),
    "grid": frozenset(),
}
"""What a sampler imports beside Optuna itself."""

CALIBRATED = frozenset({"guided"})
"""Those that go by a forecast, which the calibrate phase is for."""
