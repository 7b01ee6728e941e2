"""Check TensorRT's rules for a graph before a build; every broken rule names its node.

TensorRT detects these mistakes late, reports them unclearly, or builds a slow or wrong engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from optimizer.artifacts.graphs.onnx_graph import OnnxGraph, channel_axis, label
from optimizer.artifacts.graphs.quantised_blocks import broken_blocks
from optimizer.errors import BuildFailure, Mistake

if TYPE_CHECKING:
    import onnx

SMALLEST_FP16_SCALE = float(np.finfo(np.float16).tiny)
"""6.1e-5: smaller numbers are subnormal in FP16 and lose precision."""

_SHOWN = 5
_PAIR = ("QuantizeLinear", "DequantizeLinear")
_KEEP_AXES = (*_PAIR, "Cast", "Identity")
_INTEGER_OPERATORS = {
    "ConvInteger",
    "DynamicQuantizeLinear",
    "DynamicQuantizeLSTM",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "QAttention",
    "QGemm",
}


def check_tensorrt_rules(path: Path, *, batched: bool = True) -> None:
    """Check the graph at `path`.

    Args:
        batched: whether its inputs have a batch axis.

    Raises:
        BuildFailure: with the number of broken rules, and the first of them.
    """
    broken = broken_rules(path, batched=batched)
    if broken:
        places = f"{len(broken)} place{'s' if len(broken) > 1 else ''}"
        first = "; ".join(map(str, broken[:_SHOWN]))
        more = f"; and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
        raise BuildFailure(f"{path.name} breaks TensorRT's rules in {places}: {first}{more}")


def broken_rules(path: Path, *, batched: bool = True) -> list[Mistake]:
    """Return every broken rule with the name of the node, input or weights, and the value.

    Args:
        path: an ONNX file; only scales and zero-points are read from external data.
        batched: whether its inputs have a batch axis.
    """
    graph = OnnxGraph(path)
    missing = [Mistake(*each) for each in graph.missing_data()]
    if missing:
        return missing
    pairs = [node for node in graph.nodes if node.op_type in _PAIR]
    return [
        *(_fixed_batches(graph) if batched else ()),
        *_integer_operators(graph),
        *_bf16_deconvolutions(graph),
        *(mistake for node in pairs for mistake in _pair_mistakes(graph, node)),
        *broken_blocks(graph),
    ]


def _fixed_batches(graph: OnnxGraph) -> Iterator[Mistake]:
    for value in graph.inputs:
        axes = value.type.tensor_type.shape.dim
        # A size below 0 stands for any; 0 is a size like others.
        if not axes or (axes[0].HasField("dim_value") and axes[0].dim_value >= 0):
            got = str(axes[0].dim_value) if axes else "none"
            yield Mistake(value.name, "the first axis must be a dynamic batch", got)


def _integer_operators(graph: OnnxGraph) -> Iterator[Mistake]:
    for node in graph.nodes:
        if node.op_type in _INTEGER_OPERATORS or node.op_type.startswith("QLinear"):
            yield Mistake(label(node), "INT8 must be written as Q/DQ pairs", node.op_type)


def _bf16_deconvolutions(graph: OnnxGraph) -> Iterator[Mistake]:
    """Check ConvTranspose, which unlike Conv has no kernels in BF16, whatever the opset."""
    import onnx

    if _arithmetic(graph) == onnx.TensorProto.BFLOAT16:
        for node in graph.nodes:
            if node.op_type == "ConvTranspose":
                yield Mistake(label(node), "ConvTranspose must be in FP16 or FP32", "BFLOAT16")


def _pair_mistakes(graph: OnnxGraph, node: onnx.NodeProto) -> Iterator[Mistake]:
    yield from _type(graph, node)
    yield from _zero_point(graph, node)
    name = node.input[1]
    scales = graph.numbers(name)
    if scales is None:
        rule = "the scale must be constant, an initializer or a Constant"
        yield Mistake(label(node), rule, _origin(graph, name))
        return
    yield from _scale_type(graph, node, graph.weights[name].data_type)
    values = scales.astype(np.float64)
    wrong = values[~(np.isfinite(values) & (values > 0))]
    if wrong.size:
        yield Mistake(label(node), "scales must be finite and above 0", f"{wrong.flat[0]:g}")
    elif scales.dtype == np.float16 and values.min() < SMALLEST_FP16_SCALE:
        rule = f"FP16 scales must be at least {SMALLEST_FP16_SCALE:.2g}"
        yield Mistake(label(node), rule, f"{values.min():.2g}")
    mistakes = list(_channels(graph, node, scales.shape)) if scales.size > 1 else []
    yield from mistakes or _counts(graph, node, scales.size)


def _type(graph: OnnxGraph, node: onnx.NodeProto) -> Iterator[Mistake]:
    import onnx

    code = _quantised_type(graph, node)
    if code != onnx.TensorProto.INT8:
        got = onnx.TensorProto.DataType.Name(code)
        yield Mistake(label(node), "must quantise to INT8, by the zero-point's type", got)


def _quantised_type(graph: OnnxGraph, node: onnx.NodeProto) -> int:
    """Return the element type of quantised values; INT8 where another node decides it."""
    import onnx

    name = _zero_point_of(node)
    deciding = name if name or node.op_type == "QuantizeLinear" else node.input[0]
    if deciding:
        tensor = graph.weights.get(deciding)
        return tensor.data_type if tensor is not None else onnx.TensorProto.INT8
    output_type = next((a.i for a in node.attribute if a.name == "output_dtype"), 0)
    # ONNX's default for a QuantizeLinear with neither.
    return output_type or onnx.TensorProto.UINT8


def _zero_point(graph: OnnxGraph, node: onnx.NodeProto) -> Iterator[Mistake]:
    name = _zero_point_of(node)
    if not name:
        return
    values = graph.numbers(name)
    if values is None:
        yield Mistake(label(node), "the zero-point must be constant", _origin(graph, name))
    elif values.any():
        yield Mistake(label(node), "zero-points must be 0", str(values[values != 0].flat[0]))


def _zero_point_of(node: onnx.NodeProto) -> str:
    return node.input[2] if len(node.input) > 2 else ""


def _scale_type(graph: OnnxGraph, node: onnx.NodeProto, code: int) -> Iterator[Mistake]:
    import onnx

    name = onnx.TensorProto.DataType.Name
    wanted = _arithmetic(graph)
    if code != wanted:
        rule = f"scales must be {name(wanted)} as the graph is: what follows is in their type"
        yield Mistake(label(node), rule, name(code))


def _arithmetic(graph: OnnxGraph) -> int:
    """Return the element type of the arithmetic: 16 bits where any tensor has 16 bits."""
    import onnx

    scales = {node.input[1] for node in graph.nodes if node.op_type in _PAIR}
    types = {t.data_type for name, t in graph.weights.items() if name not in scales}
    casts = (node for node in graph.nodes if node.op_type == "Cast")
    types |= {a.i for node in casts for a in node.attribute if a.name == "to"}
    sixteen = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    return next((code for code in sixteen if code in types), onnx.TensorProto.FLOAT)


def _channels(graph: OnnxGraph, node: onnx.NodeProto, scales: tuple[int, ...]) -> Iterator[Mistake]:
    shape = _weight_shape(graph, node.input[0])
    if shape is None:
        yield Mistake(label(node), "activations must have one scale", f"scales of {list(scales)}")
        return
    if len(scales) > 1:
        yield Mistake(label(node), "weights must have one scale per channel", f"{list(scales)}")
        return
    scale_axis = _scale_axis(node, len(shape))
    for reader, position, axis in _reading(graph, node.output[0], scale_axis):
        expected = channel_axis(reader, position, len(shape))
        if expected is not None and axis != expected:
            weights = f"weights of {reader.op_type} {label(reader)}"
            rule = f"{weights} must have scales along axis {expected}"
            yield Mistake(label(node), rule, str(axis))


def _counts(graph: OnnxGraph, node: onnx.NodeProto, scales: int) -> Iterator[Mistake]:
    shape = _weight_shape(graph, node.input[0])
    if scales > 1 and shape is not None:
        channels = shape[_scale_axis(node, len(shape))]
        if scales != channels:
            rule = f"weights of {channels} channels must have as many scales"
            yield Mistake(label(node), rule, str(scales))
    zero_points = graph.numbers(_zero_point_of(node))
    if zero_points is not None and zero_points.size != scales:
        rule = f"there must be as many zero-points as scales, {scales}"
        yield Mistake(label(node), rule, str(zero_points.size))


def _scale_axis(node: onnx.NodeProto, rank: int) -> int:
    return int(next((a.i for a in node.attribute if a.name == "axis"), 1)) % rank


def _weight_shape(graph: OnnxGraph, name: str) -> list[int] | None:
    """Return the shape of a tensor that is made from a constant; None for an activation."""
    if name in graph.weights:
        return list(graph.weights[name].dims)
    maker = graph.maker(name)
    if maker is None or maker.op_type not in {*_KEEP_AXES, "Transpose"}:
        return None
    shape = _weight_shape(graph, maker.input[0])
    if shape is None or maker.op_type != "Transpose":
        return shape
    order = next((a.ints for a in maker.attribute), range(len(shape))[::-1])
    return [shape[axis] for axis in order]


def _reading(graph: OnnxGraph, name: str, axis: int) -> Iterator[tuple[onnx.NodeProto, int, int]]:
    """Yield nodes that compute with a tensor, the index of that input, and `axis` in it."""
    for reader in graph.readers.get(name, []):
        if reader.op_type in _KEEP_AXES:
            yield from _reading(graph, reader.output[0], axis)
        elif reader.op_type == "Transpose" and reader.attribute:
            moved = list(reader.attribute[0].ints).index(axis)
            yield from _reading(graph, reader.output[0], moved)
        else:
            yield reader, list(reader.input).index(name), axis


def _origin(graph: OnnxGraph, name: str) -> str:
    maker = graph.maker(name)
    return f"what {label(maker)} makes" if maker is not None else f"the input {name}"
