"""Softmax with labels: labels.json, the last step of a generated pipeline."""

from __future__ import annotations

from optimizer.configuration.runtimes.spec import RuntimeSpec

SOFTMAX = RuntimeSpec(
    name="softmax",
    precisions={"KIND_CPU": ("as_deployed",)},
    package="numpy",
    step=True,
)
