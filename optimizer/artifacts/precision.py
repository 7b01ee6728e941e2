"""INT8 graphs in Q/DQ form; settings as in the project's notes on precision."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from optimizer.artifacts.casts import has_external_data, save, to_fp16, working_copy
from optimizer.artifacts.tensorrt_rules import SMALLEST_FP16_SCALE, check_tensorrt_rules
from optimizer.errors import BuildFailure
from optimizer.workload import Tensors, stack

_CALIBRATION_BATCH = 8
_QDQ = ("QuantizeLinear", "DequantizeLinear")


def to_int8(graph: Path, into: Path, calibration: list[Tensors], *, signed: bool) -> None:
    """Write `into`/model.onnx with quantised matrix products, in Q/DQ form.

    Weights are signed, per channel and symmetric. Signed activations are symmetric too, which
    TensorRT demands and OpenVINO likes; ONNX Runtime's CPU kernels are fast for unsigned ones only.

    Args:
        graph: directory of the FP32 model.onnx and its external data.
        into: directory, emptied of everything else that the conversion leaves.
        calibration: requests of equal shape; activation ranges are their minimum and maximum.
        signed: whether activations are.

    Raises:
        BuildFailure: when the graph has no matrix product with constant weights.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    source = working_copy(graph, into)
    quantize_static(
        source,
        into / "model.onnx",
        _Batches(calibration),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        use_external_data_format=has_external_data(graph),
        extra_options={
            "ActivationSymmetric": signed,
            "WeightSymmetric": True,
            "MatMulConstBOnly": True,
            "OpTypesToExcludeOutputQuantization": ["MatMul"],
            # TensorRT wants FP32 weights and quantises them itself; for others INT8 is smaller.
            "AddQDQPairToWeight": signed,
        },
    )
    shutil.rmtree(source.parent)
    _check_quantised(into / "model.onnx")


def to_int8_tensorrt(graph: Path, into: Path) -> None:
    """Write `into`/model.onnx as TensorRT takes it: FP16, scales too, and none of them subnormal.

    Args:
        graph: directory of a signed INT8 model.onnx, as `to_int8` writes it.
        into: directory, emptied of everything else that the conversion leaves.

    Raises:
        BuildFailure: when the graph breaks one of TensorRT's rules all the same.
    """
    import onnx

    to_fp16(graph, into)
    path = into / "model.onnx"
    model = onnx.load(path)
    names = {node.input[1] for node in model.graph.node if node.op_type in _QDQ}
    for tensor in model.graph.initializer:
        if tensor.name in names:
            scales = onnx.numpy_helper.to_array(tensor)
            floored = np.maximum(scales, scales.dtype.type(SMALLEST_FP16_SCALE))
            tensor.CopyFrom(onnx.numpy_helper.from_array(floored, tensor.name))
    save(model, into, external=has_external_data(graph))
    check_tensorrt_rules(path)


def _check_quantised(path: Path) -> None:
    import onnx

    nodes = onnx.load(path, load_external_data=False).graph.node
    if not any(node.op_type == "DequantizeLinear" for node in nodes):
        raise BuildFailure("int8: the graph has no MatMul with constant weights to quantise")


class _Batches:
    """The quantiser's way of asking for calibration data, its CalibrationDataReader."""

    def __init__(self, rows: list[Tensors]) -> None:
        starts = range(0, len(rows), _CALIBRATION_BATCH)
        self._batches = iter([stack(rows[i : i + _CALIBRATION_BATCH]) for i in starts])

    def get_next(self) -> Tensors | None:
        """Next batch, None after the last."""
        return next(self._batches, None)
