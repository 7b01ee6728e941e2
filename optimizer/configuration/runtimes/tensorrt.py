"""TensorRT: model.plan, built on and for one GPU model by `optimizer.artifacts.engines`.

Networks are strongly typed, so the precision of an engine is that of its ONNX graph.
"""

from __future__ import annotations

from optimizer.configuration.runtimes.spec import RuntimeSpec

TENSORRT = RuntimeSpec(
    name="tensorrt",
    precisions={"KIND_GPU": ("fp32", "bf16", "fp16", "int8", "int8_attention")},
    native_on={"KIND_CPU", "KIND_GPU"},
    graphs={
        "fp32": "fp32",
        "fp16": "fp16",
        "bf16": "bf16",
        "int8": "int8_trt",
        "int8_attention": "int8_trt_attention",
    },
)
