"""Opens model.xml with OpenVINO on the CPU. Runs inside Triton, without this package."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

import openvino

_CHANNELS_OF_A_SCALE = 64
"""Channels of one row of an activation that share a scale: on MiniLM as fast as 128, and nearly as
accurate as 32. A layer whose width is no multiple of it is computed in floating point."""


def inference_precision(precision: str, capabilities: Collection[str]) -> str:
    """Return the precision of what is not quantised; INT8 itself lies in the graph."""
    if precision in {"int8", "int8_dynamic"}:
        return "bf16" if "BF16" in capabilities else "f32"
    return {"fp32": "f32", "bf16": "bf16"}[precision]


def open_session(
    directory: str, outputs: list[str], precision: str, threads: int, gpu: int | None
) -> Callable[[Mapping[str, Any]], list[Any]]:
    """Return run(inputs by name) -> arrays of the outputs."""
    core = openvino.Core()
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": inference_precision(precision, capabilities),
        # Pinned, two instances would share one core: each pins from the first core on.
        "ENABLE_CPU_PINNING": False,
    }
    if precision == "int8_dynamic":
        settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = _CHANNELS_OF_A_SCALE
    model = core.compile_model(os.path.join(directory, "model.xml"), "CPU", settings)
    request, ports = model.create_infer_request(), [model.output(name) for name in outputs]

    def run(inputs: Mapping[str, Any]) -> list[Any]:
        results = request.infer(inputs, share_inputs=True)
        # The results lie in the request's memory, which the next batch overwrites.
        return [results[port].copy() for port in ports]

    return run
