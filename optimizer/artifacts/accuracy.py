"""How close served outputs are to the FP32 reference. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import ConfigMismatch
from optimizer.workload.model_spec import AccuracyLimits

_OF_SPREAD, _OF_ROUNDING, _OF_VALUES = 0.25, 1.0, 1e-4
"""What an answer in a batch may differ by from the same request's single answer: shares of the
differences between requests, of the artefact's distance from FP32, and of the values themselves."""

_OF_INTEGERS = 0.25
"""Share of whole-number answers, such as labels, that rounding may turn into others."""


@dataclass(frozen=True)
class Accuracy:
    """Agreement of served outputs with the reference.

    Attributes:
        argmax_agreement: share of judged positions whose largest value along the last axis is the
            same one, 0 to 1. A position that is not finite disagrees.
        mean_cosine, min_cosine: cosine similarity of whole samples, -1 to 1; 0 for a sample that
            is not finite.
        max_abs_error: largest absolute difference; infinite when any served value is not finite.
        samples: samples compared.
        metric: the task's own, None where there is none.
    """

    argmax_agreement: float
    mean_cosine: float
    min_cosine: float
    max_abs_error: float
    samples: int
    metric: float | None = None


def compare(
    reference: NDArray[Any], served: NDArray[Any], judged: NDArray[np.bool_] | None = None
) -> Accuracy:
    """Compare outputs of equal shape [samples, ...], samples >= 1; `reference` is finite.

    Args:
        judged: shape [samples, positions], for outputs [samples, positions, ..., classes]: what is
            False there counts for nothing, for nobody reads the outputs of padding. None judges
            everything.

    Raises:
        ConfigMismatch: when `served` has another shape.
    """
    if served.shape != reference.shape:
        raise ConfigMismatch(
            f"served outputs have shape {list(served.shape)}, the reference {list(reference.shape)}"
        )
    expected, got = np.asarray(reference, np.float64), np.asarray(served, np.float64)
    if expected.ndim == 1:  # one number for each sample, and no axis of classes
        expected, got = expected[:, None], got[:, None]
    if judged is not None:
        expected, got = _only(judged, expected), _only(judged, got)
    finite = np.isfinite(got)
    known = np.where(finite, got, 0.0)
    cosine = _cosine(_rows(expected), _rows(known)) * _rows(finite).all(axis=1)
    same = (expected.argmax(axis=-1) == known.argmax(axis=-1)) & finite.all(axis=-1)
    return Accuracy(
        argmax_agreement=float(same.mean() if judged is None else same[judged].mean()),
        mean_cosine=float(cosine.mean()),
        min_cosine=float(cosine.min()),
        max_abs_error=float(np.abs(expected - known).max()) if finite.all() else math.inf,
        samples=len(reference),
    )


def misses(accuracy: Accuracy, limits: AccuracyLimits) -> list[str]:
    """Say which limits `accuracy` misses; empty when it meets all of them."""
    found = []
    if not math.isfinite(accuracy.max_abs_error):
        found.append("outputs hold NaN or infinity")
    if accuracy.argmax_agreement < limits.min_argmax_agreement:
        found.append(
            f"argmax agreement must be at least {limits.min_argmax_agreement:g},"
            f" got {accuracy.argmax_agreement:.4f}"
        )
    if accuracy.mean_cosine < limits.min_cosine:
        found.append(
            f"mean cosine must be at least {limits.min_cosine:g}, got {accuracy.mean_cosine:.6f}"
        )
    if limits.max_abs_error is not None and accuracy.max_abs_error > limits.max_abs_error:
        found.append(
            f"absolute error must be at most {limits.max_abs_error:g},"
            f" got {accuracy.max_abs_error:.4g}"
        )
    if limits.metric is not None and (accuracy.metric or 0.0) < limits.metric.minimum:
        found.append(
            f"{limits.metric.function} must be at least {limits.metric.minimum:g},"
            f" got {accuracy.metric}"
        )
    return found


def batch_mismatch(
    reference: NDArray[Any],
    single: NDArray[Any],
    batched: NDArray[Any],
    judged: NDArray[np.bool_] | None = None,
) -> str | None:
    """Say how answers from one batch differ from those that the same requests get alone.

    Rounding goes with the batch. So a difference is allowed that is small beside the differences
    between requests, and as much as the precision explains: the artefact's own largest
    distance from the reference.

    Args:
        reference: FP32 answers, shape [samples, ...].
        single: the artefact's answers to each request by itself, of the same shape.
        batched: shape [batch, ...]; row n answers request n modulo the samples.
        judged: see `compare`.

    Returns:
        None where the answers agree.
    """
    size = len(batched)
    if batched.shape[1:] != single.shape[1:]:
        return f"a batch of {size} is answered with the shape {list(batched.shape)}"
    if not np.isfinite(batched if judged is None else _only(_cycled(judged, size), batched)).all():
        return f"outputs of a batch of {size} hold NaN or infinity"
    if np.issubdtype(reference.dtype, np.integer):
        return _integer_mismatch(_cycled(single, size), batched)
    expected, alone = np.asarray(reference, np.float64), np.asarray(single, np.float64)
    got = np.asarray(batched, np.float64)
    if judged is not None:
        expected, alone = _only(judged, expected), _only(judged, alone)
        got = _only(_cycled(judged, size), got)
    between = _distances(expected, expected.mean(axis=0))
    spread = math.sqrt(np.square(between).mean())
    rounding = float(_distances(alone, expected).max())
    typical = math.sqrt(np.square(expected).mean())
    allowed = _OF_SPREAD * spread + _OF_ROUNDING * rounding + _OF_VALUES * typical
    apart = _distances(got, _cycled(alone, size))
    wrong = np.flatnonzero(apart > allowed)
    if not len(wrong):
        return None
    return (
        f"{len(wrong)} of {size} answers of a batch, the first to request {wrong[0] + 1}, are not "
        f"those that the requests get alone: they differ by up to {apart.max():.3g}, answers to "
        f"different requests by {spread:.3g}"
    )


def _integer_mismatch(alone: NDArray[Any], got: NDArray[Any]) -> str | None:
    other = int((_rows(alone) != _rows(got)).any(axis=1).sum())
    if other <= _OF_INTEGERS * len(got):
        return None
    return f"{other} of {len(got)} answers of a batch are not those that the requests get alone"


def _cycled(values: NDArray[Any], size: int) -> NDArray[Any]:
    repeated: NDArray[Any] = values[np.arange(size) % len(values)]
    return repeated


def _distances(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the root mean square of the difference of each row."""
    distances: NDArray[np.float64] = np.sqrt(np.square(_rows(a - b)).mean(axis=1))
    return distances


def _only(judged: NDArray[np.bool_], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Zeros where nothing is judged."""
    return np.where(np.expand_dims(judged, tuple(range(2, values.ndim))), values, 0.0)


def _rows(values: NDArray[Any]) -> NDArray[Any]:
    return values.reshape(len(values), -1)


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosine of the rows, shape [rows]; two rows of zeros are alike, one is unlike any other."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    cosine = np.divide((a * b).sum(axis=1), lengths, out=np.zeros(len(a)), where=lengths > 0)
    return np.where(both_zero, 1.0, cosine)
