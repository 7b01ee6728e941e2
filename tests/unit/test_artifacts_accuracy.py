"""Comparing served outputs with the reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from optimizer.artifacts.accuracy import (
    Accuracy,
    batch_mismatch,
    compare,
    compare_outputs,
    misses,
    outputs_mismatch,
    worst,
)
from optimizer.errors import ConfigMismatch
from optimizer.workload.model_spec import AccuracyLimits, OutputLimits

REFERENCE = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 4.0]], np.float32)
STRICT = AccuracyLimits(min_argmax_agreement=1.0, min_cosine=1.0, max_abs_error=0.0)


def test_equal_outputs_meet_the_strictest_limits() -> None:
    accuracy = compare(REFERENCE, REFERENCE)
    assert accuracy == Accuracy(1.0, 1.0, 1.0, 0.0, samples=4)
    assert misses({"y": accuracy}, STRICT) == []


def test_figures_of_a_difference() -> None:
    served = REFERENCE.copy()
    served[0] = [0.0, 1.0]
    accuracy = compare(REFERENCE, served)
    assert accuracy == Accuracy(0.75, 0.75, 0.0, 1.0, samples=4)
    assert misses({"y": accuracy}, STRICT) == [
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
    assert misses({"y": accuracy}, anything) == ["outputs contain NaN or infinity"]


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


SAMPLES = np.random.default_rng(3).normal(size=(20, 6))
"""Answers to different requests."""


def cycled(size: int) -> NDArray[np.float64]:
    repeated: NDArray[np.float64] = SAMPLES[np.arange(size) % len(SAMPLES)]
    return repeated


@pytest.mark.parametrize("size", [3, 20, 64])
def test_a_batch_agrees_with_single_answers_up_to_rounding(size: int) -> None:
    rounding = np.random.default_rng(4).normal(size=(size, 6))
    assert batch_mismatch(SAMPLES, SAMPLES, cycled(size) + 1e-6 * rounding) is None
    # What is quantised by batch, as a dynamically quantised graph, differs by a little.
    assert batch_mismatch(SAMPLES, SAMPLES, cycled(size) + 0.05 * rounding) is None
    rough = SAMPLES + 0.3 * np.random.default_rng(5).normal(size=SAMPLES.shape)
    assert batch_mismatch(SAMPLES, rough, cycled(size)) is None


def test_low_precision_explains_no_answer_of_another_request() -> None:
    rough = SAMPLES + 0.05 * np.random.default_rng(5).normal(size=SAMPLES.shape)
    assert batch_mismatch(SAMPLES, rough, np.roll(rough, 1, axis=0)) is not None


def test_requests_whose_answers_are_much_alike_are_told_apart_all_the_same() -> None:
    alike = 10.0 + 0.01 * SAMPLES
    assert batch_mismatch(alike, alike, np.roll(alike, 1, axis=0)) is not None
    assert batch_mismatch(alike, alike, alike * (1 + 1e-6)) is None


def test_one_wrong_row_of_many_is_named() -> None:
    batch = cycled(64)
    batch[40] = 0.0
    assert str(batch_mismatch(SAMPLES, SAMPLES, batch)).startswith(
        "1 of 64 outputs of a batch, the first for request 41, differ from those"
    )


def test_a_batch_of_another_shape_or_without_numbers() -> None:
    shape = batch_mismatch(SAMPLES, SAMPLES, SAMPLES[:8, :3])
    assert shape == "a batch of 8 returns outputs of shape [8, 3]"
    batch = cycled(8)
    batch[7, 5] = np.nan
    infinite = batch_mismatch(SAMPLES, SAMPLES, batch)
    assert infinite == "outputs of a batch of 8 contain NaN or infinity"


def test_padding_of_a_batch_is_not_judged() -> None:
    reference = np.random.default_rng(6).normal(size=(4, 3, 2))
    judged = np.array([[True, True, False]] * 4)
    batch = reference.copy()
    batch[:, 2] = np.nan
    assert batch_mismatch(reference, reference, batch, judged) is None
    batch[2, 1] += 5.0
    assert "the first for request 3" in str(batch_mismatch(reference, reference, batch, judged))


def test_labels_may_differ_where_rounding_decides_and_not_everywhere() -> None:
    labels = np.arange(16).reshape(16, 1)
    batch = labels.copy()
    batch[:4] += 1
    assert batch_mismatch(labels, labels, batch) is None
    batch[8:] = 0
    assert batch_mismatch(labels, labels, batch) == (
        "12 of 16 outputs of a batch differ from those of the requests sent alone"
    )


def test_one_number_per_request_has_no_largest_class() -> None:
    scores = np.array([0.5, 0.7, 0.6999])
    assert compare(scores, np.array([0.5, 0.6999, 0.7])).argmax_agreement == 1.0


USUAL = AccuracyLimits(min_argmax_agreement=0.99, min_cosine=0.99)
TEXTS = np.array([[b"%d" % n] for n in range(20)], object)
LABELS = np.arange(20, dtype=np.int64)


@pytest.mark.parametrize(
    "reference",
    [LABELS, LABELS[:, None], LABELS.astype(np.uint8), TEXTS, np.zeros(20, np.bool_)],
    ids=["int64", "int64 column", "uint8", "texts", "truth values"],
)
def test_labels_and_texts_are_the_same_or_not(reference: NDArray[Any]) -> None:
    equal = compare(reference, reference)
    assert equal == Accuracy(1.0, 1.0, 1.0, 0.0, samples=20)
    assert misses({"y": equal}, STRICT) == []
    served = reference.copy()
    served[:2] = served[2:4] if served.dtype != np.bool_ else ~served[2:4]
    accuracy = compare(reference, served)
    assert (accuracy.argmax_agreement, accuracy.mean_cosine, accuracy.min_cosine) == (0.9, 0.9, 0.0)
    assert misses({"y": accuracy}, USUAL)[0] == "argmax agreement must be at least 0.99, got 0.9000"
    assert misses({"y": accuracy}, AccuracyLimits(0.9, 0.9)) == []


def test_the_difference_of_labels_is_that_of_their_numbers() -> None:
    assert compare(np.array([0, 250], np.uint8), np.array([0, 3], np.uint8)).max_abs_error == 247.0


def test_labels_of_padding_count_for_nothing() -> None:
    reference = np.array([[1, 2, 0], [3, 4, 5]])
    judged = np.array([[True, True, False], [True, True, True]])
    assert compare(reference, np.array([[1, 2, 9], [3, 4, 5]]), judged).argmax_agreement == 1.0
    assert compare(reference, np.array([[1, 7, 9], [3, 4, 5]]), judged).argmax_agreement < 1.0


@pytest.mark.parametrize("column", [False, True])
def test_single_numbers_are_one_vector_of_all_samples(column: bool) -> None:
    reference = np.array([10.0, 20.0, 30.0, 40.0]).reshape((4, 1) if column else (4,))
    assert compare(reference, reference).mean_cosine == pytest.approx(1.0)
    factors = np.array([1.0, 2.0, 1.0, 0.5]).reshape(reference.shape)
    wrong = compare(reference, reference * factors)
    assert wrong.mean_cosine == pytest.approx(0.86, abs=0.01)
    assert wrong.argmax_agreement == 1.0, "a single number has no largest class"
    assert compare(reference, -reference).mean_cosine == pytest.approx(-1.0)
    assert compare(reference, 2 * reference).mean_cosine == pytest.approx(0.8), "a common factor"
    broken = reference.copy()
    broken[1] = np.nan
    assert compare(reference, broken).mean_cosine == 0.0


def test_each_output_is_judged_by_its_own_limits() -> None:
    reference = {"scores": SAMPLES, "label": LABELS}
    served = {"scores": SAMPLES, "label": np.where(LABELS < 2, -1, LABELS)}
    accuracies = compare_outputs(reference, served)
    assert worst(accuracies.values()).argmax_agreement == 0.9
    assert misses(accuracies, USUAL) == [
        "output 'label': argmax agreement must be at least 0.99, got 0.9000",
        "output 'label': mean cosine must be at least 0.99, got 0.900000",
    ]
    own = AccuracyLimits(0.99, 0.99, outputs=(("label", OutputLimits(0.9, 0.9)),))
    assert misses(accuracies, own) == []
    with pytest.raises(ConfigMismatch, match="the served model has no output 'label'"):
        compare_outputs(reference, {"scores": SAMPLES})


def test_a_batch_whose_further_output_is_wrong_is_named() -> None:
    outputs = {"scores": SAMPLES, "texts": TEXTS}
    assert outputs_mismatch(outputs, outputs, outputs, {}) is None
    turned = {**outputs, "texts": np.roll(TEXTS, 1, axis=0)}
    assert outputs_mismatch(outputs, outputs, turned, {}) == (
        "output 'texts': 20 of 20 outputs of a batch differ from those of the requests sent alone"
    )
