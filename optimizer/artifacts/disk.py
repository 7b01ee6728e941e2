"""Estimate the disk space that the artefacts of a model take, before the first is built."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from optimizer.configuration.runtimes.spec import Precision
from optimizer.configuration.serving_config import ArtifactSpec
from optimizer.errors import RequirementError

_SHARE: dict[Precision, float] = {
    "fp32": 1.0,
    "bf16": 0.5,
    "fp16": 0.5,
    "int8": 1.0,
    "int8_dynamic": 1.0,
    "int8_attention": 1.0,
    "as_deployed": 1.0,
}
"""Size of a file relative to the FP32 graph; INT8 graphs may keep the weights in FP32."""

_PLAN_SHARE = 1.25
"""Size of an engine relative to its graph: it adds kernels, and some weights in two layouts."""

_WORKING_COPIES = 2.0
"""Temporary files of a conversion, relative to the FP32 graph."""

_LEAST_BYTES = 64 * 2**20
"""Kernels, timing caches and manifests of small models."""

_MIB = 2**20


def bytes_needed(graph_bytes: int, specs: Iterable[ArtifactSpec]) -> int:
    """Return an upper estimate of the bytes that building takes; 0 where nothing is missing.

    Args:
        graph_bytes: size of the FP32 graph, with its external data.
        specs: artefacts that are missing.
    """
    missing = list(specs)
    if not missing:
        return 0
    # Most runtimes convert a graph of their own, which stays in the cache too.
    graphs = {(spec.runtime, spec.precision) for spec in missing}
    shares = 2 * sum(_SHARE[precision] for _, precision in graphs)
    shares += sum(_PLAN_SHARE * _SHARE[s.precision] for s in missing if s.runtime == "tensorrt")
    return round(graph_bytes * (shares + _WORKING_COPIES)) + _LEAST_BYTES


def require_room(folder: Path, graph_bytes: int, specs: Iterable[ArtifactSpec]) -> None:
    """Check that the disk of `folder` has the space that building takes.

    Raises:
        RequirementError: when it does not.
    """
    needed, free = bytes_needed(graph_bytes, specs), shutil.disk_usage(folder).free
    if needed > free:
        raise RequirementError(
            f"{folder}: building what this space needs takes about {needed / _MIB:.0f} MiB,"
            f" {free / _MIB:.0f} MiB are free: make room, or name another folder with --cache"
        )
