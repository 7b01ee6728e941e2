"""ONNX Runtime: loads the ONNX graphs as they are."""

from __future__ import annotations

from optimizer.configuration.runtimes.spec import RuntimeSpec

ONNXRUNTIME = RuntimeSpec(
    name="onnxruntime",
    precisions={
        "KIND_CPU": ("fp32", "fp16", "int8", "int8_dynamic"),
        # Its CUDA provider has no kernels for quantised matrix products.
        "KIND_GPU": ("fp32", "fp16"),
    },
    package="onnxruntime",
    package_on_gpus="onnxruntime-gpu",
    native_on={"KIND_GPU"},
    graphs={
        "fp32": "fp32",
        "fp16": "fp16",
        "int8": "int8_u8s8",
        "int8_dynamic": "int8_dynamic",
    },
)
