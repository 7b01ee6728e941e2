"""Graphs in 16 bits from one in FP32: inputs and outputs keep their types."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from graphlib import TopologicalSorter
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from optimizer.artifacts.graphs.onnx_graph import held_tensor, reads, subgraphs

if TYPE_CHECKING:
    import onnx

_TYPE_ATTRIBUTES = {"to", "dtype"}
"""Attributes whose number is the element type of what the node makes."""

_LARGEST_BF16 = float.fromhex("0x1.fep127")


def to_fp16(graph: Path, into: Path) -> None:
    """Write `into`/model.onnx with FP16 weights and arithmetic, and inputs and outputs as before.

    Args:
        graph: directory of the FP32 model.onnx and its external data; Q/DQ pairs get FP16 scales.
        into: directory, emptied of everything else that the conversion leaves.
    """
    source = working_copy(graph, into)
    converted = _in_fp16(source)
    shutil.rmtree(source.parent)
    save(converted, into, external=has_external_data(graph))


def to_bf16(graph: Path, into: Path) -> None:
    """Write `into`/model.onnx with BF16 weights and arithmetic, and inputs and outputs as before.

    The FP16 converter decides what is cast and where; every number comes from the FP32 graph, for
    BF16 has FP32's range, and what went through FP16 would be cut at 65504.

    Args:
        graph: directory of the FP32 model.onnx and its external data.
        into: directory, emptied of everything else that the conversion leaves.
    """
    import onnx

    source = working_copy(graph, into)
    converted = _in_fp16(source)
    _to_bfloat16(converted.graph, onnx.load(source).graph)
    shutil.rmtree(source.parent)
    save(converted, into, external=has_external_data(graph))
    onnx.checker.check_model(into / "model.onnx", full_check=True)


def save(model: onnx.ModelProto, into: Path, *, external: bool) -> None:
    """Write `into`/model.onnx, its nodes in an order in which they can be executed.

    Args:
        external: whether the weights go to model.onnx.data beside it.
    """
    import onnx

    _sort(model.graph)
    path, data = into / "model.onnx", "model.onnx.data"
    onnx.save(model, path, save_as_external_data=external, location=data)


def working_copy(graph: Path, into: Path) -> Path:
    """Copy the graph below `into`: the converters leave files beside what they read."""
    return Path(shutil.copytree(graph, into / "source")) / "model.onnx"


def has_external_data(graph: Path) -> bool:
    """Whether weights lie beside the graph's model.onnx."""
    return any(path.name != "model.onnx" for path in graph.iterdir())


def _in_fp16(source: Path) -> onnx.ModelProto:
    """What the FP16 converter makes of a working copy."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    _hold_numbers_as_tensors(source)
    converted: onnx.ModelProto = convert_float_to_float16(str(source), keep_io_types=True)
    return converted


def _hold_numbers_as_tensors(source: Path) -> None:
    """Give every Constant a tensor: the converter knows no other form, and would leave it FP32."""
    import onnx

    model = onnx.load(source, load_external_data=False)
    for node in model.graph.node:
        tensor = held_tensor(node)
        if tensor is not None:
            node.attribute[0].CopyFrom(onnx.helper.make_attribute("value", tensor))
    onnx.save(model, source)


def _to_bfloat16(converted: onnx.GraphProto, source: onnx.GraphProto) -> None:
    """Make BFLOAT16 of every FLOAT16, with the numbers of the graph that was converted.

    The converter only appends, so whatever it converted stands at the same place in both.
    """
    import onnx

    for value in chain(converted.input, converted.output, converted.value_info):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
    _weights_to_bfloat16(converted.initializer, source.initializer)
    for at, node in enumerate(converted.node):
        before = source.node[at].attribute if at < len(source.node) else ()
        for n, attribute in enumerate(node.attribute):
            if attribute.name in _TYPE_ATTRIBUTES and attribute.i == onnx.TensorProto.FLOAT16:
                attribute.i = onnx.TensorProto.BFLOAT16
            own = before[n] if n < len(before) else attribute
            _weights_to_bfloat16([attribute.t, *attribute.tensors], [own.t, *own.tensors])
            for inner, inner_before in zip(subgraphs(attribute), subgraphs(own), strict=True):
                _to_bfloat16(inner, inner_before)


def _weights_to_bfloat16(
    tensors: Sequence[onnx.TensorProto], sources: Sequence[onnx.TensorProto]
) -> None:
    """Replace FLOAT16 tensors; finite numbers stay finite, or masks of -3.4e38 would make NaN."""
    import onnx
    from ml_dtypes import bfloat16

    for tensor, source in zip(tensors, sources, strict=True):
        if tensor.data_type == onnx.TensorProto.FLOAT16:
            values = onnx.numpy_helper.to_array(source).astype(np.float32)
            finite = np.where(
                np.isinf(values), values, np.clip(values, -_LARGEST_BF16, _LARGEST_BF16)
            )
            made = onnx.numpy_helper.from_array(finite.astype(bfloat16), tensor.name)
            tensor.CopyFrom(made)


def _sort(graph: onnx.GraphProto) -> None:
    """Put makers before users: the converter appends its casts at the end."""
    makers = {name: at for at, node in enumerate(graph.node) for name in node.output}
    needs = {
        at: {makers[name] for name in reads(node) if name in makers}
        for at, node in enumerate(graph.node)
    }
    nodes = [graph.node[at] for at in TopologicalSorter(needs).static_order()]
    del graph.node[:]
    graph.node.extend(nodes)
