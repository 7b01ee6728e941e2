"""Commands run in the process of the tests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it printed."""

    code: object
    out: str
    err: str


Commands = Callable[..., Said]


def imported_by(*arguments: str) -> set[str]:
    """Return what a command imports, in a process of its own: this one has imported everything."""
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "optimizer", *arguments],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    imported = {line.rpartition("|")[2].strip() for line in ran.stderr.splitlines()}
    assert "optimizer.cli" in imported
    return imported
