"""How measurements differ from the simulator's forecast, and what that says of other points. Pure.

A Gaussian process on the difference of logarithms, measured less forecast. It is a sum of terms: a
constant; a share of the forecast itself, which may be told too steeply; one for each artefact, for
each layout, and for both together as far as the forecast is unsure; a smooth one over the batch
sizes of an artefact; a rough one that is new for every artefact, batch size and layout; a small one
for every point; and an ordinary one over the parameters, which learns from the data alone where the
forecast is worthless.

How large each is, is learnt from the data: the most likely scales, each with a log-normal prior.
That is done for a good, a poor and a worthless forecast (`SCALE_MULTIPLIERS`), and the three fits
are averaged, weighted by their posterior probability. So a few good measurements narrow the
posterior, and a single surprise widens it: with the most likely scales alone, three measurements
that happen to fit would end a search.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from optimizer.search.surrogate.point_features import PointFeatures

Array = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Scale:
    """Standard deviation of a term: its median, and the standard deviation of its logarithm."""

    median: float
    log_sd: float


@dataclass(frozen=True)
class Scales:
    """What is thought of the size of every term before anything is measured; of logarithms.

    Attributes:
        constant: what all points share.
        slope: for each unit of the logarithm of the forecast.
        both: artefact and layout together, in units of the forecast's own `log_sd`.
        rough: of artefact, largest batch and layout.
        parameters: the ordinary term over the parameters.
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
        """In the order of `Pairs.covariances`, the ordinary term and the noise last."""
        own = [self.constant, self.slope, self.artifact, self.layout, self.both]
        own += [self.smooth, self.rough, self.point]
        return [*own, self.parameters, self.noise]

    def widened(self, factor: float) -> Scales:
        """Every term but constant and noise so much larger."""
        kept = ("constant", "noise")
        own = {f.name: cast(Scale, getattr(self, f.name)) for f in fields(self)}
        wider = {n: Scale(factor * s.median, s.log_sd) for n, s in own.items() if n not in kept}
        return replace(self, **wider)


SCALE_MULTIPLIERS = ((1.0, 0.55), (2.5, 0.3), (6.0, 0.15))
"""By how much every term but constant and noise may be larger, and how likely that is."""

_NEGLIGIBLE = 0.002
"""Probability of a wrongness that is left out."""

_REACH = Scale(1.0, 1.0)
"""Of the weight of a squared distance in the ordinary term."""

_BATCH_REACH = 1.5
"""Doublings of the batch size over which the smooth term changes."""

_MOST_FOR_SCALES = 60
"""Observations from which the scales are learnt: they change little with more."""

_MOST_STEPS = 40


@dataclass(frozen=True)
class Terms:
    """Covariances of the terms, each of unit scale, between points of a space.

    Attributes:
        expected: logarithm of what is forecast, centred, [points].
        log_sd: how unsure the forecast is, [points].
    """

    features: PointFeatures
    expected: Array
    log_sd: Array

    def between(self, one: Rows, two: Rows) -> Pairs:
        """Covariances and distances of these points."""
        like = self.features
        artifact, layout = _equal(like.artifacts, one, two), _equal(like.layouts, one, two)
        batch = _distance(like.log2_batch[one], like.log2_batch[two])
        covariances = [
            np.ones((len(one), len(two))),
            np.outer(self.expected[one], self.expected[two]),
            artifact,
            layout,
            artifact * layout * np.outer(self.log_sd[one], self.log_sd[two]),
            artifact * np.exp(-batch / (2 * _BATCH_REACH**2)),
            _equal(like.cells, one, two),
            _equal(np.arange(len(self.expected)), one, two),
        ]
        distances = [
            np.where(apart != 0, 1.0, 0.0) if categorical else np.square(apart)
            for apart, categorical in zip(self._apart(one, two), like.categorical, strict=True)
        ]
        shape = (len(distances), len(one), len(two))
        return Pairs(np.array(covariances), np.array(distances).reshape(shape))

    def _apart(self, one: Rows, two: Rows) -> Iterator[Array]:
        """Difference in every parameter that has a choice, each of shape [one, two]."""
        coordinates = self.features.coordinates
        for own in coordinates.T:
            yield own[one][:, None] - own[two][None, :]


@dataclass(frozen=True)
class Pairs:
    """What the pairs of two lists of points have in common.

    Attributes:
        covariances: of the terms but the ordinary one, [terms, one, two].
        distances: squared, in every parameter that has a choice, [searched, one, two].
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
    """Matern covariance of smoothness 5/2, and its derivative by the squared distance."""
    root = np.sqrt(5 * squared)
    decay = np.exp(-root)
    return (1 + root + root**2 / 3) * decay, -5 / 6 * (1 + root) * decay


@dataclass(frozen=True)
class Observations:
    """Differences that were seen, measured less forecast, of the points `rows`; [observations]."""

    rows: Rows
    differences: Array

    @classmethod
    def joined(cls, several: Iterable[Observations]) -> Observations:
        """All of them, in their order."""
        listed = [cls(np.zeros(0, dtype=np.int64), np.zeros(0)), *several]
        return cls(
            np.concatenate([each.rows for each in listed]),
            np.concatenate([each.differences for each in listed]),
        )


@dataclass(frozen=True)
class ResidualModel:
    """What the observations say of every point's difference.

    Attributes:
        fits: one for each wrongness of the forecast that is worth a thought.
        weights: how likely each is; the sum is 1.
    """

    terms: Terms
    seen: Observations
    fits: tuple[_Fit, ...]
    weights: tuple[float, ...]

    @classmethod
    def fitted(cls, terms: Terms, seen: Observations, scales: Scales) -> ResidualModel:
        """With the scales that are the most likely by the observations and the priors."""
        some = _some(seen)
        found = [_most_likely(terms, some, scales.widened(f).listed) for f, _ in SCALE_MULTIPLIERS]
        logs = np.array([math.log(share) for _, share in SCALE_MULTIPLIERS]) + [
            log for _, log in found
        ]
        weights = np.exp(logs - logs.max())
        weights /= weights.sum()
        kept = np.flatnonzero(weights >= _NEGLIGIBLE)
        fits = tuple(_Fit.of(found[n][0], terms, seen) for n in kept)
        return cls(terms, seen, fits, tuple((weights[kept] / weights[kept].sum()).tolist()))

    def given(self, seen: Observations) -> ResidualModel:
        """With the same scales, what other observations say."""
        fits = tuple(fit.given(self.terms, seen) for fit in self.fits)
        return replace(self, seen=seen, fits=fits)

    def with_pending(self, rows: Rows) -> ResidualModel:
        """As if these points had been measured and were what is expected of them."""
        mean, _ = self.predict(rows)
        seen, told = self.seen.rows, self.seen.differences
        return self.given(Observations(np.concatenate([seen, rows]), np.concatenate([told, mean])))

    @property
    def noise(self) -> float:
        """Standard deviation of one measurement, as learnt."""
        return max(fit.noise for fit in self.fits)

    def predict(self, rows: Rows) -> tuple[Array, Array]:
        """Mean and standard deviation of the differences of these points, without noise."""
        means, squares = np.zeros(len(rows)), np.zeros(len(rows))
        for weight, (mean, sd) in zip(self.weights, self._predictions(rows), strict=True):
            means += weight * mean
            squares += weight * (mean**2 + sd**2)
        return means, np.sqrt(np.maximum(squares - means**2, 1e-12))

    def expectation(self, rows: Rows, of: Callable[[Array, Array], Array]) -> Array:
        """Of what is a function of mean and standard deviation, [rows]."""
        found = np.zeros(len(rows))
        for weight, (mean, sd) in zip(self.weights, self._predictions(rows), strict=True):
            found += weight * of(mean, sd)
        return found

    def _predictions(self, rows: Rows) -> list[tuple[Array, Array]]:
        across = self.terms.between(rows, self.seen.rows)
        expected, log_sd = self.terms.expected[rows], self.terms.log_sd[rows]
        return [fit.predict(across, expected, log_sd) for fit in self.fits]

    def draws(self, rows: Rows, count: int, rng: np.random.Generator) -> Array:
        """Joint draws of the differences of these points, without noise: [count, points]."""
        across, within = self.terms.between(rows, self.seen.rows), self.terms.between(rows, rows)
        counts = rng.multinomial(count, self.weights)
        return np.vstack(
            [
                fit.draws(across, within, int(own), rng)
                for fit, own in zip(self.fits, counts, strict=True)
            ]
        )


@dataclass(frozen=True)
class _Fit:
    """The model with certain scales.

    Attributes:
        variances: of the terms in the order of `Scales.listed`.
        reach: weights of the squared distances in the ordinary term, [searched].
        root: lower Cholesky factor of the covariance of what was seen.
        answers: the inverse of that covariance times the differences.
    """

    variances: Array
    reach: Array
    root: Array
    answers: Array

    @classmethod
    def of(cls, theta: Array, terms: Terms, seen: Observations) -> _Fit:
        """From the logarithms of scales and weights."""
        split = len(theta) - terms.features.coordinates.shape[1]
        variances, reach = np.exp(2 * theta[:split]), np.exp(theta[split:])
        nothing = np.zeros((0, 0))
        return cls(variances, reach, nothing, np.zeros(0)).given(terms, seen)

    def given(self, terms: Terms, seen: Observations) -> _Fit:
        """With the same scales, what these observations say."""
        if len(seen.rows) == 0:
            return self
        own = self.covariance(terms.between(seen.rows, seen.rows))
        root = linalg.cholesky(own + self.variances[-1] * np.eye(len(own)), lower=True)
        return replace(self, root=root, answers=linalg.cho_solve((root, True), seen.differences))

    @property
    def noise(self) -> float:
        return math.sqrt(float(self.variances[-1]))

    def covariance(self, pairs: Pairs) -> Array:
        """Of the differences, without noise."""
        found = np.tensordot(self.variances[:-2], pairs.covariances, 1)
        ordinary, _ = _matern(np.tensordot(self.reach, pairs.distances, 1))
        return cast(Array, found + self.variances[-2] * ordinary)

    def predict(self, across: Pairs, expected: Array, log_sd: Array) -> tuple[Array, Array]:
        """Mean and standard deviation, from what the points share with those that were seen."""
        own = np.ones((len(expected), len(self.variances) - 1))
        own[:, 1], own[:, 4] = expected**2, log_sd**2
        variance = own @ self.variances[:-1]
        if len(self.answers) == 0:
            return np.zeros(len(expected)), np.sqrt(variance)
        shared = self.covariance(across)
        explained = linalg.solve_triangular(self.root, shared.T, lower=True)
        left = variance - (explained**2).sum(axis=0)
        return shared @ self.answers, np.sqrt(np.maximum(left, 1e-12))

    def draws(self, across: Pairs, within: Pairs, count: int, rng: np.random.Generator) -> Array:
        """Joint draws, [count, points]."""
        left, mean = self.covariance(within), np.zeros(within.covariances.shape[1])
        if len(self.answers):
            shared = self.covariance(across)
            explained = linalg.solve_triangular(self.root, shared.T, lower=True)
            left, mean = left - explained.T @ explained, shared @ self.answers
        root = linalg.cholesky(left + 1e-10 * np.eye(len(left)), lower=True)
        drawn: Array = mean + rng.standard_normal((count, len(left))) @ root.T
        return drawn


def _most_likely(terms: Terms, seen: Observations, scales: Sequence[Scale]) -> tuple[Array, float]:
    """Logarithms of the scales, then of the weights of distances; and how likely these are."""
    priors = [*scales, *([_REACH] * terms.features.coordinates.shape[1])]
    middle = np.array([math.log(prior.median) for prior in priors])
    if len(seen.rows) == 0:
        return middle, 0.0
    bounds = [(at - 4 * p.log_sd, at + 4 * p.log_sd) for at, p in zip(middle, priors, strict=True)]
    # This import takes half a second: only what fits a model pays for it.
    from scipy import optimize

    found = optimize.minimize(
        _Likelihood(terms, seen, priors), middle, jac=True, method="L-BFGS-B", bounds=bounds,
        options={"maxiter": _MOST_STEPS},
    )  # fmt: skip
    return cast(Array, found.x), -float(found.fun)


def _some(seen: Observations) -> Observations:
    """At most as many as the scales are learnt from, evenly spread, the last among them."""
    count = len(seen.rows)
    if count <= _MOST_FOR_SCALES:
        return seen
    kept = np.unique(np.linspace(0, count - 1, _MOST_FOR_SCALES).round().astype(np.int64))
    return Observations(seen.rows[kept], seen.differences[kept])


class _Likelihood:
    """Minus the logarithm of the posterior density of the scales, and its gradient."""

    def __init__(self, terms: Terms, seen: Observations, priors: Sequence[Scale]) -> None:
        rows = seen.rows
        # Flat, [terms, pairs of observations]: sums over them are products of matrices.
        pairs, count = terms.between(rows, rows), len(rows) ** 2
        noise = np.eye(len(rows)).reshape(1, count)
        self._fixed = np.vstack([pairs.covariances.reshape(-1, count), noise])
        self._distances = pairs.distances.reshape(-1, count)
        self._differences = seen.differences
        self._middle = np.array([math.log(prior.median) for prior in priors])
        self._spread = np.array([prior.log_sd for prior in priors])

    def __call__(self, theta: Array) -> tuple[float, Array]:
        split = len(theta) - len(self._distances)
        variances, weights = np.exp(2 * theta[:split]), np.exp(theta[split:])
        # The ordinary term is the last but one, before the noise.
        fixed = np.delete(variances, -2)
        ordinary, slope = _matern(weights @ self._distances)
        covariance = fixed @ self._fixed + variances[-2] * ordinary
        count = len(self._differences)
        root = linalg.cholesky(covariance.reshape(count, count), lower=True)
        answers = linalg.cho_solve((root, True), self._differences)
        value = float(0.5 * self._differences @ answers + np.log(np.diag(root)).sum())
        inverse = linalg.cho_solve((root, True), np.eye(count))
        inner = (inverse - np.outer(answers, answers)).ravel()
        by_fixed = fixed * (self._fixed @ inner)
        by_ordinary = variances[-2] * float(inner @ ordinary)
        by_weight = variances[-2] / 2 * weights * (self._distances @ (inner * slope))
        gradient = np.concatenate([by_fixed[:-1], [by_ordinary], by_fixed[-1:], by_weight])
        away = (theta - self._middle) / self._spread
        return value + float(0.5 * away @ away), gradient + away / self._spread
