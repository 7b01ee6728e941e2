"""Recordings of production counters: one JSON object a line, with Triton's own JSON inside.

A line has what one server answered at one time. `observe --record` writes such a file, and so does
a shell with curl:

    {"seconds": 12.5, "replica": "gpu-1:8001", "stats": {"model_stats": [...]},
     "configs": {"bert": {...}}, "metrics": "nv_inference_..."}

`stats` is the answer of v2/models/stats, `configs` has that of v2/models/MODEL/config by model
wherever it has changed, and `metrics` the text of /metrics. `error` says why a read failed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optimizer.errors import UsageError
from optimizer.files.untrusted import UnreadableError, parse_json, read_text

_MOST_BYTES = 512 * 2**20
_ONE_SERVER = "server"


@dataclass(frozen=True)
class CounterReading:
    """What one server answered at one time.

    Attributes:
        seconds: when it was read, from any origin that all readings share.
        replica: name of the server.
        stats: answer of v2/models/stats; empty where the read failed.
        configs: configurations by model, of those that have changed since the last reading.
        metrics: text of /metrics, of the model alone.
        error: why the read failed; empty where it did not.
    """

    seconds: float
    replica: str = _ONE_SERVER
    stats: Mapping[str, Any] = field(default_factory=dict)
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    metrics: str = ""
    error: str = ""

    def to_line(self) -> str:
        """Return the line of a recording, with its line end."""
        return json.dumps({name: value for name, value in vars(self).items() if value != ""}) + "\n"


_KINDS: Mapping[str, tuple[type | tuple[type, ...], str]] = {
    "seconds": ((int, float), "a number"),
    "replica": (str, "a text"),
    "stats": (dict, "an object, as v2/models/stats returns it"),
    "configs": (dict, "an object with the configuration of each model"),
    "metrics": (str, "a text"),
    "error": (str, "a text"),
}


def read_recording(path: Path) -> tuple[CounterReading, ...]:
    """Read a recording. Raises UsageError, naming the line, the key and the rule."""
    try:
        lines = read_text(path, _MOST_BYTES).splitlines()
        return tuple(_reading(n, line) for n, line in enumerate(lines, 1) if line.strip())
    except UnreadableError as error:
        raise UsageError(f"{path}: {error}") from error


def _reading(number: int, line: str) -> CounterReading:
    try:
        content = parse_json(line)
    except UnreadableError as error:
        raise UnreadableError(f"line {number}: {error}") from error
    if not isinstance(content, dict) or "seconds" not in content:
        raise UnreadableError(
            f"line {number}: must be an object with the keys seconds and stats, such as `observe"
            " --record` writes"
        )
    for name, value in content.items():
        if name not in _KINDS:
            raise UnreadableError(f"line {number}: {name}: must be one of {', '.join(_KINDS)}")
        kind, rule = _KINDS[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UnreadableError(f"line {number}: {name}: must be {rule}")
    rows = content.get("stats", {}).get("model_stats", [])
    named = isinstance(rows, list) and all(
        isinstance(row, dict) and isinstance(row.get("name"), str) for row in rows
    )
    if not named:
        raise UnreadableError(
            f"line {number}: stats.model_stats: must list models with their names"
        )
    if not all(isinstance(each, dict) for each in content.get("configs", {}).values()):
        raise UnreadableError(f"line {number}: configs: must have an object for each model")
    return CounterReading(**content)
