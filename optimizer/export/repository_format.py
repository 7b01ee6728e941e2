"""The format `repository`: the bundle itself, which `optimizer serve` starts."""

from __future__ import annotations

from pathlib import Path

from optimizer.export.bundle.manifest import Bundle


def as_repository(bundle: Bundle, target: Path) -> None:
    """Move everything there."""
    for path in bundle.root.iterdir():
        path.rename(target / path.name)
