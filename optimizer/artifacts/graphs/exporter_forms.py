"""Bring an ONNX file, as an exporter wrote it, into the form that every runtime loads."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from optimizer.artifacts.graphs.onnx_graph import opset_of, reads, with_subgraphs

if TYPE_CHECKING:
    import onnx

_OLDEST_OPSET, _CURRENT_OPSET = 7, 13
"""ONNX Runtime has kernels from opset 7 on; what is older is converted to one that all know."""


def normalise(model: onnx.ModelProto) -> bool:
    """Rewrite what not every runtime loads; return whether anything was rewritten.

    - Free axes that are spelt 0 or -1 lose their size: ONNX Runtime takes 0 literally.
    - Opsets below 7 are converted.
    - A ZipMap, which turns rows of probabilities into maps, is replaced by the tensor that it
      reads, under the output's own name.

    External data need not be loaded.
    """
    rewritten = [_free_axes(model.graph), _convert_old_opset(model), _maps_to_tensors(model.graph)]
    return any(rewritten)


def is_tensor(value: onnx.ValueInfoProto) -> bool:
    """Return whether an input or output is a tensor, and no map, sequence or optional value."""
    return bool(value.type.HasField("tensor_type"))


def drop_outputs_without_tensor(graph: onnx.GraphProto) -> bool:
    """Remove outputs that are maps or sequences, and the nodes that only they need.

    Returns:
        Whether there were any.
    """
    kept = [value for value in graph.output if is_tensor(value)]
    if len(kept) == len(graph.output):
        return False
    needed = {value.name for value in kept}
    nodes = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            nodes.append(node)
            needed |= set(reads(node))
    nodes.reverse()
    del graph.output[:], graph.node[:]
    graph.output.extend(kept)
    graph.node.extend(nodes)
    return True


def scalars_to_vectors(graph: onnx.GraphProto) -> bool:
    """Give scalar inputs the shape [1], since Triton has no scalars.

    Returns:
        Whether there are any.
    """
    import onnx

    weights = {tensor.name for tensor in graph.initializer}
    scalars = [v for v in graph.input if v.name not in weights and _is_scalar(v)]
    for value in scalars:
        inner, shape = f"{value.name}/scalar", f"{value.name}/shape"
        _rename_reads(graph, value.name, inner)
        value.type.tensor_type.shape.dim.add(dim_value=1)
        graph.initializer.append(onnx.helper.make_tensor(shape, onnx.TensorProto.INT64, [0], []))
        graph.node.insert(0, onnx.helper.make_node("Reshape", [value.name, shape], [inner]))
    return bool(scalars)


def _free_axes(graph: onnx.GraphProto) -> bool:
    free = [
        axis
        for value in chain(graph.input, graph.output, graph.value_info)
        for axis in value.type.tensor_type.shape.dim
        if axis.WhichOneof("value") == "dim_value" and axis.dim_value <= 0
    ]
    for axis in free:
        axis.Clear()
    return bool(free)


def _convert_old_opset(model: onnx.ModelProto) -> bool:
    import onnx

    if not 0 < opset_of(model) < _OLDEST_OPSET:
        return False
    model.CopyFrom(onnx.version_converter.convert_version(model, _CURRENT_OPSET))
    return True


def _maps_to_tensors(graph: onnx.GraphProto) -> bool:
    import onnx

    outputs = {value.name: value for value in graph.output}
    zipped = [n for n in graph.node if n.op_type == "ZipMap" and n.output[0] in outputs]
    for node in zipped:
        classes = max(len(a.ints) or len(a.strings) for a in node.attribute)
        name = node.output[0]
        tensor = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, classes])
        outputs[name].CopyFrom(tensor)
        node.CopyFrom(onnx.helper.make_node("Identity", node.input, [name], node.name))
    return bool(zipped)


def _is_scalar(value: onnx.ValueInfoProto) -> bool:
    tensor = value.type.tensor_type
    return is_tensor(value) and bool(tensor.HasField("shape")) and not tensor.shape.dim


def _rename_reads(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Let the nodes of a graph and of its subgraphs read another tensor."""
    for node in chain.from_iterable(each.node for each in with_subgraphs(graph)):
        for n, name in enumerate(node.input):
            if name == old:
                node.input[n] = new
