"""OpenVINO: model.xml and model.bin, converted from the ONNX graphs.

FP32 and BF16 are the same files: the precision is chosen when the model is compiled
(INFERENCE_PRECISION_HINT).
"""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

from optimizer.configuration.runtimes.spec import VNNI, Precision, RuntimeSpec

_BF16_FLAGS = {"avx512f", "avx_ne_convert"}
"""Vector extensions with which OpenVINO computes in BF16; with AVX2 alone it computes in FP32."""


def _processor_lacks(precision: Precision, flags: Set[str]) -> str | None:
    if precision == "int8_dynamic" and not flags & VNNI:
        return (
            "int8_dynamic needs a processor with VNNI, and this one has none: OpenVINO 2026.4 "
            "answers wrongly there"
        )
    if precision != "bf16" or flags & _BF16_FLAGS:
        return None
    return (
        "bf16 needs a processor with AVX-512 or AVX-NE-CONVERT, and this one has neither:"
        " OpenVINO would compute in FP32"
    )


def _convert(graph: Path, into: Path) -> None:
    import openvino

    # openvino.convert_model would write telemetry files to the home directory.
    model = openvino.Core().read_model(graph / "model.onnx")
    openvino.save_model(model, into / "model.xml", compress_to_fp16=False)


OPENVINO = RuntimeSpec(
    name="openvino",
    precisions={"KIND_CPU": ("fp32", "bf16", "int8", "int8_dynamic")},
    package="openvino",
    graphs={
        "fp32": "fp32",
        "bf16": "fp32",
        "int8": "int8_u8s8",
        "int8_dynamic": "int8_weights",
    },
    convert=_convert,
    processor_lacks=_processor_lacks,
)
