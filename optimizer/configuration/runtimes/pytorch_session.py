"""Opens model.pt2, a `torch.export` program, with PyTorch on the CPU or on one GPU.

Runs inside Triton, without this package.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

# Read when OpenMP starts: threads that spin while they wait take the cores from everything else.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch.export.passes import move_to_device_pass


def open_session(
    directory: str, outputs: list[str], precision: str, threads: int, gpu: int | None
) -> Callable[[Mapping[str, Any]], list[Any]]:
    """Return run(inputs by name) -> arrays of the outputs. The precision is the program's."""
    torch.set_num_threads(threads)
    program = torch.export.load(os.path.join(directory, "model.pt2"))
    device = "cpu"
    if gpu is not None:
        device = f"cuda:{gpu}"
        # TF32 would round FP32 products, and FP32 is the unoptimised reference.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        program = move_to_device_pass(program, device)
    module = program.module()

    def run(inputs: Mapping[str, Any]) -> list[Any]:
        tensors = {name: torch.from_numpy(array).to(device) for name, array in inputs.items()}
        with torch.inference_mode():
            results = module(**tensors)
        return [result.cpu().numpy() for result in results]

    return run
