"""Atomic writes: a file is whole or absent, whatever ends the process."""

from __future__ import annotations

import json
import os
from pathlib import Path

from optimizer.errors import storage_errors


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name, flush it to disk and rename it.

    Raises:
        StorageError: when it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.new")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def write_json(path: Path, data: object) -> None:
    """Write indented JSON like `write_text`; NaN and infinity are refused with ValueError."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")
