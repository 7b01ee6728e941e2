"""Fold what only rearranges or scales weights into the weights, before they are quantised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optimizer.artifacts.graphs.onnx_graph import held_tensor, reads

if TYPE_CHECKING:
    import onnx

_FOLDED = {"Cast", "Identity", "Reshape", "Transpose"}
"""Operators that only rearrange weights."""

_USUAL_EPSILON = 1e-5


def fold_weights(model: onnx.ModelProto, operators: Set[str]) -> None:
    """Replace weights of products that nodes only rearrange by initializers.

    Batch normalisations that follow a convolution become part of its weights: a runtime can no
    longer fuse them once the weights are quantised.
    """
    import onnx

    folder = _Constants(model.graph)
    for node in model.graph.node:
        if node.op_type in operators and folder.is_computed(node.input[1]):
            values = folder.values(node.input[1])
            if values is not None:
                name = f"{node.input[1]}/folded"
                if name not in folder.initializers:
                    folder.initializers[name] = onnx.numpy_helper.from_array(values, name)
                    model.graph.initializer.append(folder.initializers[name])
                node.input[1] = name
    _fold_normalisations(model.graph, folder)


def _fold_normalisations(graph: onnx.GraphProto, constants: _Constants) -> None:
    readers = Counter(name for node in graph.node for name in reads(node))
    readers.update(value.name for value in graph.output)
    makers = {node.output[0]: node for node in graph.node if node.op_type == "Conv"}
    for node in [n for n in graph.node if n.op_type == "BatchNormalization"]:
        conv = makers.get(node.input[0])
        if conv is None or readers[node.input[0]] > 1 or len(list(filter(None, node.output))) > 1:
            continue
        names = (*conv.input[1:], *node.input[1:])
        values = {name: constants.values(name) for name in names if name}
        if all(each is not None and each.dtype == np.float32 for each in values.values()):
            _fold_normalisation(graph, conv, node, values)
            conv.output[0] = node.output[0]
            graph.node.remove(node)


def _fold_normalisation(
    graph: onnx.GraphProto, conv: onnx.NodeProto, node: onnx.NodeProto, values: dict[str, Any]
) -> None:
    """Write the weights and bias of a convolution that also normalises, as initializers."""
    import onnx

    weights, (scale, shift, mean, variance) = (
        values[conv.input[1]],
        (values[name].astype(np.float64) for name in node.input[1:]),
    )
    bias = values[conv.input[2]] if len(conv.input) > 2 and conv.input[2] else 0.0
    epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), _USUAL_EPSILON)
    factor = scale / np.sqrt(variance + epsilon)
    names = [f"{node.output[0]}/weights", f"{node.output[0]}/bias"]
    folded = (
        weights * factor.reshape(-1, *[1] * (weights.ndim - 1)),
        (bias - mean) * factor + shift,
    )
    for name, each in zip(names, folded, strict=True):
        graph.initializer.append(onnx.numpy_helper.from_array(each.astype(np.float32), name))
    del conv.input[1:]
    conv.input.extend(names)


class _Constants:
    """Values of a graph that do not depend on the request."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._makers = {name: node for node in graph.node for name in node.output}

    def is_computed(self, name: str) -> bool:
        """Return whether a node outputs the tensor."""
        return name in self._makers

    def values(self, name: str) -> NDArray[Any] | None:
        """Return the values of a tensor, None where they depend on the request."""
        import onnx
        from onnx.reference import ReferenceEvaluator

        if name in self.initializers:
            return onnx.numpy_helper.to_array(self.initializers[name])
        maker = self._makers.get(name)
        if maker is None:
            return None
        held = held_tensor(maker)
        if held is not None:
            return onnx.numpy_helper.to_array(held)
        if maker.op_type not in _FOLDED:
            return None
        inputs = {each: self.values(each) for each in maker.input}
        if any(values is None for values in inputs.values()):
            return None
        outputs: Any = ReferenceEvaluator(maker).run(None, inputs)
        return np.asarray(outputs[0])
