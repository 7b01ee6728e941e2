"""Convert an FP32 graph to FP16 or BF16; inputs and outputs keep their types."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from copy import deepcopy
from graphlib import TopologicalSorter
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from optimizer.artifacts.graphs.onnx_graph import held_tensor, label, reads, subgraphs

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

    source, external = working_copy(graph, into), has_external_data(graph)
    converted = _in_fp16(source)
    # Types are checked in FP16: ONNX lists BF16 for Conv from opset 22, TensorRT takes it in any.
    # It is a copy, because saving sorts the nodes.
    save(deepcopy(converted), into, external=external)
    onnx.checker.check_model(into / "model.onnx", full_check=True)
    _to_bfloat16(converted.graph, onnx.load(source).graph)
    shutil.rmtree(source.parent)
    save(converted, into, external=external)


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
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(source, load_external_data=False)
    _numbers_to_tensors(model.graph)
    kept = _averages(model.graph)
    onnx.save(model, source)
    converted: onnx.ModelProto = convert_float_to_float16(
        str(source), keep_io_types=True, node_block_list=kept
    )
    _join(converted.graph, kept)
    return converted


def _numbers_to_tensors(graph: onnx.GraphProto) -> None:
    """Give every Constant a tensor: the converter leaves other forms in FP32."""
    import onnx

    for node in graph.node:
        tensor = held_tensor(node)
        if tensor is not None:
            node.attribute[0].CopyFrom(onnx.helper.make_attribute("value", tensor))


def _averages(graph: onnx.GraphProto) -> list[str]:
    """Return the names of the nodes that FP16 is too small for.

    These are averages, because their sums exceed it, and variances from the square to the root.
    LayerNormalization is none of them: runtimes compute it in FP32.
    """
    squares = {node.output[0]: node for node in graph.node if node.op_type == "Pow"}
    variances: set[str] = set()
    found = []
    for node in graph.node:
        if node.op_type == "ReduceMean":
            found.append(node)
            if node.input[0] in squares:
                found.append(squares[node.input[0]])
                variances.add(node.output[0])
        elif node.op_type in {"Add", "Sqrt"} and not variances.isdisjoint(node.input):
            found.append(node)
            if node.op_type == "Add":  # a small number, against division by 0
                variances.add(node.output[0])
    for node in found:
        node.name = label(node)
    return [node.name for node in found]


def _join(graph: onnx.GraphProto, kept: Sequence[str]) -> None:
    """Connect nodes that are kept in FP32: the converter casts to FP16 and back between them."""
    nodes = [node for node in graph.node if node.name in kept]
    results = {output for node in nodes for output in node.output}
    casts = [node for node in graph.node if node.op_type == "Cast"]
    halved = {node.output[0]: node.input[0] for node in casts if node.input[0] in results}
    back = {node.output[0]: halved[node.input[0]] for node in casts if node.input[0] in halved}
    for node in nodes:
        node.input[:] = [back.get(name, name) for name in node.input]
    outputs = {value.name for value in graph.output}
    for pair in (back, halved):
        read = outputs.union(*map(reads, graph.node))
        for node in casts:
            if node.output[0] in pair.keys() - read:
                graph.node.remove(node)


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
