"""Opens model.xml with OpenVINO on the CPU."""

import os

import openvino

_INFERENCE_PRECISION = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""Arithmetic of what is not quantised; int8 itself lies in the graph."""


def open_session(directory, output, precision, threads, gpu):
    """Return run(inputs by name) -> output array; on the CPU alone."""
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": _INFERENCE_PRECISION[precision],
        # Pinned, two instances would share one core: each pins from the first core on.
        "ENABLE_CPU_PINNING": False,
    }
    model = openvino.Core().compile_model(os.path.join(directory, "model.xml"), "CPU", settings)
    request, port = model.create_infer_request(), model.output(output)
    # The result lives in the request's memory, which the next batch overwrites.
    return lambda inputs: request.infer(inputs, share_inputs=True)[port].copy()
