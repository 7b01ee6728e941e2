"""Read access to an ONNX graph: producers and readers of tensors, constants.

External data is read only for `OnnxGraph.numbers`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx


class OnnxGraph:
    """The nodes of a graph, of its subgraphs and of the model's functions where they are called.

    `path` is the graph's file, which external data lies beside.
    """

    def __init__(self, path: Path) -> None:
        import onnx
        import onnx.inliner

        header = onnx.load(path, load_external_data=False)
        if header.functions:
            header = onnx.inliner.inline_local_functions(header)
        self._folder = path.parent
        self._header = header.graph
        self.opset = opset_of(header)

    @cached_property
    def nodes(self) -> list[onnx.NodeProto]:
        """All nodes."""
        return [node for graph in self._graphs for node in graph.node]

    @cached_property
    def weights(self) -> dict[str, onnx.TensorProto]:
        """Constant tensors by name: initializers and values of Constant nodes."""
        weights = {tensor.name: tensor for graph in self._graphs for tensor in graph.initializer}
        for node in self.nodes:
            tensor = held_tensor(node)
            if tensor is not None:
                weights[node.output[0]] = tensor
        return weights

    @cached_property
    def inputs(self) -> list[onnx.ValueInfoProto]:
        """Inputs that are not initializers."""
        return [value for value in self._header.input if value.name not in self.weights]

    @cached_property
    def readers(self) -> dict[str, list[onnx.NodeProto]]:
        """Nodes that read a tensor, by its name."""
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        return readers

    def maker(self, name: str) -> onnx.NodeProto | None:
        """Return the node that outputs a tensor; None for graph inputs and initializers."""
        return self._makers.get(name)

    def numbers(self, name: str) -> NDArray[Any] | None:
        """Return the values of a constant tensor; None where `name` is no constant."""
        import onnx

        tensor = self.weights.get(name)
        return None if tensor is None else onnx.numpy_helper.to_array(tensor, str(self._folder))

    def missing_data(self) -> Iterator[tuple[str, str, str]]:
        """Yield name, rule and value of each tensor whose external data is missing."""
        for name, tensor in self.weights.items():
            entries = {entry.key: entry.value for entry in tensor.external_data}
            if "location" in entries:
                file = self._folder / entries["location"]
                size = file.stat().st_size if file.is_file() else None
                end = int(entries.get("offset", 0)) + int(entries.get("length", 0))
                if size is None or size < end:
                    rule = f"external data must lie beside the graph ({end} bytes at least)"
                    got = f"{file.name} of {size} bytes" if size is not None else "no file"
                    yield name, rule, f"{got} ({entries['location']})"

    @cached_property
    def _graphs(self) -> list[onnx.GraphProto]:
        return with_subgraphs(self._header)

    @cached_property
    def _makers(self) -> dict[str, onnx.NodeProto]:
        return {name: node for node in self.nodes for name in node.output if name}


def with_subgraphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """Return a graph and all graphs in attributes of its nodes, at any depth."""
    graphs = [graph]
    for each in graphs:  # the list grows during the iteration
        graphs += [
            inner
            for node in each.node
            for attribute in node.attribute
            for inner in subgraphs(attribute)
        ]
    return graphs


def external_tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """Yield the tensors of a model whose data is in other files, wherever they are in it."""
    import onnx

    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for each in [value] if hasattr(value, "ListFields") else value:
            if not isinstance(each, onnx.TensorProto):
                yield from external_tensors(each)
            elif each.external_data:
                yield each


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators; 0 for a graph that has none of them."""
    versions = [o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}]
    return max(versions, default=0)


def held_tensor(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """Return the value of a Constant as a tensor; None for integers, strings and other nodes."""
    import onnx

    if node.op_type != "Constant" or not node.attribute:
        return None
    [attribute] = node.attribute
    match attribute.name:
        case "value":
            return attribute.t
        case "value_float":
            return onnx.numpy_helper.from_array(np.array(attribute.f, np.float32))
        case "value_floats":
            return onnx.numpy_helper.from_array(np.array(attribute.floats, np.float32))
    return None


def channel_axis(node: onnx.NodeProto, position: int, rank: int) -> int | None:
    """Return the axis of the output channels in a node's weights; None for other operators.

    Args:
        position: index of the input that holds the weights, 0 or 1.
        rank: number of axes of the weights.
    """
    transposed = {a.name for a in node.attribute if a.name in {"transA", "transB"} and a.i}
    axes = {
        ("MatMul", 0): max(rank - 2, 0),
        ("MatMul", 1): rank - 1,
        ("Gemm", 0): 1 if "transA" in transposed else 0,
        ("Gemm", 1): 0 if "transB" in transposed else 1,
        ("Conv", 1): 0,
        ("ConvTranspose", 1): 1,
    }
    return axes.get((node.op_type, position))


def weight_axis(node: onnx.NodeProto, rank: int) -> int:
    """Return the axis of the output channels in the second input of a node that has weights."""
    axis = channel_axis(node, 1, rank)
    assert axis is not None, f"{node.op_type} has no weights"
    return axis


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names that a node and the nodes of its subgraphs read."""
    yield from node.input
    for attribute in node.attribute:
        for graph in subgraphs(attribute):
            for inner in graph.node:
                yield from reads(inner)


def subgraphs(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    """Return the graphs of an attribute."""
    return [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def label(node: onnx.NodeProto) -> str:
    """Return a node's name for people; an unnamed one is named after its output."""
    return node.name or f"{node.op_type} of {node.output[0]}"
