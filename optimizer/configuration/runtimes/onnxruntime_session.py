"""Opens model.onnx with ONNX Runtime on the CPU. Runs inside Triton, without this package."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import onnxruntime


def open_session(
    directory: str, outputs: list[str], precision: str, threads: int, gpu: int | None
) -> Callable[[Mapping[str, Any]], list[Any]]:
    """Return run(inputs by name) -> arrays of the outputs. The precision is the graph's."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads take the cores from the other instances and from the server itself.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        os.path.join(directory, "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    return lambda inputs: list(session.run(outputs, inputs))
