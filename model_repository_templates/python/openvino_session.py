"""Opens model.xml with OpenVINO on the CPU."""

import os

import openvino


def inference_precision(precision, capabilities):
    """Return the arithmetic of what is not quantised; int8 itself lies in the graph."""
    if precision == "int8":
        return "bf16" if "BF16" in capabilities else "f32"
    return {"fp32": "f32", "bf16": "bf16"}[precision]


def open_session(directory, output, precision, threads, gpu):
    """Return run(inputs by name) -> output array; on the CPU alone."""
    core = openvino.Core()
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": inference_precision(precision, capabilities),
        # Pinned, two instances would share one core: each pins from the first core on.
        "ENABLE_CPU_PINNING": False,
    }
    model = core.compile_model(os.path.join(directory, "model.xml"), "CPU", settings)
    request, port = model.create_infer_request(), model.output(output)
    # The result lives in the request's memory, which the next batch overwrites.
    return lambda inputs: request.infer(inputs, share_inputs=True)[port].copy()
