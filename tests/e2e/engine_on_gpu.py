"""Looks at a TensorRT engine on its GPU: a program for any Python that has TensorRT.

    python3 engine_on_gpu.py layers model.plan    the names of its layers
    python3 engine_on_gpu.py graphs model.plan    its times with and without a CUDA graph

Each prints JSON in one line, the last. Nothing of this project is imported. `graphs` needs PyTorch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_REPEATS = 50


def load(plan: str) -> Any:
    """Return the engine of a plan."""
    import tensorrt as trt

    engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(
        Path(plan).read_bytes()
    )
    if engine is None:
        sys.exit(f"TensorRT {trt.__version__} does not load {plan}")
    return engine


def layers(plan: str) -> list[str]:
    """Return the names of the layers, as TensorRT's inspector gives them."""
    import tensorrt as trt

    inspector = load(plan).create_engine_inspector()
    return names_in(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def names_in(information: str) -> list[str]:
    """Return the names in the inspector's JSON; layers are objects in engines built for details."""
    listed = json.loads(information)["Layers"]
    return [layer["Name"] if isinstance(layer, dict) else layer for layer in listed]


def graphs(plan: str) -> dict[str, float]:
    """Execute the engine on ones at its largest batch, also recorded as a CUDA graph."""
    import torch

    engine = load(plan)
    context = engine.create_execution_context()
    names = [engine.get_tensor_name(n) for n in range(engine.num_io_tensors)]
    inputs = [name for name in names if "INPUT" in str(engine.get_tensor_mode(name))]
    for name in inputs:
        context.set_input_shape(name, engine.get_tensor_profile_shape(name, 0)[2])
    types = {"INT64": torch.int64, "INT32": torch.int32, "FLOAT": torch.float32}
    tensors = {
        name: torch.ones(
            tuple(context.get_tensor_shape(name)),
            dtype=types[str(engine.get_tensor_dtype(name)).rpartition(".")[2]],
            device="cuda",
        )
        for name in names
    }
    for name, tensor in tensors.items():
        context.set_tensor_address(name, tensor.data_ptr())
    stream = torch.cuda.Stream()

    def execute() -> None:
        context.execute_async_v3(torch.cuda.current_stream().cuda_stream)

    with torch.cuda.stream(stream):
        execute()
        stream.synchronize()
        [direct, *_] = [tensors[name].clone() for name in names if name not in inputs]
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded, stream=stream):
            execute()
        recorded.replay()
        stream.synchronize()
        [replayed, *_] = [tensors[name] for name in names if name not in inputs]
        difference = float((direct.double() - replayed.double()).abs().max())
        times = {}
        for way, run in (("without_ms", execute), ("with_ms", recorded.replay)):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(_REPEATS):
                run()
            end.record()
            end.synchronize()
            times[way] = start.elapsed_time(end) / _REPEATS
    return {"largest_difference": difference, **times}


if __name__ == "__main__":
    print(json.dumps((layers if sys.argv[1] == "layers" else graphs)(sys.argv[2])))
