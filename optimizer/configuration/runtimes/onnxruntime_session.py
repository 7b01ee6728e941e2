"""Opens model.onnx with ONNX Runtime on the CPU or on one GPU.

Runs inside Triton, without this package.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import onnxruntime

_CUDA = "CUDAExecutionProvider"


def open_session(
    directory: str, outputs: list[str], precision: str, threads: int, gpu: int | None
) -> Callable[[Mapping[str, Any]], list[Any]]:
    """Return run(inputs by name) -> arrays of the outputs. The precision is the graph's."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads take the cores from the other instances and from the server itself.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    path = os.path.join(directory, "model.onnx")
    if gpu is None:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    else:
        session = _on_gpu(path, options, gpu)
    return lambda inputs: list(session.run(outputs, inputs))


def _on_gpu(path: str, options: Any, gpu: int) -> Any:
    """Return a session on a GPU. Raises RuntimeError where it would execute on the CPU instead."""
    onnxruntime.preload_dlls()  # CUDA's libraries are those of Python packages, if any
    # TF32 would round FP32 products, and FP32 is the unoptimised reference.
    cuda = (_CUDA, {"device_id": str(gpu), "use_tf32": "0"})
    # After a failed execution it would go on, on the CPU.
    session = onnxruntime.InferenceSession(path, options, providers=[cuda], enable_fallback=0)
    if _CUDA not in session.get_providers():
        raise RuntimeError(
            f"ONNX Runtime {onnxruntime.__version__} cannot use the GPU: it needs onnxruntime-gpu, "
            "and the CUDA libraries and cuDNN that this is built for"
        )
    return session
