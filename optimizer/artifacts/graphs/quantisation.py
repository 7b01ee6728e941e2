"""Insert Q/DQ pairs around the products of a graph that have constant weights.

ONNX Runtime's own quantiser also quantises the products of attention, gives rounded values to every
reader of a quantised tensor, residual additions included, and measures far more tensors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optimizer.artifacts.graphs.calibration import Range
from optimizer.artifacts.graphs.onnx_graph import reads, weight_axis

if TYPE_CHECKING:
    import onnx

_REMOVABLE = {"Clip", "Relu"}
"""Activations that a runtime fuses with the quantisation of their output."""

_INT32_LIMIT = 2**31 - 2**8
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Int8Scheme:
    """What a runtime requires of an INT8 graph.

    Attributes:
        operators: executed in INT8 where their weights are constant.
        signed: whether activations are signed and symmetric, and weights stay in floating point
            before a Q/DQ pair. Otherwise weights are stored in INT8 and biases in INT32.
        weight_limit: largest absolute value of a quantised weight.
        rounded_outputs: operators executed in INT8 only if their output is quantised too.
        attention: whether the products of an attention are quantised, which have no weights.
    """

    operators: Set[str]
    signed: bool
    weight_limit: int = 127
    rounded_outputs: Set[str] = field(default_factory=frozenset)
    attention: bool = False


def products(model: onnx.ModelProto, scheme: Int8Scheme) -> list[onnx.NodeProto]:
    """Return the nodes that a runtime executes in INT8: those with constant FP32 weights."""
    import onnx

    constant = {tensor.name: tensor for tensor in model.graph.initializer}

    def qualifies(node: onnx.NodeProto) -> bool:
        weights = constant.get(node.input[1])
        if weights is None or node.input[0] in constant:
            return False
        fits = weights.data_type == onnx.TensorProto.FLOAT and len(weights.dims) > 1
        bias = node.input[2] if len(node.input) > 2 else ""
        if scheme.signed or not bias:
            return fits
        channels = weights.dims[weight_axis(node, len(weights.dims))]
        return fits and bias in constant and np.prod(constant[bias].dims) in {1, channels}

    return [n for n in model.graph.node if n.op_type in scheme.operators and qualifies(n)]


def attention_products(model: onnx.ModelProto, scheme: Int8Scheme) -> list[onnx.NodeProto]:
    """Return the matrix products of two activations that are to be in INT8."""
    if not scheme.attention:
        return []
    constant = {tensor.name for tensor in model.graph.initializer}
    return [
        node
        for node in model.graph.node
        if node.op_type == "MatMul" and constant.isdisjoint(node.input)
    ]


def rounded_tensors(model: onnx.ModelProto, scheme: Int8Scheme) -> dict[str, str]:
    """Return the outputs to quantise, after Relu or Clip if any, by the product's own output."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in model.graph.output}
    rounded = {}
    for product in products(model, scheme):
        if product.op_type in scheme.rounded_outputs:
            [name] = product.output
            following = readers.get(name, [])
            if len(following) == 1 and name not in outputs and following[0].op_type in _REMOVABLE:
                name = following[0].output[0]
            rounded[product.output[0]] = name
    return rounded


def quantise(model: onnx.ModelProto, scheme: Int8Scheme, ranges: Mapping[str, Range]) -> None:
    """Insert Q/DQ pairs around the products of `model`.

    Only products read rounded values, except for outputs that are quantised themselves.

    Args:
        ranges: of every activation that a product reads and every rounded tensor.
    """
    writer = _Writer(model, scheme, ranges)
    rounded = rounded_tensors(model, scheme)
    for name in dict.fromkeys(rounded.values()):
        writer.round_tensor(name)
    attention = attention_products(model, scheme)
    for product in products(model, scheme):
        writer.quantise(product)
    for product in attention:
        writer.quantise_factors(product)
    writer.remove_unread()


def quantise_weights(model: onnx.ModelProto, scheme: Int8Scheme) -> None:
    """Store the weights of the products of `model` in INT8, and leave its activations alone."""
    writer = _Writer(model, scheme, {})
    for product in products(model, scheme):
        writer.store_weights_alone(product)
    writer.remove_unread()


class _Writer:
    """Add Q/DQ nodes and their initializers to a graph."""

    def __init__(
        self, model: onnx.ModelProto, scheme: Int8Scheme, ranges: Mapping[str, Range]
    ) -> None:
        self._graph = model.graph
        self._scheme = scheme
        self._ranges = ranges
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._dequantised: dict[str, str] = {}
        self._scales: dict[str, np.float32] = {}

    def round_tensor(self, name: str) -> None:
        """Quantise a tensor for all of its readers, and as an output of the graph."""
        exact = f"{name}/exact"
        maker = next(node for node in self._graph.node if name in node.output)
        maker.output[list(maker.output).index(name)] = exact
        self._add_pair(exact, name, *self._activation_parameters(name))
        self._dequantised[name] = name

    def quantise(self, product: onnx.NodeProto) -> None:
        """Make a product read quantised values."""
        activation = product.input[0]
        product.input[0] = self._activation(activation)
        if self._scheme.signed:
            product.input[1] = self._weights_in_pair(product)
        else:
            self._store_weights(product, self._scales[activation])

    def quantise_factors(self, product: onnx.NodeProto) -> None:
        """Make a product of two activations read quantised values."""
        product.input[:] = [self._activation(name) for name in product.input]

    def store_weights_alone(self, product: onnx.NodeProto) -> None:
        """Store the weights of a product in INT8."""
        values = self._values(product.input[1])
        axis = weight_axis(product, values.ndim)
        scales = self._channel_scales(values, axis)
        product.input[1] = self._stored_weights(product.input[1], values, scales, axis)

    def remove_unread(self) -> None:
        """Remove the initializers that were replaced by quantised ones."""
        read = {name for node in self._graph.node for name in reads(node)}
        read |= {value.name for value in self._graph.output}
        replaced = self._weights.keys() - read
        # Before IR version 4 initializers were inputs too.
        for values in (self._graph.initializer, self._graph.input):
            for at in reversed(range(len(values))):
                if values[at].name in replaced:
                    del values[at]

    def _activation(self, name: str) -> str:
        if name not in self._dequantised:
            self._dequantised[name] = f"{name}/dequantised"
            self._add_pair(name, self._dequantised[name], *self._activation_parameters(name))
        return self._dequantised[name]

    def _activation_parameters(self, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return scale and zero-point; the range is extended to include 0."""
        low, high = min(self._ranges[name][0], 0.0), max(self._ranges[name][1], 0.0)
        scale = max(-low, high) / 127 if self._scheme.signed else (high - low) / 255
        scale = max(scale, _SMALLEST_SCALE) if scale > 0 else 1.0
        self._scales[name] = np.float32(scale)
        if self._scheme.signed:
            return np.float32(scale).reshape(()), np.zeros((), np.int8)
        return np.float32(scale).reshape(()), np.array(round(-low / scale), np.uint8)

    def _weights_in_pair(self, product: onnx.NodeProto) -> str:
        name = product.input[1]
        values = self._values(name)
        axis = weight_axis(product, values.ndim)
        done = f"{name}/{axis}/dequantised"
        if done not in self._dequantised:
            self._dequantised[done] = done
            scales = self._channel_scales(values, axis)
            self._add_pair(name, done, scales, np.zeros(len(scales), np.int8), axis)
        return done

    def _store_weights(self, product: onnx.NodeProto, activation_scale: np.float32) -> None:
        """Store weights in INT8 and bias in INT32, multiplied by the factors of a Gemm."""
        values = self._values(product.input[1]) * _take_factor(product, "alpha")
        axis = weight_axis(product, values.ndim)
        scales = self._channel_scales(values, axis)
        if len(product.input) > 2 and product.input[2]:
            bias = self._values(product.input[2]) * _take_factor(product, "beta")
            bias = np.broadcast_to(bias.reshape(-1), scales.shape)
            # A bias must fit in its 32 bits.
            scales = np.maximum(scales, np.abs(bias) / (activation_scale * _INT32_LIMIT))
            scale = scales * activation_scale
            whole = np.round(bias / scale).astype(np.int32)
            product.input[2] = self._add_stored(f"{product.output[0]}/bias", whole, scale, 0)
        product.input[1] = self._stored_weights(product.input[1], values, scales, axis)

    def _stored_weights(
        self, name: str, values: NDArray[Any], scales: NDArray[np.float32], axis: int
    ) -> str:
        limit = self._scheme.weight_limit
        shape = [-1 if at == axis else 1 for at in range(values.ndim)]
        whole = np.clip(np.round(values / scales.reshape(shape)), -limit, limit).astype(np.int8)
        key = f"{name}/{hashlib.sha256(scales.tobytes()).hexdigest()[:8]}"
        return self._add_stored(key, whole, scales, axis)

    def _channel_scales(self, values: NDArray[Any], axis: int) -> NDArray[np.float32]:
        others = tuple(at for at in range(values.ndim) if at != axis)
        scales = np.abs(values).max(axis=others) / np.float32(self._scheme.weight_limit)
        floored = np.where(scales > 0, np.maximum(scales, _SMALLEST_SCALE), 1)
        return floored.astype(np.float32)

    def _values(self, name: str) -> NDArray[Any]:
        import onnx

        return onnx.numpy_helper.to_array(self._weights[name])

    def _add_stored(self, name: str, whole: NDArray[Any], scales: NDArray[Any], axis: int) -> str:
        """Add integers and the node that dequantises them."""
        done = f"{name}/dequantised"
        if done not in self._dequantised:
            self._dequantised[done] = done
            parameters = self._add_parameters(done, scales, np.zeros(len(scales), whole.dtype))
            self._add_initializer(f"{name}/quantised", whole)
            inputs = [f"{name}/quantised", *parameters]
            self._add_node("DequantizeLinear", inputs, done, axis)
        return done

    def _add_pair(
        self,
        name: str,
        done: str,
        scale: NDArray[Any],
        zero_point: NDArray[Any],
        axis: int | None = None,
    ) -> None:
        parameters = self._add_parameters(done, scale, zero_point)
        quantised = f"{done}/quantised"
        self._add_node("QuantizeLinear", [name, *parameters], quantised, axis)
        self._add_node("DequantizeLinear", [quantised, *parameters], done, axis)

    def _add_parameters(
        self, done: str, scale: NDArray[Any], zero_point: NDArray[Any]
    ) -> tuple[str, str]:
        names = f"{done}/scale", f"{done}/zero_point"
        for name, values in zip(names, (scale, zero_point), strict=True):
            self._add_initializer(name, values)
        return names

    def _add_initializer(self, name: str, values: NDArray[Any]) -> None:
        import onnx

        self._graph.initializer.append(onnx.numpy_helper.from_array(values, name))

    def _add_node(self, operator: str, inputs: list[str], output: str, axis: int | None) -> None:
        import onnx

        node = onnx.helper.make_node(operator, inputs, [output], f"{output}/{operator}")
        if axis is not None:
            node.attribute.append(onnx.helper.make_attribute("axis", axis))
        self._graph.node.append(node)


def _take_factor(product: onnx.NodeProto, name: str) -> np.float32:
    """Remove a factor from a Gemm and return it."""
    factors = [a.f for a in product.attribute if a.name == name]
    kept = [a for a in product.attribute if a.name != name]
    del product.attribute[:]
    product.attribute.extend(kept)
    return np.float32(factors[0] if factors else 1.0)
