"""A Gaussian process over the residuals: the logarithm of measured less forecast values.

Its covariance is a sum of terms: a constant; a slope on the forecast, which may be too steep; one
for each artefact, for each layout, and for both together in proportion to the forecast's own
uncertainty; a smooth term over the batch sizes of an artefact; a rough term for every artefact,
batch size and layout; a small one for every point; and an ordinary term over the parameters, which
learns from the data alone where the forecast is worthless.

The scale of each term is the most likely one, given a log-normal prior. That is done for a good, a
poor and a worthless forecast (`SCALE_MULTIPLIERS`), and the three fits are averaged, weighted by
their posterior probability. So a few good measurements narrow the posterior, and a single surprise
widens it: with the most likely scales alone, three measurements that happen to fit would end a
search. How noisy measurements are is hardly learnt from a search, as few are repeated; where that
matters, the fits are averaged over several noises too, see `with_uncertain_noise`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from optimizer.search.surrogate.mixture import Mixture, Prediction, probable
from optimizer.search.surrogate.point_features import PointFeatures

Array = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Scale:
    """Log-normal prior of a term's standard deviation: its median and the log's own deviation."""

    median: float
    log_sd: float


@dataclass(frozen=True)
class Scales:
    """Priors of the standard deviations of all terms, of logarithms.

    Attributes:
        constant: shared by all points.
        slope: per unit of the logarithm of the forecast.
        both: artefact and layout together, in units of the forecast's `log_sd`.
        rough: of artefact, largest batch and layout.
        parameters: of the ordinary term over the parameters.
        noise: of one measurement.
    """

    constant: Scale = Scale(0.2, 0.7)
    slope: Scale = Scale(0.1, 1.0)
    artifact: Scale = Scale(0.07, 0.7)
    layout: Scale = Scale(0.05, 0.7)
    both: Scale = Scale(0.8, 0.5)
    smooth: Scale = Scale(0.05, 0.7)
    rough: Scale = Scale(0.12, 0.5)
    point: Scale = Scale(0.02, 0.8)
    parameters: Scale = Scale(0.05, 1.5)
    noise: Scale = Scale(0.03, 0.3)

    @property
    def listed(self) -> list[Scale]:
        """The priors in the order of `Pairs.covariances`, then the ordinary term and the noise."""
        fixed = [self.constant, self.slope, self.artifact, self.layout, self.both]
        return [*fixed, self.smooth, self.rough, self.point, self.parameters, self.noise]

    def widened(self, factor: float) -> Scales:
        """Return priors whose terms, except constant and noise, are larger by a factor."""
        unscaled = ("constant", "noise")
        scales = {f.name: cast(Scale, getattr(self, f.name)) for f in fields(self)}
        wider = {
            n: Scale(factor * s.median, s.log_sd) for n, s in scales.items() if n not in unscaled
        }
        return replace(self, **wider)


SCALE_MULTIPLIERS = ((1.0, 0.55), (2.5, 0.3), (6.0, 0.15))
"""Factors of all terms except constant and noise, and their prior probabilities."""

_NOISE_MULTIPLIERS = (1.0, 2.0, 4.0)
"""Factors of the noise, equally probable before any trial. Decision 2026-12-01: 22 points of the
recorded tables of single models were measured three times or more, and their standard deviations
are near 0.03 (7 points), 0.06 (8) or 0.12 (7). A search has hardly any repeats that tell."""

_DISTANCE_WEIGHT = Scale(1.0, 1.0)
"""Prior of the weight of a squared distance in the ordinary term."""

_BATCH_LENGTH_SCALE = 1.5
"""Length scale of the smooth term, in doublings of the batch size."""

_MOST_OBSERVATIONS = 60
"""Observations that the scales are fitted to: more of them change little."""

_MOST_ITERATIONS = 40


@dataclass(frozen=True)
class Terms:
    """Covariances of the terms, each of unit scale, between points of a space.

    Attributes:
        expected: logarithm of the forecast, centred, [points].
        log_sd: standard deviation of the forecast, [points].
    """

    features: PointFeatures
    expected: Array
    log_sd: Array

    def between(self, one: Rows, two: Rows) -> Pairs:
        """Return covariances and distances between two lists of points."""
        features = self.features
        artifact, layout = _equal(features.artifacts, one, two), _equal(features.layouts, one, two)
        batch = _distance(features.log2_batch[one], features.log2_batch[two])
        covariances = (
            np.ones((len(one), len(two))),
            np.outer(self.expected[one], self.expected[two]),
            artifact,
            layout,
            artifact * layout * np.outer(self.log_sd[one], self.log_sd[two]),
            artifact * np.exp(-batch / (2 * _BATCH_LENGTH_SCALE**2)),
            _equal(features.cells, one, two),
            _equal(np.arange(len(self.expected)), one, two),
        )
        distances = np.empty((len(features.categorical), len(one), len(two)))
        for own, x, categorical in zip(
            distances, features.coordinates.T, features.categorical, strict=True
        ):
            np.subtract(x[one][:, None], x[two][None, :], out=own)
            np.copyto(own, own != 0) if categorical else np.square(own, out=own)
        return Pairs(np.stack(covariances), distances)


@dataclass(frozen=True)
class Pairs:
    """Covariances and distances between two lists of points.

    Attributes:
        covariances: of all terms but the ordinary one, [terms, one, two].
        distances: squared, in every searched parameter, [searched, one, two].
    """

    covariances: Array
    distances: Array


def _equal(codes: NDArray[np.int64], one: Rows, two: Rows) -> Array:
    same: NDArray[np.bool_] = codes[one][:, None] == codes[two][None, :]
    return same.astype(np.float64)


def _distance(one: Array, two: Array) -> Array:
    squares = (one[:, None, :] - two[None, :, :]) ** 2
    return cast(Array, squares.sum(axis=2))


def _matern(squared: Array) -> tuple[Array, Array]:
    """Return the Matern 5/2 covariance, and its derivative by the squared distance."""
    root = np.sqrt(5 * squared)
    decay = np.exp(-root)
    return (1 + root + root**2 / 3) * decay, -5 / 6 * (1 + root) * decay


@dataclass(frozen=True)
class Observations:
    """Residuals of the points `rows`, all arrays of shape [observations].

    Attributes:
        disturbances: standard deviation of each by other processes on the machine, beyond the noise
            of all.
    """

    rows: Rows
    differences: Array
    disturbances: Array

    @classmethod
    def joined(cls, several: Iterable[Observations]) -> Observations:
        """Return several observations as one, in their order."""
        listed = [cls(np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0)), *several]
        return cls(
            np.concatenate([each.rows for each in listed]),
            np.concatenate([each.differences for each in listed]),
            np.concatenate([each.disturbances for each in listed]),
        )

    def at(self, chosen: NDArray[np.int64] | NDArray[np.bool_]) -> Observations:
        """Return some of the observations, by their indices or by a mask."""
        return Observations(self.rows[chosen], self.differences[chosen], self.disturbances[chosen])


@dataclass(frozen=True)
class ResidualModel:
    """The posterior of every point's residual.

    Attributes:
        fits: one for each scale multiplier that is not negligible.
        weights: their probabilities; the sum is 1.
    """

    terms: Terms
    observations: Observations
    fits: tuple[_Fit, ...]
    weights: tuple[float, ...]

    @classmethod
    def fitted(cls, terms: Terms, observations: Observations, scales: Scales) -> ResidualModel:
        """Fit the scales to the observations, given their priors."""
        some = _subsampled(observations)
        result = [_most_likely(terms, some, scales.widened(f).listed) for f, _ in SCALE_MULTIPLIERS]
        priors = (math.log(share) for _, share in SCALE_MULTIPLIERS)
        kept, weights = probable([p + log for p, (_, log) in zip(priors, result, strict=True)])
        fits = tuple(_Fit.of(result[n][0], terms, observations) for n in kept)
        return cls(terms, observations, fits, weights)

    def with_uncertain_noise(self) -> ResidualModel:
        """Return the model with each fit at several noises, weighted by their likelihood.

        Trials of different points hardly tell noise from what is particular to each point, so the
        most likely noise alone makes the model too certain that a trial was not unlucky.
        """
        fits, logs = list[_Fit](), list[float]()
        for fit, weight in zip(self.fits, self.weights, strict=True):
            own = [fit.noisier(f, self.terms, self.observations) for f in _NOISE_MULTIPLIERS]
            fits += own
            likelihoods = [each.log_likelihood(self.observations) for each in own]
            logs += [math.log(weight) + log - likelihoods[0] for log in likelihoods]
        kept, weights = probable(logs)
        return replace(self, fits=tuple(fits[n] for n in kept), weights=weights)

    def given(self, observations: Observations) -> ResidualModel:
        """Return the model with the same scales and other observations."""
        fits = tuple(fit.given(self.terms, observations) for fit in self.fits)
        return replace(self, observations=observations, fits=fits)

    @property
    def noise(self) -> float:
        """Standard deviation of one measurement."""
        return max(fit.noise for fit in self.fits)

    def predict(self, rows: Rows) -> tuple[Array, Array]:
        """Return mean and standard deviation of the points' residuals, without noise."""
        return self.mixture(rows).moments

    def mixture(self, rows: Rows) -> Mixture:
        """Return the predictions of the points by all fits."""
        predictions = self.predictions(rows)
        means = [each.mean for each in predictions]
        return Mixture.of(self.weights, means, [each.variance for each in predictions])

    def predictions(self, rows: Rows) -> list[Prediction]:
        """Return the prediction of the points by each fit."""
        across = self.terms.between(rows, self.observations.rows)
        expected, log_sd = self.terms.expected[rows], self.terms.log_sd[rows]
        return [fit.predict(across, expected, log_sd) for fit in self.fits]

    def draws(self, rows: Rows, count: int, rng: np.random.Generator) -> Array:
        """Return joint draws of the points' residuals, without noise: [count, points]."""
        across, within = (
            self.terms.between(rows, self.observations.rows),
            self.terms.between(rows, rows),
        )
        counts = rng.multinomial(count, self.weights)
        return np.vstack(
            [
                fit.draws(across, within, int(number), rng)
                for fit, number in zip(self.fits, counts, strict=True)
            ]
        )


@dataclass(frozen=True)
class _Fit:
    """The model with given scales.

    Attributes:
        variances: of the terms in the order of `Scales.listed`.
        distance_weights: of the squared distances in the ordinary term, [searched].
        root: lower Cholesky factor of the observations' covariance.
        alpha: dual weights, the inverse of that covariance times the residuals.
    """

    variances: Array
    distance_weights: Array
    root: Array
    alpha: Array

    @classmethod
    def of(cls, theta: Array, terms: Terms, observations: Observations) -> _Fit:
        """Return the fit for the logarithms of scales and weights."""
        split = len(theta) - terms.features.coordinates.shape[1]
        variances, distance_weights = np.exp(2 * theta[:split]), np.exp(theta[split:])
        nothing = np.zeros((0, 0))
        return cls(variances, distance_weights, nothing, np.zeros(0)).given(terms, observations)

    def given(self, terms: Terms, observations: Observations) -> _Fit:
        """Return the fit with the same scales and these observations."""
        if len(observations.rows) == 0:
            return self
        covariance = self.covariance(terms.between(observations.rows, observations.rows))
        noise = np.diag(self.variances[-1] + np.square(observations.disturbances))
        root = linalg.cholesky(covariance + noise, lower=True)
        return replace(
            self, root=root, alpha=linalg.cho_solve((root, True), observations.differences)
        )

    def noisier(self, factor: float, terms: Terms, observations: Observations) -> _Fit:
        """Return the fit with a larger noise."""
        variances = self.variances.copy()
        variances[-1] *= factor**2
        return replace(self, variances=variances).given(terms, observations)

    def log_likelihood(self, observations: Observations) -> float:
        """Return the logarithm of the likelihood of its observations, up to a constant."""
        misfit = float(observations.differences @ self.alpha)
        return -0.5 * misfit - float(np.log(np.diag(self.root)).sum())

    @property
    def noise(self) -> float:
        return math.sqrt(float(self.variances[-1]))

    def covariance(self, pairs: Pairs) -> Array:
        """Return the covariance of the residuals, without noise."""
        result = np.tensordot(self.variances[:-2], pairs.covariances, 1)
        ordinary, _ = _matern(np.tensordot(self.distance_weights, pairs.distances, 1))
        return cast(Array, result + self.variances[-2] * ordinary)

    def predict(self, across: Pairs, expected: Array, log_sd: Array) -> Prediction:
        """Return the prediction, from the covariance with the observations."""
        factors = np.ones((len(expected), len(self.variances) - 1))
        factors[:, 1], factors[:, 4] = expected**2, log_sd**2
        variance = factors @ self.variances[:-1]
        if len(self.alpha) == 0:
            return Prediction(np.zeros(len(expected)), variance, np.zeros((0, len(expected))))
        shared = self.covariance(across)
        explained = linalg.solve_triangular(self.root, shared.T, lower=True)
        return Prediction(shared @ self.alpha, variance - (explained**2).sum(axis=0), explained)

    def draws(self, across: Pairs, within: Pairs, count: int, rng: np.random.Generator) -> Array:
        """Return joint draws, [count, points]."""
        remaining, mean = self.covariance(within), np.zeros(within.covariances.shape[1])
        if len(self.alpha):
            shared = self.covariance(across)
            explained = linalg.solve_triangular(self.root, shared.T, lower=True)
            remaining, mean = remaining - explained.T @ explained, shared @ self.alpha
        root = linalg.cholesky(remaining + 1e-10 * np.eye(len(remaining)), lower=True)
        draws: Array = mean + rng.standard_normal((count, len(remaining))) @ root.T
        return draws


def _most_likely(
    terms: Terms, observations: Observations, scales: Sequence[Scale]
) -> tuple[Array, float]:
    """Return the log scales and log distance weights at the mode, and the mode's log density."""
    priors = [*scales, *([_DISTANCE_WEIGHT] * terms.features.coordinates.shape[1])]
    middle = np.array([math.log(prior.median) for prior in priors])
    if len(observations.rows) == 0:
        return middle, 0.0
    bounds = [(at - 4 * p.log_sd, at + 4 * p.log_sd) for at, p in zip(middle, priors, strict=True)]
    # This import takes half a second, so it is made only where a model is fitted.
    from scipy import optimize

    density = _Likelihood(terms, observations, priors)
    options = {"maxiter": _MOST_ITERATIONS}
    result = optimize.minimize(
        density, middle, jac=True, method="L-BFGS-B", bounds=bounds, options=options
    )
    return cast(Array, result.x), -float(result.fun)


def _subsampled(observations: Observations) -> Observations:
    """Return at most `_MOST_OBSERVATIONS`, evenly spread, the last among them."""
    count = len(observations.rows)
    if count <= _MOST_OBSERVATIONS:
        return observations
    chosen = np.unique(np.linspace(0, count - 1, _MOST_OBSERVATIONS).round().astype(np.int64))
    return observations.at(chosen)


class _Likelihood:
    """Minus the logarithm of the posterior density of the scales, and its gradient."""

    def __init__(self, terms: Terms, observations: Observations, priors: Sequence[Scale]) -> None:
        rows = observations.rows
        # Flat, [terms, pairs of observations]: sums over them are products of matrices.
        pairs, count = terms.between(rows, rows), len(rows) ** 2
        noise = np.eye(len(rows)).reshape(1, count)
        self._fixed = np.vstack([pairs.covariances.reshape(-1, count), noise])
        self._distances = pairs.distances.reshape(-1, count)
        self._differences = observations.differences
        self._disturbance = np.diag(np.square(observations.disturbances)).ravel()
        self._middle = np.array([math.log(prior.median) for prior in priors])
        self._spread = np.array([prior.log_sd for prior in priors])

    def __call__(self, theta: Array) -> tuple[float, Array]:
        split = len(theta) - len(self._distances)
        variances, weights = np.exp(2 * theta[:split]), np.exp(theta[split:])
        # The ordinary term is the last but one, before the noise.
        fixed = np.delete(variances, -2)
        ordinary, slope = _matern(weights @ self._distances)
        covariance = fixed @ self._fixed + variances[-2] * ordinary + self._disturbance
        count = len(self._differences)
        root = linalg.cholesky(covariance.reshape(count, count), lower=True)
        alpha = linalg.cho_solve((root, True), self._differences)
        value = float(0.5 * self._differences @ alpha + np.log(np.diag(root)).sum())
        inverse = linalg.cho_solve((root, True), np.eye(count))
        inner = (inverse - np.outer(alpha, alpha)).ravel()
        by_fixed = fixed * (self._fixed @ inner)
        by_ordinary = variances[-2] * float(inner @ ordinary)
        by_weight = variances[-2] / 2 * weights * (self._distances @ (inner * slope))
        gradient = np.concatenate([by_fixed[:-1], [by_ordinary], by_fixed[-1:], by_weight])
        standardised = (theta - self._middle) / self._spread
        return value + float(
            0.5 * standardised @ standardised
        ), gradient + standardised / self._spread
