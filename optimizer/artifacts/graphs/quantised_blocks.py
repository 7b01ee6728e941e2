"""Matrix products that TensorRT wants in INT8 together or not at all, found in the graph.

The two products of an MLP block (INT8 product, bias, GELU, FP16 product has given NaN) and the two
of an attention. They are joined through nodes that work element by element, and never through
others: what is joined otherwise is no such block, and nothing is said of it.
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
    """A mistake for each product that is in INT8 where its fellow is not, or the other way."""
    for product in graph.nodes:
        if product.op_type not in _PRODUCTS:
            continue
        with_weights = _has_weights(graph, product)
        block = "MLP block" if with_weights else "attention"
        for other in _joined(graph, product, _ACTIVATIONS if with_weights else _SOFTMAX):
            alike = _is_int8(graph, product) == _is_int8(graph, other)
            if not alike and _has_weights(graph, other) == with_weights:
                rule = f"both products of an {block} must be INT8 or neither"
                ones = (product, other) if _is_int8(graph, product) else (other, product)
                yield Mistake(
                    label(product), rule, "INT8 in {} and not in {}".format(*map(label, ones))
                )


def _has_weights(graph: OnnxGraph, product: onnx.NodeProto) -> bool:
    """Whether it multiplies by a constant."""
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
    """Whether both factors come out of Q/DQ pairs."""
    return all(_is_dequantised(graph, name) for name in product.input[:2])


def _is_dequantised(graph: OnnxGraph, name: str) -> bool:
    maker = graph.maker(name)
    while maker is not None and maker.op_type in _KEEP_NUMBERS:
        maker = graph.maker(maker.input[0])
    return maker is not None and maker.op_type == "DequantizeLinear"


def _joined(graph: OnnxGraph, product: onnx.NodeProto, by: Set[str]) -> Iterator[onnx.NodeProto]:
    """Products whose first factor is made of `product` element by element, through one of `by`."""
    start = (product.output[0], False)
    waiting, seen = [start], {start}
    while waiting:
        name, joined = waiting.pop()
        for reader in graph.readers.get(name, []):
            if reader.op_type in _PRODUCTS:
                if joined and reader.input[0] == name:
                    yield reader
            elif reader.op_type in _ELEMENTWISE | _ACTIVATIONS | by:
                reached = (reader.output[0], joined or reader.op_type in by)
                if reached not in seen:
                    seen.add(reached)
                    waiting.append(reached)
