"""Make a first axis that is fixed to 1 a dynamic batch, where that changes no answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from optimizer.artifacts.graphs.onnx_graph import label
from optimizer.errors import NoBatchAxis

if TYPE_CHECKING:
    import onnx

NO_BATCHES = "`batched: false` serves the model without batches, with shapes of all axes"
"""What to do about a graph that cannot have a batch axis, for messages."""

BATCH = "batch"
"""Name of a free batch axis."""

_COUNTING = {"Shape", "Size"}
"""Operators whose outputs have axes of their own."""


def size_of_batch(value: onnx.ValueInfoProto) -> int | None:
    """Return the size that the first axis is fixed to; None where it is free.

    A tensor without axes has the size 0.
    """
    if not value.type.tensor_type.HasField("shape"):
        return None
    axes = value.type.tensor_type.shape.dim
    return (axes[0].dim_value or None) if axes else 0


def free_batch_axis(
    model: onnx.ModelProto, inputs: Iterable[onnx.ValueInfoProto], outputs: Iterable[str]
) -> None:
    """Replace the first axis of the inputs, all of size 1 or free, by a dynamic batch.

    Sizes that the batch is part of are inferred anew by ONNX. An axis that ONNX cannot infer may
    follow the batch or not: only an execution shows it.

    Args:
        outputs: names of the graph outputs that are served.

    Raises:
        NoBatchAxis: where the first axis of an output stays 1, with the node that fixes it.
    """
    import onnx

    for value in inputs:
        for axis in value.type.tensor_type.shape.dim[:1]:
            axis.dim_param = BATCH
    del model.graph.value_info[:]
    declared = onnx.GraphProto(output=model.graph.output)
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    inferred = {v.name: v for v in (*graph.input, *graph.value_info, *graph.output)}
    for value, own in zip(model.graph.output, declared.output, strict=True):
        value.CopyFrom(own)
        if value.name not in outputs:
            continue
        if not _follows(inferred, value.name) or size_of_batch(own) not in {None, 1}:
            raise NoBatchAxis(
                f"output {value.name!r}: its first axis must become a batch with that of the"
                f" inputs, which is fixed to 1{_reason(graph, inferred)}"
            )
        if size_of_batch(own) == 1:
            value.type.tensor_type.shape.dim[0].dim_param = BATCH


def _follows(inferred: dict[str, onnx.ValueInfoProto], name: str) -> bool:
    """Return whether the first axis of a tensor is the batch, or may be."""
    return name not in inferred or size_of_batch(inferred[name]) is None


def _is_batch(inferred: dict[str, onnx.ValueInfoProto], name: str) -> bool:
    if name not in inferred:
        return False
    return any(axis.dim_param == BATCH for axis in inferred[name].type.tensor_type.shape.dim[:1])


def _reason(graph: onnx.GraphProto, inferred: dict[str, onnx.ValueInfoProto]) -> str:
    """Name the first node that reads a batch and answers with one row."""
    for node in graph.node:
        reads_batch = any(_is_batch(inferred, name) for name in node.input)
        fixes = any(not _follows(inferred, name) for name in node.output)
        if reads_batch and fixes and node.op_type not in _COUNTING:
            return f"; the node {label(node)!r} ({node.op_type}) fixes the first axis of its output"
    return ""
