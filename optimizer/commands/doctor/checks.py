"""Looking at one part of the machine: in a time of its own, and its failure is its own too."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from optimizer.commands.doctor.examination import CheckResult
from optimizer.errors import RequirementError

T = TypeVar("T")

_SECONDS = 30.0
"""A disk on a network, or an engine on a busy machine, takes some of these."""


@dataclass(frozen=True)
class Unseen:
    """Why there is nothing to see of a part."""

    state: Literal["missing", "unknown"]
    why: str
    remedy: str | None = None

    def finding(self, part: str) -> CheckResult:
        """It as what was found of a part."""
        return CheckResult(part, self.state, self.why, self.remedy)


def look(probe: Callable[[], T], seconds: float | None = None) -> Callable[[], T | Unseen]:
    """Begin to look; what is returned waits until that has ended, or its time is up.

    A probe that raises RequirementError says that something is missing. Whatever else it raises
    leaves its part unknown.
    """
    seconds = _SECONDS if seconds is None else seconds
    seen: list[T | Unseen] = []
    # A call that never returns must not keep the process from ending.
    thread = threading.Thread(target=lambda: seen.append(_outcome(probe)), daemon=True)
    end = time.monotonic() + seconds
    thread.start()

    def wait() -> T | Unseen:
        thread.join(max(0.0, end - time.monotonic()))
        return seen[0] if seen else Unseen("unknown", f"no answer within {seconds:g} s")

    return wait


def _outcome(probe: Callable[[], T]) -> T | Unseen:
    try:
        return probe()
    except RequirementError as error:
        return Unseen("missing", error.lacks, error.remedy)
    except Exception as error:  # noqa: BLE001 - the other parts are still to be told
        return Unseen("unknown", f"{type(error).__name__}: {error}")
