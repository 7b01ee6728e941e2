"""Whether a space file's inputs and outputs fit those of an ONNX graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from optimizer.artifacts.graphs.batch_axis import NO_BATCHES, size_of_batch
from optimizer.artifacts.graphs.exporter_forms import is_tensor
from optimizer.errors import NoBatchAxis, UsageError
from optimizer.workload.data_types import NUMPY_TYPES, DataType
from optimizer.workload.model_spec import chosen_outputs
from optimizer.workload.streams import OutputTensor, Payloads, TensorSpec

if TYPE_CHECKING:
    import onnx

_TRITON_TYPES: dict[str, DataType] = {
    "BOOL": "BOOL",
    "UINT8": "UINT8",
    "UINT16": "UINT16",
    "UINT32": "UINT32",
    "UINT64": "UINT64",
    "INT8": "INT8",
    "INT16": "INT16",
    "INT32": "INT32",
    "INT64": "INT64",
    "FLOAT16": "FP16",
    "FLOAT": "FP32",
    "DOUBLE": "FP64",
    "BFLOAT16": "BF16",
    "STRING": "BYTES",
}
"""Triton's names of the ONNX element types."""


def graph_inputs(graph: onnx.GraphProto) -> dict[str, onnx.ValueInfoProto]:
    """Return the inputs by name, without initializers, which old IR versions list as inputs."""
    weights = {tensor.name for tensor in graph.initializer}
    return {value.name: value for value in graph.input if value.name not in weights}


def check_inputs(inputs: Mapping[str, onnx.ValueInfoProto], payloads: Payloads) -> None:
    """Raise UsageError where requests do not fit the inputs; a batch of size 1 may be freed."""
    given = {spec.name: spec for spec in payloads.tensors}
    if inputs.keys() != given.keys():
        raise UsageError(
            f"the ONNX graph has the inputs {', '.join(sorted(inputs))};"
            f" the payloads give {', '.join(sorted(given))}"
        )
    for name, spec in given.items():
        _check_input(inputs[name], spec, batched=payloads.batched)


def served_outputs(
    graph: onnx.GraphProto, wanted: Sequence[str], *, batched: bool
) -> list[onnx.ValueInfoProto]:
    """Return the wanted outputs, all tensors of the graph where none is named.

    Raises:
        UsageError: where the graph lacks one, or Triton cannot serve one.
        NoBatchAxis: where one has no batch axis and must have one.
    """
    tensors = {value.name: value for value in graph.output if is_tensor(value)}
    for value in graph.output:
        if value.name in wanted and value.name not in tensors:
            raise UsageError(
                f"output {value.name!r} must be a tensor, the ONNX graph gives a {_kind(value)};"
                f" its tensors are {', '.join(tensors) or 'none'}"
            )
    served = list(chosen_outputs(tensors, wanted).values())
    for value in served:
        if batched and size_of_batch(value) not in {None, 1}:
            raise NoBatchAxis(
                f"output {value.name!r} must have a batch as its first axis, got {_sizes(value)}"
            )
        if not batched and size_of_batch(value) == 0:
            raise UsageError(
                f"output {value.name!r} must have an axis, since Triton has no scalars;"
                " leave it out of `outputs`"
            )
    return served


def output_tensor(value: onnx.ValueInfoProto, rank: int | None, *, batched: bool) -> OutputTensor:
    """Return an output as Triton describes it.

    Args:
        rank: number of its axes where an execution showed it; None where the graph declares them.

    Raises:
        UsageError: where Triton has no such data type.
    """
    import onnx

    onnx_type = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
    if onnx_type not in _TRITON_TYPES:
        raise UsageError(
            f"output {value.name!r} must be one of {', '.join(_TRITON_TYPES)}, got {onnx_type}"
        )
    declared = value.type.tensor_type.HasField("shape")
    sizes = [size or -1 for size in _sizes(value)] if declared else [-1] * (rank or 0)
    return OutputTensor(value.name, _TRITON_TYPES[onnx_type], tuple(sizes[1 if batched else 0 :]))


def _check_input(value: onnx.ValueInfoProto, spec: TensorSpec, *, batched: bool) -> None:
    import onnx

    if not is_tensor(value):
        raise UsageError(
            f"{spec.name}: the ONNX graph must take a tensor, and takes a {_kind(value)}"
        )
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    if dtype != NUMPY_TYPES[spec.data_type]:
        raise UsageError(f"{spec.name}: the ONNX graph takes {dtype}, got {spec.data_type}")
    if not tensor.HasField("shape"):
        return
    sizes, given = _sizes(value), list(spec.sized(dict.fromkeys(spec.free, 0)))
    if batched and size_of_batch(value) not in {None, 1}:
        raise UsageError(
            f"{spec.name}: the first axis must be a batch, the ONNX graph takes {sizes}"
            f" (None is any size); {NO_BATCHES}"
        )
    fits = len(sizes) - batched == len(given) and all(
        size is None or size == own for size, own in zip(sizes[batched:], given, strict=True)
    )
    if not fits:
        named = ", ".join(map(str, (["None"] if batched else []) + list(spec.shape)))
        raise UsageError(
            f"{spec.name}: the ONNX graph takes {sizes} (None is any size), got [{named}]"
        )


def _sizes(value: onnx.ValueInfoProto) -> list[int | None]:
    return [axis.dim_value or None for axis in value.type.tensor_type.shape.dim]


def _kind(value: onnx.ValueInfoProto) -> str:
    return (value.type.WhichOneof("value") or "value of no type").removesuffix("_type")
