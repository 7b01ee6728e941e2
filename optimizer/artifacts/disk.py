"""How much room the artefacts of a model take, known before the first is built."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from optimizer.configuration.serving_config import ArtifactSpec
from optimizer.errors import RequirementError
from optimizer.runtimes.spec import Precision

_SHARE: dict[Precision, float] = {"fp32": 1.0, "bf16": 0.5, "fp16": 0.5, "int8": 1.0}
"""Size of a file with these weights, of the FP32 graph's; those to be quantised may stay FP32."""

_PLAN_SHARE = 1.25
"""Size of a plan, of that: it holds its kernels too, and some weights in two layouts."""

_WORKING_COPIES = 2.0
"""What a conversion holds beside its result, of the FP32 graph's size."""

_LEAST_BYTES = 64 * 2**20
"""Kernels, timing caches and manifests of small models."""

_MIB = 2**20


def bytes_needed(graph_bytes: int, specs: Iterable[ArtifactSpec]) -> int:
    """Room that building takes, rather more than less; 0 where nothing is to be built.

    Args:
        graph_bytes: size of the FP32 graph, with its external data.
        specs: what is still to be built; every engine is a plan of its own.
    """
    wanted = list(specs)
    if not wanted:
        return 0
    # A runtime takes a graph of its own kind, and most make another file of it.
    shares = 2 * sum(
        _SHARE[precision] for _, precision in {(s.runtime, s.precision) for s in wanted}
    )
    shares += sum(_PLAN_SHARE * _SHARE[s.precision] for s in wanted if s.runtime == "tensorrt")
    return round(graph_bytes * (shares + _WORKING_COPIES)) + _LEAST_BYTES


def require_room(folder: Path, graph_bytes: int, specs: Iterable[ArtifactSpec]) -> None:
    """Hold what building takes against the disk of `folder`.

    Raises:
        RequirementError: when there is too little room.
    """
    needed, free = bytes_needed(graph_bytes, specs), shutil.disk_usage(folder).free
    if needed > free:
        raise RequirementError(
            f"{folder}: building what this space needs takes about {needed / _MIB:.0f} MiB,"
            f" {free / _MIB:.0f} MiB are free: make room, or name another folder with --cache"
        )
