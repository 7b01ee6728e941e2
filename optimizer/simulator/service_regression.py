"""Bayesian regression of one model's service times on its execution layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, special

from optimizer.simulator.execution_layout import ExecutionLayout
from optimizer.simulator.service_curve import SPREAD
from optimizer.simulator.service_effects import (
    LOG_FIXED_OVER_ITEM,
    PAIR_SD,
    Coder,
    Covariance,
    DesignRows,
    Floats,
    covariance,
    pair_mean,
    variance,
)
from optimizer.simulator.service_observation import ServiceObservation

RUN_SD = 0.03
"""Expected run-to-run standard deviation of the logarithm of all times: the machine's drift."""

ROW_SD = 0.01
"""Standard deviation of the logarithm of a mean over many executions, beside `RUN_SD`."""

_RUN_SDS = (0.02, 0.03, 0.05, 0.08, 0.12)
_LOG_RUN_SD = 0.7
"""Candidates for the run-to-run deviation, and the standard deviation of its logarithm."""

_STEPS = 30
_CONVERGED = 1e-4
_CHUNK = 4096
"""Rows that are predicted together, which bounds the memory of their covariances."""


def nominal_share(log_batch: Floats) -> Floats:
    """Return the prior share of an execution's time that goes with its inferences."""
    share: Floats = special.expit(log_batch - LOG_FIXED_OVER_ITEM)
    return share


def _busy(observation: ServiceObservation, names: Sequence[str]) -> list[float]:
    busy = {other.name: other.mean_busy for other in observation.others}
    return [busy.get(name, 0.0) for name in names]


@dataclass(frozen=True)
class _Latent:
    """Logarithms of the fixed time, of the time of one inference, and of the rest; shape [rows]."""

    fixed: Floats
    item: Floats
    rest: Floats

    def log_ms(self, log_batch: Floats) -> Floats:
        total: Floats = np.logaddexp(self.fixed, self.item + log_batch) + self.rest
        return total

    def share(self, log_batch: Floats) -> Floats:
        """Return the share of the time that goes with the inferences."""
        share: Floats = special.expit(self.item + log_batch - self.fixed)
        return share


@dataclass(frozen=True)
class _Noise:
    """Noise of the measured rows: of each on its own, and shared by the rows of a run."""

    own: Floats
    disturbance: Floats
    same_run: NDArray[np.bool_]

    @classmethod
    def of(cls, observations: Sequence[ServiceObservation]) -> _Noise:
        times = [time for o in observations for time in o.times]
        runs = np.array([run for run, o in enumerate(observations) for _ in o.times])
        own = [t.log_sd**2 + SPREAD**2 / t.executions + ROW_SD**2 for t in times]
        disturbance = np.array([o.disturbance for o in observations])[runs]
        return cls(np.diag(own), disturbance**2, runs[:, None] == runs)

    def covariance(self, run_sd: float) -> Floats:
        total: Floats = self.own + (run_sd**2 + self.disturbance) * self.same_run
        return total


class Regression:
    """The posterior of the effects on one model's times given the measured rows.

    The logarithm of a sum is not linear in the effects, so it is linearised at the mode of the
    posterior, which Gauss-Newton steps find (Rasmussen and Williams, section 3.4: Laplace). The
    run-to-run deviation is learnt too.

    Args:
        observations: of the same model, at least one.
    """

    def __init__(self, observations: Sequence[ServiceObservation]) -> None:
        pairs = [(o, time) for o in observations for time in o.times]
        self._others = list(dict.fromkeys(x.name for o in observations for x in o.others))
        self._coder = Coder()
        self._rows = self._coder.rows(
            [o.layout for o, _ in pairs],
            [t.batch_size for _, t in pairs],
            np.array([_busy(o, self._others) for o, _ in pairs]).T,
        )
        self._log_ms = np.log([time.occupancy_ms for _, time in pairs])
        expected = self._prior(self._rows, 0.0).log_ms(self._rows.log_batch)
        here = np.array([not o.layout.elsewhere for o, _ in pairs])
        self._level = float(np.mean((self._log_ms - expected)[here if here.any() else ~here]))
        self._parts = covariance(self._rows, self._rows)
        noise = _Noise.of(observations)
        latent = self._fit(noise.covariance(RUN_SD), self._prior(self._rows, self._level))
        run_sd = self._likeliest(noise)
        if run_sd != RUN_SD:
            self._fit(noise.covariance(run_sd), latent)

    def pairs(self, layout: ExecutionLayout) -> dict[str, float]:
        """Return the logarithm by which an execution of each other model slows one down.

        Noise may give a negative value, which counts as 0.
        """
        slower = pair_mean(layout) + PAIR_SD**2 * self._rows.others @ self._weights
        return dict(zip(self._others, np.maximum(slower, 0.0).tolist(), strict=True))

    def _prior(self, rows: DesignRows, level: float) -> _Latent:
        item = rows.mean + level
        return _Latent(item + LOG_FIXED_OVER_ITEM, item, np.zeros(len(item)))

    def _fit(self, noise: Floats, latent: _Latent) -> _Latent:
        """Find the mode, starting from `latent`."""
        prior, log_batch = self._prior(self._rows, self._level), self._rows.log_batch
        for _ in range(_STEPS):
            self._share = share = latent.share(log_batch)
            total = self._parts.of_times(share, share) + noise
            self._factor = linalg.cho_factor(total, lower=True)
            moved = (1 - share) * (latent.fixed - prior.fixed)
            moved += share * (latent.item - prior.item) + latent.rest
            self._residual: Floats = self._log_ms - latent.log_ms(log_batch) + moved
            self._weights: Floats = linalg.cho_solve(self._factor, self._residual)
            before, latent = latent, self._latent(prior, self._parts)
            changes = np.abs([latent.fixed - before.fixed, latent.item - before.item])
            if changes.max() < _CONVERGED:
                break
        return latent

    def _likeliest(self, noise: _Noise) -> float:
        """Return the run-to-run deviation of most evidence, at the mode of `_fit`."""
        effects = self._parts.of_times(self._share, self._share)

        def log_evidence(run_sd: float) -> float:
            factor, lower = linalg.cho_factor(effects + noise.covariance(run_sd), lower=True)
            scaled = linalg.solve_triangular(factor, self._residual, lower=lower)
            surprise = np.log(run_sd / RUN_SD) / _LOG_RUN_SD
            return float(-np.log(np.diag(factor)).sum() - (scaled @ scaled + surprise**2) / 2)

        return max(_RUN_SDS, key=log_evidence)

    def _latent(self, prior: _Latent, parts: Covariance) -> _Latent:
        common: Floats = parts.common @ self._weights
        fixed: Floats = parts.fixed @ ((1 - self._share) * self._weights)
        item: Floats = parts.item @ (self._share * self._weights)
        rest: Floats = parts.rest @ self._weights
        return _Latent(prior.fixed + common + fixed, prior.item + common + item, rest)

    def predict(
        self, layouts: Sequence[ExecutionLayout], batch_sizes: Sequence[int]
    ) -> tuple[Floats, Floats]:
        """Return mean and standard deviation of each batch's log time (ms), shape [layouts]."""
        chunks = [
            self._predict_chunk(layouts[at : at + _CHUNK], batch_sizes[at : at + _CHUNK])
            for at in range(0, len(layouts), _CHUNK)
        ]
        means, sds = zip(*chunks, strict=True)
        return np.concatenate(means), np.concatenate(sds)

    def _predict_chunk(
        self, layouts: Sequence[ExecutionLayout], batch_sizes: Sequence[int]
    ) -> tuple[Floats, Floats]:
        alone = np.zeros((len(self._others), len(layouts)))
        rows = self._coder.rows(layouts, batch_sizes, alone)
        parts = covariance(rows, self._rows)
        latent = self._latent(self._prior(rows, self._level), parts)
        share = latent.share(rows.log_batch)
        with_measured = parts.of_times(share, self._share)
        explained = linalg.solve_triangular(self._factor[0], with_measured.T, lower=True)
        remaining = variance(rows, share) - np.sum(explained**2, axis=0)
        return latent.log_ms(rows.log_batch), np.sqrt(np.maximum(remaining, 0.0))
