"""A model's own FP32 outputs, and the checks that they can serve as a reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.artifacts.build_results import OpenedModel
from optimizer.errors import BuildFailure, UsageError, cause_text
from optimizer.workload.streams import Tensors, stack


def fp32_outputs(name: str, model: OpenedModel, requests: Sequence[Tensors]) -> NDArray[Any]:
    """Return the outputs for requests of batch 1, each executed alone, shape [requests, ...].

    Args:
        name: model and requests, for messages.

    Raises:
        UsageError: when the output does not have one row per request.
        BuildFailure: when an execution fails, or an output is not finite.
    """
    try:
        answers = [model.run(request) for request in requests]
    except Exception as error:  # whatever the model's own library raises
        raise BuildFailure(f"{name}: {cause_text(error)}") from error
    for answer in answers:
        _check_rows(model.output.name, answer, 1)
    shapes = sorted({answer.shape[1:] for answer in answers})
    if len(shapes) > 1:
        raise UsageError(
            f"output {model.output.name!r} must have one shape for all requests of a length: "
            f"{name} answered {list(shapes[0])} to one and {list(shapes[1])} to another"
        )
    _check_rows_of_a_batch(model, requests)
    outputs: NDArray[Any] = np.concatenate(answers)
    if not np.isfinite(outputs).all():
        raise BuildFailure(f"{name}: its FP32 outputs hold NaN or infinity")
    return outputs


def _check_rows_of_a_batch(model: OpenedModel, requests: Sequence[Tensors]) -> None:
    """Execute a batch of three: with one request, any axis of length 1 could pass for the batch."""
    batch = stack([requests[0], requests[-1], requests[0]])
    try:
        answer = model.run(batch)
    except Exception:  # noqa: BLE001 - the gate reports batch sizes that cannot be executed
        return
    _check_rows(model.output.name, answer, 3)


def _check_rows(output: str, answer: NDArray[Any], batch: int) -> None:
    if answer.shape[:1] != (batch,):
        raise UsageError(
            f"output {output!r} has no row per request: "
            f"a batch of {batch} gives the shape {list(answer.shape)}"
        )
