"""A model's own answers: which outputs cannot judge an artefact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from optimizer.artifacts.build_results import OpenedModel
from optimizer.artifacts.references import fp32_outputs, judged_positions
from optimizer.errors import BuildFailure, LoadTestFailure, NoBatchAxis
from optimizer.workload.streams import OutputTensor, Tensors

ROWS: list[Tensors] = [{"x": np.full((1, 2), n, np.float32)} for n in range(1, 5)]


def outputs(run: Callable[[NDArray[Any]], NDArray[Any]]) -> NDArray[Any]:
    output = OutputTensor("y", "FP32", (2,))
    model = OpenedModel(lambda request: {"y": run(request["x"])}, (output,), 0)
    return fp32_outputs("sums", model, ROWS)["y"]


def test_every_request_is_asked_by_itself() -> None:
    assert outputs(lambda x: 2 * x).tolist() == [[2, 2], [4, 4], [6, 6], [8, 8]]


@pytest.mark.parametrize(
    ("run", "batch", "shape"),
    [
        (lambda x: np.array(np.nonzero(x)), 1, "[2, 2]"),
        (lambda x: x.mean(), 1, "[]"),
        (lambda x: x.mean(axis=0, keepdims=True), 3, "[1, 2]"),
        # As long as the first axis of the input is for one request, and of the data else.
        (lambda x: x.reshape(-1)[: 1 + (len(x) > 1)], 3, "[2]"),
    ],
)
def test_an_output_without_a_row_per_request(
    run: Callable[[NDArray[Any]], NDArray[Any]], batch: int, shape: str
) -> None:
    with pytest.raises(NoBatchAxis) as caught:
        outputs(run)
    assert str(caught.value) == (
        f"output 'y' has no row per request: a batch of {batch} gives the shape {shape}"
    )


def test_an_output_whose_shape_goes_with_the_data() -> None:
    with pytest.raises(NoBatchAxis, match=r"one shape for all requests .* \[1, 1\] and \[1, 2\]"):
        outputs(lambda x: x[:, : 1 + (x[0, 0] > 2)])


def test_an_output_whose_shape_depends_on_the_batch() -> None:
    with pytest.raises(NoBatchAxis) as caught:
        outputs(lambda x: x @ x.T)
    assert str(caught.value) == (
        "output 'y' must have a shape that does not depend on the batch: a request alone gives "
        "[1, 1], a batch of 3 [3, 3]; list the other outputs under `outputs` to leave it out"
    )


def test_a_model_that_takes_no_batches_is_left_to_the_gate() -> None:
    def one_alone(x: NDArray[Any]) -> NDArray[Any]:
        if len(x) > 1:
            raise ValueError("one at a time")
        return x

    assert len(outputs(one_alone)) == 4


def test_a_model_that_fails_says_why() -> None:
    def broken(_: NDArray[Any]) -> NDArray[Any]:
        try:
            raise KeyError("embedding")
        except KeyError as error:
            raise RuntimeError("step 2 of 3 failed") from error

    with pytest.raises(BuildFailure, match=r"^sums: KeyError: 'embedding'$"):
        outputs(broken)
    with pytest.raises(BuildFailure, match=r"^sums: its FP32 output 'y' contains NaN or infinity$"):
        outputs(lambda x: x * np.nan)


def test_a_server_that_fails_names_the_model_itself() -> None:
    def fail(_: NDArray[Any]) -> NDArray[Any]:
        raise LoadTestFailure("m did not answer: step a: no weights")

    with pytest.raises(LoadTestFailure, match=r"^m did not answer: step a: no weights$"):
        outputs(fail)


def test_the_mask_judges_outputs_along_its_own_length_only() -> None:
    rows: list[Tensors] = [{"attention_mask": np.array([[1, 1, 0]])}] * 2
    shapes = {"hidden": (3, 4), "decoded": (2, 4), "start": (3,), "pooled": (4,)}
    values: Tensors = {name: np.zeros((2, *shape)) for name, shape in shapes.items()}
    outputs = [OutputTensor(name, "FP32", (-1, *shape[1:])) for name, shape in shapes.items()]
    judged = judged_positions(rows, outputs, values)
    assert judged.keys() == {"hidden"}
    assert judged["hidden"].tolist() == [[True, True, False]] * 2
