"""Atomic writes: a file is whole or absent, whatever ends the process."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from optimizer.errors import storage_errors
from optimizer.files.owned_names import owned_name, remove_abandoned

_NEW = ".new"


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name, flush it to disk and rename it.

    Raises:
        StorageError: when it cannot be written; nothing of it is then left.
    """
    temporary = path.with_name(owned_name(f".{path.name}{_NEW}"))
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


def write_json(path: Path, data: object) -> None:
    """Write indented JSON like `write_text`; NaN and infinity are refused with ValueError."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def remove_unfinished(root: Path) -> None:
    """Remove the temporary files below a folder that killed processes were writing."""
    for folder in (root, *(path for path in root.iterdir() if path.is_dir())):
        remove_abandoned(folder, f".*{_NEW}")
