"""Graphs whose activations are quantised at run time, without calibration."""

from __future__ import annotations

import shutil
from collections.abc import Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.artifacts.graphs.arithmetic import Shapes, measure_shapes, multiply_accumulates
from optimizer.artifacts.graphs.folding import fold_weights
from optimizer.artifacts.graphs.half_precision import has_external_data, save, working_copy
from optimizer.artifacts.graphs.int8 import allow_scales_per_channel
from optimizer.artifacts.graphs.quantisation import Int8Scheme, products, quantise_weights
from optimizer.errors import BuildFailure
from optimizer.workload.streams import Tensors

if TYPE_CHECKING:
    import onnx

_WEIGHTS = Int8Scheme(frozenset({"MatMul", "Gemm"}), signed=True)
"""OpenVINO quantises the activations of fully connected layers alone at run time."""

_DYNAMIC = frozenset({"MatMul", "Gemm", "LSTM"})
"""What ONNX Runtime quantises at run time; its INT8 Conv of this form has one scale for all
channels and no fast kernels."""


def to_int8_weights(graph: Path, into: Path, request: Tensors) -> float:
    """Write `into`/model.onnx with the weights of products in INT8, which OpenVINO takes.

    OpenVINO quantises the activations by row, in groups of channels.

    Args:
        graph: directory of the FP32 model.onnx and its external data.
        into: directory; temporary files of the conversion are removed from it.
        request: one request, from which the share follows.

    Returns:
        The share of the model's multiply-accumulates with INT8 weights, above 0 and at most 1.

    Raises:
        BuildFailure: when there is nothing to quantise.
    """
    model, shapes = _prepared(graph, into, request, _WEIGHTS.operators)
    share = _share(model.graph.node, products(model, _WEIGHTS), shapes, _WEIGHTS.operators)
    quantise_weights(model, _WEIGHTS)
    save(model, into, external=has_external_data(graph))
    return share


def to_int8_dynamic(graph: Path, into: Path, request: Tensors, *, seven_bits: bool) -> float:
    """Write `into`/model.onnx in ONNX Runtime's own form of dynamic quantisation.

    ONNX Runtime quantises each activation as a whole, with one scale for all requests of a batch.

    Args:
        graph: directory of the FP32 model.onnx and its external data.
        into: directory; temporary files of the conversion are removed from it.
        request: one request, from which the share follows.
        seven_bits: whether weights have 7 bits, for x86 processors without VNNI.

    Returns:
        The share of the model's multiply-accumulates that are in INT8, above 0 and at most 1.

    Raises:
        BuildFailure: when there is nothing to quantise.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model, shapes = _prepared(graph, into, request, _DYNAMIC)
    nodes = list(model.graph.node)
    quantize_dynamic(
        model,
        into / "model.onnx",
        op_types_to_quantize=sorted(_DYNAMIC),
        per_channel=True,
        reduce_range=seven_bits,
        weight_type=QuantType.QInt8,
        use_external_data_format=has_external_data(graph),
    )
    written = onnx.load(into / "model.onnx", load_external_data=False).graph.node
    left = {node.output[0] for node in written if node.op_type in _DYNAMIC}
    return _share(nodes, [n for n in nodes if n.output[0] not in left], shapes, _DYNAMIC)


def _prepared(
    graph: Path, into: Path, request: Tensors, operators: Set[str]
) -> tuple[onnx.ModelProto, Shapes]:
    """Return the graph with folded weights, and the shapes of its tensors for one request."""
    import onnx

    source = working_copy(graph, into)
    allow_scales_per_channel(source, external=has_external_data(graph))
    shapes = measure_shapes(source, request)
    model = onnx.load(source)
    shutil.rmtree(source.parent)
    fold_weights(model, operators)
    return model, {**shapes, **{t.name: tuple(t.dims) for t in model.graph.initializer}}


def _share(
    nodes: Sequence[onnx.NodeProto],
    chosen: Sequence[onnx.NodeProto],
    shapes: Shapes,
    operators: Set[str],
) -> float:
    covered = sum(multiply_accumulates(node, shapes) for node in chosen)
    if covered == 0:
        *first, last = sorted(operators)
        rule = f"the graph must have a {', '.join(first)} or {last} with constant FP32 weights"
        raise BuildFailure(f"int8_dynamic: {rule}, and has none; choose int8 instead")
    return covered / sum(multiply_accumulates(node, shapes) for node in nodes)
