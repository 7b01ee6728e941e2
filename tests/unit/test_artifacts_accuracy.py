"""Comparing served outputs with the reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from optimizer.artifacts.accuracy import Accuracy, compare, misses
from optimizer.errors import ConfigMismatch
from optimizer.model_spec import AccuracyLimits

REFERENCE = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 4.0]], np.float32)
STRICT = AccuracyLimits(min_argmax_agreement=1.0, min_cosine=1.0, max_abs_error=0.0)


def test_equal_outputs_meet_the_strictest_limits() -> None:
    accuracy = compare(REFERENCE, REFERENCE)
    assert accuracy == Accuracy(1.0, 1.0, 1.0, 0.0, samples=4)
    assert misses(accuracy, STRICT) == []


def test_figures_of_a_difference() -> None:
    served = REFERENCE.copy()
    served[0] = [0.0, 1.0]
    accuracy = compare(REFERENCE, served)
    assert accuracy == Accuracy(0.75, 0.75, 0.0, 1.0, samples=4)
    assert misses(accuracy, STRICT) == [
        "argmax agreement must be at least 1, got 0.7500",
        "mean cosine must be at least 1, got 0.750000",
        "absolute error must be at most 0, got 1",
    ]


def test_the_argmax_is_over_the_last_axis() -> None:
    reference = np.array([[[0.0, 1.0], [1.0, 0.0]]])
    assert compare(reference, np.array([[[0.0, 1.0], [0.0, 1.0]]])).argmax_agreement == 0.5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_output_that_is_not_finite_always_misses(bad: float) -> None:
    served = REFERENCE.copy()
    served[1, 0] = bad
    accuracy = compare(REFERENCE, served)
    assert accuracy.argmax_agreement == 0.75
    assert accuracy.mean_cosine == 0.75
    assert accuracy.max_abs_error == math.inf
    anything = AccuracyLimits(min_argmax_agreement=0.0, min_cosine=-1.0)
    assert misses(accuracy, anything) == ["outputs hold NaN or infinity"]


def test_samples_of_zeros_are_alike() -> None:
    assert compare(np.zeros((2, 3)), np.zeros((2, 3))).min_cosine == 1.0
    assert compare(np.zeros((1, 2)), np.ones((1, 2))).min_cosine == 0.0


def test_another_shape_is_an_error() -> None:
    with pytest.raises(ConfigMismatch, match=r"shape \[4, 1\], the reference \[4, 2\]"):
        compare(REFERENCE, REFERENCE[:, :1])


@given(arrays(np.float32, (3, 4), elements=st.floats(-1e6, 1e6, width=32)))
def test_an_output_agrees_with_itself(outputs: NDArray[np.float32]) -> None:
    accuracy = compare(outputs, outputs)
    assert accuracy.argmax_agreement == 1.0
    assert accuracy.max_abs_error == 0.0
    assert accuracy.min_cosine == pytest.approx(1.0)


def test_positions_of_padding_count_for_nothing() -> None:
    reference = np.array([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]])
    served = np.array([[[1.0, 0.0], [0.0, 1.0], [np.nan, 9.0]]])
    judged = np.array([[True, True, False]])
    accuracy = compare(reference, served, judged)
    assert (accuracy.argmax_agreement, accuracy.max_abs_error) == (0.5, 1.0)
    assert accuracy.mean_cosine == accuracy.min_cosine == pytest.approx(0.5)


@given(
    arrays(np.float32, (2, 3, 4), elements=st.floats(-1e6, 1e6, width=32)),
    arrays(np.float32, (2, 3, 4)),
    arrays(np.bool_, (2, 3)).filter(lambda judged: bool(judged.any())),
)
def test_whatever_stands_at_positions_that_are_not_judged_changes_nothing(
    reference: NDArray[np.float32], anything: NDArray[np.float32], judged: NDArray[np.bool_]
) -> None:
    served = np.where(judged[..., None], reference, anything)
    accuracy = compare(reference, served, judged)
    assert accuracy.argmax_agreement == 1.0
    assert accuracy.max_abs_error == 0.0
    assert accuracy.min_cosine == pytest.approx(1.0)
