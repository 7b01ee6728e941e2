"""INT8 graphs with Q/DQ nodes, in the form that each runtime takes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from optimizer.artifacts.graphs.arithmetic import Shapes, measure_shapes, multiply_accumulates
from optimizer.artifacts.graphs.calibration import (
    Activations,
    Range,
    calibrated_ranges,
    channel_peaks,
)
from optimizer.artifacts.graphs.folding import fold_weights
from optimizer.artifacts.graphs.half_precision import has_external_data, save, to_fp16, working_copy
from optimizer.artifacts.graphs.quantisation import (
    Int8Scheme,
    attention_products,
    products,
    quantise,
    rounded_tensors,
)
from optimizer.artifacts.graphs.smoothing import (
    Groups,
    smooth,
    smoothed_groups,
    smoothing_factors,
    with_outliers,
)
from optimizer.artifacts.graphs.tensorrt_rules import SMALLEST_FP16_SCALE
from optimizer.errors import BuildFailure
from optimizer.workload.streams import Tensors

if TYPE_CHECKING:
    import onnx

_OPERATORS = frozenset({"MatMul", "Gemm", "Conv"})

SIGNED = Int8Scheme(_OPERATORS, signed=True)
"""For TensorRT, whose zero-points must be 0."""

SIGNED_ATTENTION = replace(SIGNED, attention=True)

UNSIGNED = Int8Scheme(_OPERATORS, signed=False, rounded_outputs=frozenset({"Conv"}))
"""For ONNX Runtime and OpenVINO on a CPU, which are fastest and most accurate with unsigned
activations. ONNX Runtime has no INT8 Conv with a floating-point output."""

UNSIGNED_7_BITS = replace(UNSIGNED, weight_limit=64)
"""For x86 processors without VNNI: they add two products in 16 bits, which overflows unless weights
are this small."""

_QDQ = ("QuantizeLinear", "DequantizeLinear")
_PER_CHANNEL_OPSET = 13
"""First opset with a scale for each channel."""


def to_int8(
    graph: Path,
    into: Path,
    calibration: list[Tensors],
    scheme: Int8Scheme,
    percentile: float = 100.0,
    *,
    batched: bool = True,
) -> float:
    """Write `into`/model.onnx with quantised products.

    Args:
        graph: directory of the FP32 model.onnx and its external data.
        into: directory; temporary files of the conversion are removed from it.
        calibration: requests of equal shape.
        scheme: what the runtime requires.
        percentile: share of each activation's values within its range, in %.
        batched: whether the requests have a batch axis.

    Returns:
        The share of the model's multiply-accumulates that are in INT8, above 0 and at most 1.

    Raises:
        BuildFailure: when there is nothing to quantise, or calibration fails.
    """
    import onnx

    external = has_external_data(graph)
    source = working_copy(graph, into)
    allow_scales_per_channel(source, external=external)
    model = onnx.load(source)
    fold_weights(model, scheme.operators)
    chosen = products(model, scheme)
    if not chosen:
        raise BuildFailure(f"int8: {_nothing_to_quantise(model, scheme)}")
    attention = attention_products(model, scheme)
    observed = set(rounded_tensors(model, scheme).values())
    observed.update(name for node in attention for name in node.input)
    groups = smoothed_groups(model, [each for each in chosen if each.input[0] not in observed])
    constants = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    shapes = {**measure_shapes(source, calibration[0]), **constants}
    share = _share([*chosen, *attention], model.graph.node, shapes)
    tensors = {node.input[0] for node in chosen} | observed
    activations = Activations(source, tensors, calibration, shapes, batched=batched)
    quantise(model, scheme, _smoothed_ranges(model, groups, activations, percentile))
    shutil.rmtree(source.parent)
    save(model, into, external=external)
    return share


def _smoothed_ranges(
    model: onnx.ModelProto, groups: Groups, activations: Activations, percentile: float
) -> dict[str, Range]:
    """Smooth the products that have outliers; return the range of every activation.

    Args:
        groups: products whose activations can be smoothed.
    """
    peaks = channel_peaks(activations, groups.keys())
    groups = with_outliers(groups, peaks)
    factors = smoothing_factors(model, groups, peaks)
    ranges = calibrated_ranges(activations, percentile, factors)
    smoothed = smooth(model, groups, factors)
    return {smoothed.get(name, name): limits for name, limits in ranges.items()}


def to_int8_tensorrt(graph: Path, into: Path) -> None:
    """Write `into`/model.onnx for TensorRT: FP16 weights and scales, no scale subnormal.

    Args:
        graph: directory of a signed INT8 model.onnx, as `to_int8` writes it.
        into: directory; temporary files of the conversion are removed from it.
    """
    import onnx

    to_fp16(graph, into)
    model = onnx.load(into / "model.onnx")
    names = {node.input[1] for node in model.graph.node if node.op_type in _QDQ}
    for tensor in model.graph.initializer:
        if tensor.name in names:
            scales = onnx.numpy_helper.to_array(tensor)
            floored = np.maximum(scales, scales.dtype.type(SMALLEST_FP16_SCALE))
            tensor.CopyFrom(onnx.numpy_helper.from_array(floored, tensor.name))
    save(model, into, external=has_external_data(graph))


def allow_scales_per_channel(source: Path, *, external: bool) -> None:
    """Convert the graph to an opset whose Q/DQ nodes may have a scale for each channel."""
    import onnx

    header = onnx.load(source, load_external_data=False)
    opset = max(o.version for o in header.opset_import if o.domain in {"", "ai.onnx"})
    if opset < _PER_CHANNEL_OPSET:
        converted = onnx.version_converter.convert_version(onnx.load(source), _PER_CHANNEL_OPSET)
        save(converted, source.parent, external=external)


def _share(
    chosen: Sequence[onnx.NodeProto], nodes: Sequence[onnx.NodeProto], shapes: Shapes
) -> float:
    everything = sum(multiply_accumulates(node, shapes) for node in nodes)
    return sum(multiply_accumulates(node, shapes) for node in chosen) / everything


def _nothing_to_quantise(model: onnx.ModelProto, scheme: Int8Scheme) -> str:
    *first, last = sorted(scheme.operators)
    rule = f"the graph must have a {', '.join(first)} or {last} with constant FP32 weights"
    present = sorted({node.op_type for node in model.graph.node} & scheme.operators)
    if not present:
        return f"{rule}, and has none of these operators"
    return f"{rule}, and those of its {' and '.join(present)} are computed or of another type"
