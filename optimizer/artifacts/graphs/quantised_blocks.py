"""Pairs of matrix products that TensorRT requires in INT8 together or not at all.

These are the two products of an MLP block (INT8 product, bias, GELU, FP16 product has given NaN)
and the two of an attention, connected through element-wise nodes only.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import TYPE_CHECKING

from optimizer.artifacts.graphs.onnx_graph import OnnxGraph, label
from optimizer.errors import Mistake

if TYPE_CHECKING:
    import onnx

_PRODUCTS = {"MatMul", "Gemm"}
_KEEP_NUMBERS = {"Cast", "Identity", "Reshape", "Transpose"}
_SOFTMAX = {"Softmax"}
_ACTIVATIONS = {
    *("BiasGelu", "Elu", "Erf", "FastGelu", "Gelu", "HardSwish", "LeakyRelu", "Mish", "QuickGelu"),
    *("Relu", "Selu", "Sigmoid", "Softplus", "Swish", "Tanh"),
}
_ELEMENTWISE = {
    *("Add", "Cast", "Clip", "DequantizeLinear", "Div", "Dropout", "Identity", "IsNaN", "Mul"),
    *("Pow", "QuantizeLinear", "Reshape", "Sqrt", "Sub", "Where"),
}


def broken_blocks(graph: OnnxGraph) -> Iterator[Mistake]:
    """Yield a mistake for each pair of products of which only one is in INT8."""
    for product in graph.nodes:
        if product.op_type not in _PRODUCTS:
            continue
        with_weights = _has_weights(graph, product)
        block = "MLP block" if with_weights else "attention"
        for other in _joined(graph, product, _ACTIVATIONS if with_weights else _SOFTMAX):
            same = _is_int8(graph, product) == _is_int8(graph, other)
            if not same and _has_weights(graph, other) == with_weights:
                rule = f"both products of an {block} must be INT8 or neither"
                ones = (product, other) if _is_int8(graph, product) else (other, product)
                yield Mistake(
                    label(product), rule, "INT8 in {} and not in {}".format(*map(label, ones))
                )


def _has_weights(graph: OnnxGraph, product: onnx.NodeProto) -> bool:
    """Return whether a product multiplies by a constant."""
    name = product.input[1]
    while name not in graph.weights:
        maker = graph.maker(name)
        if maker is None or maker.op_type not in _KEEP_NUMBERS | {
            "QuantizeLinear",
            "DequantizeLinear",
        }:
            return False
        name = maker.input[0]
    return True


def _is_int8(graph: OnnxGraph, product: onnx.NodeProto) -> bool:
    """Return whether both factors come from Q/DQ pairs."""
    return all(_is_dequantised(graph, name) for name in product.input[:2])


def _is_dequantised(graph: OnnxGraph, name: str) -> bool:
    maker = graph.maker(name)
    while maker is not None and maker.op_type in _KEEP_NUMBERS:
        maker = graph.maker(maker.input[0])
    return maker is not None and maker.op_type == "DequantizeLinear"


def _joined(graph: OnnxGraph, product: onnx.NodeProto, by: Set[str]) -> Iterator[onnx.NodeProto]:
    """Yield products whose first factor follows element-wise from `product` through one of `by`."""
    start = (product.output[0], False)
    waiting, visited = [start], {start}
    while waiting:
        name, joined = waiting.pop()
        for reader in graph.readers.get(name, []):
            if reader.op_type in _PRODUCTS:
                if joined and reader.input[0] == name:
                    yield reader
            elif reader.op_type in _ELEMENTWISE | _ACTIVATIONS | by:
                reached = (reader.output[0], joined or reader.op_type in by)
                if reached not in visited:
                    visited.add(reached)
                    waiting.append(reached)
