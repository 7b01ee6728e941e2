"""Read the JSON lines of `build_script` from an output that TensorRT's log shares."""

from __future__ import annotations

import json
from typing import Any

from optimizer.artifacts.engines.build_monitor import FinishedBuild
from optimizer.configuration.releases import EngineFacts


def progress_in(line: str) -> str | None:
    """Return the progress text of a line, None for other lines."""
    progress = _message(line).get("progress")
    return str(progress) if progress is not None else None


def facts_of(build: FinishedBuild) -> EngineFacts:
    """Return the facts of the engine. Raises BuildFailure with the script's reason without one."""
    messages: dict[str, Any] = {}
    for line in build.lines:
        messages.update(_message(line))
    if build.code != 0 or "facts" not in messages:
        raise build.failure(messages.get("failure"))
    return facts_from_json(messages["facts"])


def facts_from_json(data: dict[str, Any]) -> EngineFacts:
    """Return `EngineFacts` from their JSON."""
    major, minor = data["compute_capability"]
    return EngineFacts(data["tensorrt"], data["gpu_name"], (major, minor))


def _message(line: str) -> dict[str, Any]:
    if not line.startswith('{"'):
        return {}
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}
