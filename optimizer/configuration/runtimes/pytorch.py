"""PyTorch: model.pt2, a `torch.export` program, which needs torch to run but not transformers."""

from __future__ import annotations

from optimizer.configuration.runtimes.spec import RuntimeSpec

PYTORCH = RuntimeSpec(
    name="pytorch",
    precisions={
        "KIND_CPU": ("fp32", "bf16", "fp16"),
        "KIND_GPU": ("fp32", "bf16", "fp16"),
    },
    package="torch",
)
