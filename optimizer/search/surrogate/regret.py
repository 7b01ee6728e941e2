"""How much cheaper a configuration may still be than what a search found: a bound at every trial.

The posterior of all costs is drawn jointly. Each draw tells by what share the cheapest point is
cheaper than the best of the three cheapest trials, which the confirm phase measures again and tells
apart. Draws have the noise of the trials too, which is uncertain itself, as the trial of the best
point may have been unlucky. Points with several rivals save more often than any of them alone. An
artefact without any trial has its prior's whole uncertainty, which keeps the bound wide until one
of its points is measured.

The bound is the quantile of these draws at `1 - LEVEL`. Nothing is stated before `LEAST_TRIALS`
trials, or those of a third of a small space: a few that happen to fit the forecast make the model
far too certain.

The draws trust the model, and a search looks at its bound after every trial. `LEVEL` is therefore
checked as a whole search sees it, by split conformal prediction in which one example is one search.
For searches of made-up servers, and of tables with redistributed errors, the score is the smallest
share of draws that save as much as the true best, over all trials. Of n scores, the one at rank
0.05 (n + 1) is the largest level with which the bounds of all trials of another search from the
same population hold together with at least 95 % probability, whichever trial ends it. For servers
unlike these nothing is proved. `python -m tests.benchmarks.regret_bound --calibrate` recalculates
it.

Sources: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World (2005); Angelopoulos and
Bates, A Gentle Introduction to Conformal Prediction (2021), arXiv:2107.07511; for bounds that may
be looked at after every trial, Howard, Ramdas, McAuliffe and Sekhon, Time-uniform, nonparametric,
nonasymptotic confidence sequences (2021), arXiv:1810.08240.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from optimizer.search.surrogate.assessment import lowest_plausible
from optimizer.search.surrogate.posterior import Posterior
from optimizer.search.surrogate.residuals import Rows

Array = NDArray[np.float64]

LEVEL = 0.05
"""Share of the draws above the bound."""

LEAST_TRIALS = 8
"""Trials before which no bound is stated, see `least_trials`."""

_LEAST_SHARE = 1 / 3
"""Share of a small space that suffices: each of its points resembles most of the others."""

RESOLUTION = 0.01
"""The smallest bound: capacities are not measured more precisely, whatever the draws tell."""

_DRAWS = 2048
_POINTS = 400
"""Points that are drawn: those with the lowest plausible costs, and the finalists."""


def savings(
    posterior: Posterior,
    finalists: Rows,
    measured: Rows,
    others: Rows,
    rng: np.random.Generator,
) -> Array:
    """Return draws of the share that the cheapest point saves of the best finalist's cost.

    Args:
        finalists: rows of the cheapest trials.
        measured: further rows that met the limits.
        others: rows that may meet them.
    """
    certain, rows = len(finalists) + len(measured), np.concatenate([finalists, measured, others])
    feasible = posterior.feasible(rows)
    feasible[:certain] = 1.0
    lowest = lowest_plausible(*posterior.log_cost(rows))
    lowest[: len(finalists)] = -np.inf
    drawn = np.argsort(lowest, kind="stable")[:_POINTS]  # the finalists are the first
    log_costs = posterior.log_cost_draws(rows[drawn], _DRAWS, rng)
    of_best = log_costs[:, : len(finalists)].min(axis=1)
    log_costs[rng.random(log_costs.shape) >= feasible[drawn]] = np.inf
    saved: Array = np.maximum(0.0, 1 - np.exp(log_costs.min(axis=1) - of_best))
    return saved


def least_trials(most: int, points: int) -> int:
    """Return the trials that a conclusion needs: `most`, or fewer in a space of few points."""
    return min(most, math.ceil(_LEAST_SHARE * points))


def bound(drawn: Array) -> float:
    """Return the bound on the regret by draws of `savings`."""
    return max(RESOLUTION, float(np.quantile(drawn, 1 - LEVEL)))
