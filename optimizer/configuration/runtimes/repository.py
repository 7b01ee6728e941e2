"""A model as it is in a Triton repository: any backend, its owner's files and settings."""

from __future__ import annotations

from optimizer.configuration.runtimes.spec import RuntimeSpec

REPOSITORY = RuntimeSpec(
    name="repository",
    precisions={"KIND_CPU": ("as_deployed",), "KIND_GPU": ("as_deployed",)},
    native_on={"KIND_CPU", "KIND_GPU"},
)
