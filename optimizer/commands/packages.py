"""Python packages that a space needs on this machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection

from optimizer.configuration.runtimes import HOSTED_PACKAGE
from optimizer.errors import RequirementError
from optimizer.space_file.reader import Space
from optimizer.workload.model_spec import RepositorySource, TransformersSource

GRAPH_PACKAGES = {"onnx", "onnxruntime"}
"""Needed to make the files of any model."""

EXPORT_PACKAGES = {"torch", "transformers", "onnxscript"}
"""Needed to export a model of transformers; an ONNX file needs none of them."""

PACKAGES_FOR = {False: "triton-cost-optimizer[embedded]", True: "triton-cost-optimizer[gpu]"}
"""What installs them, by whether models run on GPUs of a server in a container."""


def require_packages(space: Space, more: Collection[str] = ()) -> None:
    """Check that all packages are installed before anything is built. Raises RequirementError."""
    as_they_are = all(isinstance(model.source, RepositorySource) for model in space.models)
    needed = {*(() if as_they_are else GRAPH_PACKAGES), *more}
    runtimes = {spec.runtime for spec in space.search_space.artifacts}
    # `require_host` checks what builds engines.
    needed |= {HOSTED_PACKAGE[runtime] for runtime in runtimes if runtime in HOSTED_PACKAGE}
    if any(isinstance(model.source, TransformersSource) for model in space.models):
        needed |= EXPORT_PACKAGES
    missing = sorted(name for name in needed if importlib.util.find_spec(name) is None)
    if missing:
        hardware = space.search_space.hardware
        in_container = bool(hardware.gpus) and not hardware.only_python_backend
        remedy = f"pip install '{PACKAGES_FOR[in_container]}'"
        raise RequirementError(f"this space needs {', '.join(missing)}: {remedy}")
