"""Convert an FP32 graph to FP16 or BF16; inputs and outputs keep their types."""

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
"""Attributes that give the element type of a node's output."""

_LARGEST_BF16 = float.fromhex("0x1.fep127")


def to_fp16(graph: Path, into: Path) -> None:
    """Write `into`/model.onnx with FP16 weights and arithmetic.

    Args:
        graph: directory of the FP32 model.onnx and its external data; Q/DQ pairs get FP16 scales.
        into: directory; temporary files of the conversion are removed from it.
    """
    source = working_copy(graph, into)
    converted = _in_fp16(source)
    shutil.rmtree(source.parent)
    save(converted, into, external=has_external_data(graph))


def to_bf16(graph: Path, into: Path) -> None:
    """Write `into`/model.onnx with BF16 weights and arithmetic.

    The FP16 converter decides where casts go. Every number comes from the FP32 graph, since BF16
    has FP32's range and FP16 would clip at 65504.

    Args:
        graph: directory of the FP32 model.onnx and its external data.
        into: directory; temporary files of the conversion are removed from it.
    """
    import onnx

    source = working_copy(graph, into)
    converted = _in_fp16(source)
    _to_bfloat16(converted.graph, onnx.load(source).graph)
    shutil.rmtree(source.parent)
    save(converted, into, external=has_external_data(graph))
    onnx.checker.check_model(into / "model.onnx", full_check=True)


def save(model: onnx.ModelProto, into: Path, *, external: bool) -> None:
    """Write `into`/model.onnx with its nodes in topological order.

    Args:
        external: whether the weights go to model.onnx.data beside it.
    """
    import onnx

    _sort(model.graph)
    path, data = into / "model.onnx", "model.onnx.data"
    onnx.save(model, path, save_as_external_data=external, location=data)


def working_copy(graph: Path, into: Path) -> Path:
    """Copy the graph below `into`: the converters leave files beside their input."""
    return Path(shutil.copytree(graph, into / "source")) / "model.onnx"


def has_external_data(graph: Path) -> bool:
    """Return whether the graph has weights beside its model.onnx."""
    return any(path.name != "model.onnx" for path in graph.iterdir())


def _in_fp16(source: Path) -> onnx.ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    _numbers_to_tensors(source)
    converted: onnx.ModelProto = convert_float_to_float16(str(source), keep_io_types=True)
    return converted


def _numbers_to_tensors(source: Path) -> None:
    """Give every Constant a tensor: the converter leaves other forms in FP32."""
    import onnx

    model = onnx.load(source, load_external_data=False)
    for node in model.graph.node:
        tensor = held_tensor(node)
        if tensor is not None:
            node.attribute[0].CopyFrom(onnx.helper.make_attribute("value", tensor))
    onnx.save(model, source)


def _to_bfloat16(converted: onnx.GraphProto, source: onnx.GraphProto) -> None:
    """Turn every FLOAT16 into BFLOAT16, with the numbers of the FP32 graph.

    The FP16 converter only appends, so converted nodes have the same index in both graphs.
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
    """Replace FLOAT16 tensors; finite numbers stay finite, since infinite masks would give NaN."""
    import onnx
    from ml_dtypes import bfloat16

    for tensor, source in zip(tensors, sources, strict=True):
        if tensor.data_type == onnx.TensorProto.FLOAT16:
            values = onnx.numpy_helper.to_array(source).astype(np.float32)
            finite = np.where(
                np.isinf(values), values, np.clip(values, -_LARGEST_BF16, _LARGEST_BF16)
            )
            tensor.CopyFrom(onnx.numpy_helper.from_array(finite.astype(bfloat16), tensor.name))


def _sort(graph: onnx.GraphProto) -> None:
    """Sort the nodes topologically: the converter appends its casts at the end."""
    makers = {name: at for at, node in enumerate(graph.node) for name in node.output}
    needs = {
        at: {makers[name] for name in reads(node) if name in makers}
        for at, node in enumerate(graph.node)
    }
    nodes = [graph.node[at] for at in TopologicalSorter(needs).static_order()]
    del graph.node[:]
    graph.node.extend(nodes)
