"""FP16 and INT8 graphs from an FP32 one; settings as in the project's notes on precision."""

from __future__ import annotations

import shutil
from pathlib import Path

from optimizer.errors import BuildFailure
from optimizer.workload import Tensors, stack

_CALIBRATION_BATCH = 8


def to_fp16(graph: Path, into: Path) -> None:
    """Write `into`/model.onnx with FP16 weights and arithmetic, and inputs and outputs as before.

    Args:
        graph: directory of the FP32 model.onnx and its external data.
        into: directory, emptied of everything else that the conversion leaves.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with_data = _has_external_data(graph)
    source = _working_copy(graph, into)
    converted = convert_float_to_float16(str(source), keep_io_types=True)
    shutil.rmtree(source.parent)
    onnx.save(
        converted,
        into / "model.onnx",
        save_as_external_data=with_data,
        location="model.onnx.data",
    )


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

    source = _working_copy(graph, into)
    quantize_static(
        source,
        into / "model.onnx",
        _Batches(calibration),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        use_external_data_format=_has_external_data(graph),
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


def _working_copy(graph: Path, into: Path) -> Path:
    """Copy the graph below `into`: the converters leave files beside what they read."""
    return Path(shutil.copytree(graph, into / "source")) / "model.onnx"


def _has_external_data(graph: Path) -> bool:
    return any(path.name != "model.onnx" for path in graph.iterdir())


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
