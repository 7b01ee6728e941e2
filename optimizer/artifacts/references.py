"""A model's own FP32 outputs, and the checks that they can serve as a reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.artifacts.build_results import OpenedModel
from optimizer.artifacts.datasets import MASK
from optimizer.errors import (
    BuildFailure,
    LoadTestFailure,
    NoBatchAxis,
    ServerFailure,
    cause_text,
)
from optimizer.workload.data_types import concatenated
from optimizer.workload.streams import OutputTensor, Tensors, stack, with_batch_axis


def fp32_outputs(
    name: str, model: OpenedModel, requests: Sequence[Tensors], *, batched: bool = True
) -> Tensors:
    """Return the outputs for requests of one inference, each executed alone.

    Args:
        name: model and requests, for messages.
        batched: whether tensors have a batch axis.

    Returns:
        By name, shape [requests, ...]; an array of arrays where their shapes depend on the request,
        which only a model without a batch axis may have.

    Raises:
        NoBatchAxis: when an output does not have one row per request, all of one shape.
        BuildFailure: when an execution fails, or an output is not finite.
        LoadTestFailure, ServerFailure: when a server that executes the model fails.
    """
    try:
        answers = [model.run(request) for request in requests]
    except (LoadTestFailure, ServerFailure):  # which name the model
        raise
    except Exception as error:  # whatever the model's own library raises
        raise BuildFailure(f"{name}: {cause_text(error)}") from error
    if batched:
        _check_rows(answers, [1] * len(answers))
        _check_a_batch(model, requests, answers)
        for output in model.outputs:
            _check_shapes(output.name, [answer[output.name] for answer in answers])
    else:
        answers = [with_batch_axis(answer) for answer in answers]
    return {output.name: _rows_of(name, output.name, answers) for output in model.outputs}


def _check_shapes(output: str, answers: Sequence[NDArray[Any]]) -> None:
    shapes = sorted({answer.shape for answer in answers})
    if len(shapes) > 1:
        raise NoBatchAxis(
            f"output {output!r} must have one shape for all requests of one shape, got "
            f"{list(shapes[0])} and {list(shapes[1])}; list the other outputs under `outputs` to "
            "leave it out"
        )


def _rows_of(name: str, output: str, answers: Sequence[Tensors]) -> NDArray[Any]:
    arrays = [answer[output] for answer in answers]
    for array in arrays:
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise BuildFailure(f"{name}: its FP32 output {output!r} contains NaN or infinity")
    return concatenated(arrays)


def _check_a_batch(
    model: OpenedModel, requests: Sequence[Tensors], alone: Sequence[Tensors]
) -> None:
    """Execute a batch of three: with one request, any axis of length 1 could pass for the batch."""
    batch = stack([requests[0], requests[-1], requests[0]])
    try:
        answer = model.run(batch)
    except Exception:  # noqa: BLE001 - the gate reports batch sizes that cannot be executed
        return
    _check_rows([answer], [3])
    for output, array in answer.items():
        shapes = {each[output].shape for each in (alone[0], alone[-1])}
        # Shapes that depend on the data are reported for requests alone.
        if len(shapes) == 1 and array.shape[1:] not in {shape[1:] for shape in shapes}:
            raise NoBatchAxis(
                f"output {output!r} must have a shape that does not depend on the batch: a request "
                f"alone gives {list(*shapes)}, a batch of 3 {list(array.shape)}; list the other "
                "outputs under `outputs` to leave it out"
            )


def _check_rows(answers: Sequence[Tensors], batches: Sequence[int]) -> None:
    for answer, batch in zip(answers, batches, strict=True):
        for output, array in answer.items():
            if array.shape[:1] != (batch,):
                raise NoBatchAxis(
                    f"output {output!r} has no row per request: "
                    f"a batch of {batch} gives the shape {list(array.shape)}"
                )


def judged_positions(
    rows: list[Tensors],
    outputs: Sequence[OutputTensor],
    values: Tensors,
    *,
    batched: bool = True,
) -> dict[str, NDArray[np.bool_]]:
    """Return `Reference.judged`.

    The first axis of an output is the length where it is free and as long as the mask: that of a
    decoder's output, for example, is another one.

    Args:
        values: of the outputs for `rows`, shape [rows, ...].
        batched: whether the rows have a batch axis.
    """
    rows = rows if batched else [with_batch_axis(row) for row in rows]
    if any(MASK not in row or row[MASK].ndim != 2 for row in rows):
        return {}
    judged: NDArray[np.bool_] = np.concatenate([row[MASK] for row in rows]).astype(np.bool_)
    free = [output.name for output in outputs if len(output.shape) > 1 and output.shape[0] == -1]
    with_length = [name for name in free if values[name].shape[1:2] == judged.shape[1:]]
    return dict.fromkeys(with_length, judged) if judged.any() else {}
