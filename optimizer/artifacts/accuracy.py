"""Compare served outputs with the FP32 reference."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import ConfigMismatch
from optimizer.workload.data_types import NUMPY_TYPES, is_ragged
from optimizer.workload.model_spec import AccuracyLimits, OutputLimits

_SPREAD_SHARE, _ROUNDING_SHARE, _VALUE_SHARE = 0.25, 1.0, 1e-4
"""How much the output for a request in a batch may differ from that for the same request alone:
shares of the differences between requests, of the artefact's distance from FP32, and of the values
themselves."""

_INTEGER_SHARE = 0.25
"""Share of integer outputs, such as labels, that rounding may change."""


@dataclass(frozen=True)
class FailingBatch:
    """The smallest batch that an artefact answered wrongly, or not at all."""

    size: int
    reason: str


@dataclass(frozen=True)
class Accuracy:
    """Agreement of served outputs with the reference.

    Attributes:
        argmax_agreement: share of judged positions with the same argmax along the last axis, 0 to
            1. A position that is not finite disagrees.
        mean_cosine, min_cosine: cosine similarity of whole samples, -1 to 1; 0 for a sample that
            is not finite. For an output of one number it is 2ab / (a² + b²) over all samples; for
            labels and texts the share of equal elements.
        max_abs_error: largest absolute difference; infinite when any served value is not finite.
        metric: the task's own metric, None where there is none.
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

    Either may be an array of arrays, where the shape depends on the sample.

    Args:
        judged: shape [samples, positions], for outputs [samples, positions, ..., classes]:
            positions that are False, such as padding, are ignored. None judges every position.

    Raises:
        ConfigMismatch: when `served` has another shape.
    """
    if is_ragged(reference) or is_ragged(served):
        return _compare_each(reference, served)
    if served.shape != reference.shape:
        raise ConfigMismatch(
            f"served outputs have shape {list(served.shape)}, the reference {list(reference.shape)}"
        )
    if not _floating(reference):
        return _agreement(reference, served, judged)
    expected, got = np.asarray(reference, np.float64), np.asarray(served, np.float64)
    if expected.ndim == 1:  # one number for each sample, and no axis of classes
        expected, got = expected[:, None], got[:, None]
    if judged is not None:
        expected, got = _masked(judged, expected), _masked(judged, got)
    finite = np.isfinite(got)
    finite_values = np.where(finite, got, 0.0)
    rows = _rows(expected), _rows(finite_values)
    if rows[0].shape[1] == 1:
        cosine = _similarity_of_numbers(*rows) * finite.all()
    else:
        cosine = _cosine(*rows) * _rows(finite).all(axis=1)
    same = (expected.argmax(axis=-1) == finite_values.argmax(axis=-1)) & finite.all(axis=-1)
    return Accuracy(
        argmax_agreement=float(same.mean() if judged is None else same[judged].mean()),
        mean_cosine=float(cosine.mean()),
        min_cosine=float(cosine.min()),
        max_abs_error=float(np.abs(expected - finite_values).max()) if finite.all() else math.inf,
        samples=len(reference),
    )


def _compare_each(reference: NDArray[Any], served: NDArray[Any]) -> Accuracy:
    """Compare samples whose shape depends on their values, and must be equal; one by one."""
    each = []
    for number, (expected, got) in enumerate(zip(reference, served, strict=True), 1):
        if got.shape != expected.shape:
            raise ConfigMismatch(
                f"the served output for request {number} has shape {list(got.shape)}, the "
                f"reference {list(expected.shape)}"
            )
        if expected.size:
            each.append(compare(expected[None], got[None]))
    if not each:
        return Accuracy(1.0, 1.0, 1.0, 0.0, len(reference))
    return Accuracy(
        argmax_agreement=float(np.mean([own.argmax_agreement for own in each])),
        mean_cosine=float(np.mean([own.mean_cosine for own in each])),
        min_cosine=min(own.min_cosine for own in each),
        max_abs_error=max(own.max_abs_error for own in each),
        samples=len(reference),
    )


def _similarity_of_numbers(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 2ab / (a² + b²) over all samples, shape [1]: 1 only where the numbers are equal.

    The cosine of two single numbers is 1 or -1, and a common factor would not change that of all.
    """
    squares = float((a * a).sum() + (b * b).sum())
    return np.array([2 * float((a * b).sum()) / squares if squares else 1.0])


def _agreement(
    reference: NDArray[Any], served: NDArray[Any], judged: NDArray[np.bool_] | None
) -> Accuracy:
    """Compare values that are the same or not, such as labels and texts."""
    same = np.asarray(reference == served, dtype=np.bool_)
    if judged is not None:
        same |= ~np.expand_dims(judged, tuple(range(2, same.ndim)))
    shares = _rows(same).mean(axis=1)
    differences = np.ones(1) if reference.dtype == np.object_ else _differences(reference, served)
    return Accuracy(
        argmax_agreement=float(shares.mean()),
        mean_cosine=float(shares.mean()),
        min_cosine=float(shares.min()),
        max_abs_error=0.0 if same.all() else float(differences.max()),
        samples=len(reference),
    )


def _differences(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    differences: NDArray[np.float64] = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return np.abs(differences)


def _floating(values: NDArray[Any]) -> bool:
    return np.issubdtype(values.dtype, np.floating) or values.dtype == NUMPY_TYPES["BF16"]


def compare_outputs(
    reference: Mapping[str, NDArray[Any]],
    served: Mapping[str, NDArray[Any]],
    judged: Mapping[str, NDArray[np.bool_]] = MappingProxyType({}),
) -> dict[str, Accuracy]:
    """Compare each output by itself, as `compare` does.

    Raises:
        ConfigMismatch: when an output is missing or has another shape.
    """
    accuracies = {}
    for name, expected in reference.items():
        if name not in served:
            raise ConfigMismatch(f"the served model has no output {name!r}")
        accuracies[name] = compare(expected, served[name], judged.get(name))
    return accuracies


def worst(accuracies: Collection[Accuracy]) -> Accuracy:
    """Return the worst figures of several outputs."""
    return Accuracy(
        argmax_agreement=min(each.argmax_agreement for each in accuracies),
        mean_cosine=min(each.mean_cosine for each in accuracies),
        min_cosine=min(each.min_cosine for each in accuracies),
        max_abs_error=max(each.max_abs_error for each in accuracies),
        samples=min(each.samples for each in accuracies),
        metric=next((each.metric for each in accuracies if each.metric is not None), None),
    )


def misses(accuracies: Mapping[str, Accuracy], limits: AccuracyLimits) -> list[str]:
    """Return a sentence for each limit that an output misses.

    It names the output if there are several. The task's metric is not judged here.
    """
    several = len(accuracies) > 1
    return [
        f"output {name!r}: {text}" if several else text
        for name, accuracy in accuracies.items()
        for text in _misses(accuracy, limits.of(name))
    ]


def _misses(accuracy: Accuracy, limits: OutputLimits) -> list[str]:
    missed = []
    if not math.isfinite(accuracy.max_abs_error):
        missed.append("outputs contain NaN or infinity")
    if accuracy.argmax_agreement < limits.min_argmax_agreement:
        missed.append(
            f"argmax agreement must be at least {limits.min_argmax_agreement:g},"
            f" got {accuracy.argmax_agreement:.4f}"
        )
    if accuracy.mean_cosine < limits.min_cosine:
        missed.append(
            f"mean cosine must be at least {limits.min_cosine:g}, got {accuracy.mean_cosine:.6f}"
        )
    if limits.max_abs_error is not None and accuracy.max_abs_error > limits.max_abs_error:
        missed.append(
            f"absolute error must be at most {limits.max_abs_error:g},"
            f" got {accuracy.max_abs_error:.4g}"
        )
    return missed


def outputs_mismatch(
    reference: Mapping[str, NDArray[Any]],
    single: Mapping[str, NDArray[Any]],
    batched: Mapping[str, NDArray[Any]],
    judged: Mapping[str, NDArray[np.bool_]],
) -> str | None:
    """Describe the first output that differs in a batch, as `batch_mismatch` does."""
    for name, expected in reference.items():
        wrong = batch_mismatch(expected, single[name], batched[name], judged.get(name))
        if wrong is not None:
            return f"output {name!r}: {wrong}" if len(reference) > 1 else wrong
    return None


def batch_mismatch(
    reference: NDArray[Any],
    single: NDArray[Any],
    batched: NDArray[Any],
    judged: NDArray[np.bool_] | None = None,
) -> str | None:
    """Describe how outputs of one batch differ from those of the same requests sent alone.

    Rounding depends on the batch size. A difference is therefore allowed if it is small beside the
    differences between requests, or within the artefact's largest distance from the reference.

    Args:
        reference: FP32 outputs, shape [samples, ...].
        single: the artefact's outputs for each request by itself, of the same shape.
        batched: shape [batch, ...]; row n belongs to request n modulo the samples.
        judged: as in `compare`.

    Returns:
        None where the outputs agree.
    """
    size = len(batched)
    if batched.shape[1:] != single.shape[1:]:
        return f"a batch of {size} returns outputs of shape {list(batched.shape)}"
    if not _floating(reference):
        return _integer_mismatch(_cycled(single, size), batched)
    checked = batched if judged is None else _masked(_cycled(judged, size), batched)
    if not np.isfinite(checked).all():
        return f"outputs of a batch of {size} contain NaN or infinity"
    expected, alone = np.asarray(reference, np.float64), np.asarray(single, np.float64)
    in_batch = np.asarray(batched, np.float64)
    if judged is not None:
        expected, alone = _masked(judged, expected), _masked(judged, alone)
        in_batch = _masked(_cycled(judged, size), in_batch)
    between = _distances(expected, expected.mean(axis=0))
    spread = math.sqrt(np.square(between).mean())
    rounding = float(_distances(alone, expected).max())
    typical = math.sqrt(np.square(expected).mean())
    allowed = _SPREAD_SHARE * spread + _ROUNDING_SHARE * rounding + _VALUE_SHARE * typical
    apart = _distances(in_batch, _cycled(alone, size))
    wrong = np.flatnonzero(apart > allowed)
    if not len(wrong):
        return None
    return (
        f"{len(wrong)} of {size} outputs of a batch, the first for request {wrong[0] + 1}, differ "
        f"from those of the requests sent alone, by up to {apart.max():.3g}; outputs of different "
        f"requests differ by {spread:.3g}"
    )


def _integer_mismatch(alone: NDArray[Any], in_batch: NDArray[Any]) -> str | None:
    different = int((_rows(alone) != _rows(in_batch)).any(axis=1).sum())
    if different <= _INTEGER_SHARE * len(in_batch):
        return None
    return (
        f"{different} of {len(in_batch)} outputs of a batch differ from those of the requests sent"
        " alone"
    )


def _cycled(values: NDArray[Any], size: int) -> NDArray[Any]:
    repeated: NDArray[Any] = values[np.arange(size) % len(values)]
    return repeated


def _distances(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the root mean square of the difference of each row."""
    distances: NDArray[np.float64] = np.sqrt(np.square(_rows(a - b)).mean(axis=1))
    return distances


def _masked(judged: NDArray[np.bool_], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the values with zeros where nothing is judged."""
    return np.where(np.expand_dims(judged, tuple(range(2, values.ndim))), values, 0.0)


def _rows(values: NDArray[Any]) -> NDArray[Any]:
    return values.reshape(len(values), -1)


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cosine of the rows, shape [rows]: 1 for two rows of zeros, 0 for one of them."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    cosine = np.divide((a * b).sum(axis=1), lengths, out=np.zeros(len(a)), where=lengths > 0)
    return np.where(both_zero, 1.0, cosine)
