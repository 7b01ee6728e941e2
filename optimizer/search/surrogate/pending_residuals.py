"""The residuals of the points that may be proposed, while points are running.

A running point counts as if it had been measured with the expected residual. That leaves every mean
as it is and takes away uncertainty, so that each point costs one more row of a Cholesky factor, and
no fit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from optimizer.search.surrogate.mixture import Mixture
from optimizer.search.surrogate.residuals import ResidualModel, Rows

_AT_ONCE = 128
"""Points that are added together: their distances to all points are kept in memory."""

_MOST_BLOCKS = 50


class PendingResiduals:
    """The posterior of some points' residuals, of which more and more are running."""

    def __init__(self, model: ResidualModel, rows: Rows) -> None:
        self._model = model
        self._rows = rows
        predictions = model.predictions(rows)
        self._means = [each.mean for each in predictions]
        self._variances = [each.variance for each in predictions]
        # Of each fit, the rows of the Cholesky factor times the points' covariances, in blocks.
        self._explained = [[each.explained] for each in predictions]

    def mixture(self, at: NDArray[np.int64] | slice = slice(None)) -> Mixture:
        """Return the predictions of the points with these indices; of all by default."""
        means, variances = [x[at] for x in self._means], [x[at] for x in self._variances]
        return Mixture.of(self._model.weights, means, variances)

    def add(self, at: NDArray[np.int64]) -> None:
        """Count points as measured, by their indices."""
        for start in range(0, len(at), _AT_ONCE):
            self._add(at[start : start + _AT_ONCE])

    def _add(self, at: NDArray[np.int64]) -> None:
        pairs = self._model.terms.between(self._rows[at], self._rows)
        for n, (fit, blocks) in enumerate(zip(self._model.fits, self._explained, strict=True)):
            left = fit.covariance(pairs)
            for block in blocks:
                left -= block[:, at].T @ block
            root = linalg.cholesky(left[:, at] + fit.noise**2 * np.eye(len(at)), lower=True)
            more = linalg.solve_triangular(root, left, lower=True)
            blocks.append(more)
            if len(blocks) > _MOST_BLOCKS:
                blocks[:] = [np.vstack(blocks)]
            self._variances[n] = self._variances[n] - np.square(more).sum(axis=0)
