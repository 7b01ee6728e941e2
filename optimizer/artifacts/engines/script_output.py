"""What `build_script` says on its standard output, which shares its way with TensorRT's log."""

from __future__ import annotations

import json
from typing import Any

from optimizer.artifacts.engines.build_monitor import BuildTimedOut
from optimizer.configuration.releases import EngineFacts


def progress_in(line: str) -> str | None:
    """How far the build is, None where the line is about something else."""
    said = _said(line).get("progress")
    return str(said) if said is not None else None


def facts_of(ended: BuildTimedOut) -> EngineFacts:
    """What was built. Raises BuildFailure where nothing was, with the reason that was given."""
    said: dict[str, Any] = {}
    for line in ended.lines:
        said.update(_said(line))
    if ended.code != 0 or "facts" not in said:
        raise ended.failure(said.get("failure"))
    return facts_from_json(said["facts"])


def facts_from_json(data: dict[str, Any]) -> EngineFacts:
    """`EngineFacts` as JSON has them."""
    major, minor = data["compute_capability"]
    return EngineFacts(data["tensorrt"], data["gpu_name"], (major, minor))


def _said(line: str) -> dict[str, Any]:
    if not line.startswith('{"'):
        return {}
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
