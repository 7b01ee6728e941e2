"""Check one part of the machine, with a timeout, so that its failure affects no other part."""

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
"""A network disk, or a Docker engine on a busy machine, takes some seconds to answer."""


@dataclass(frozen=True)
class NotChecked:
    """Why a part could not be checked: it is missing, or its state is unknown."""

    state: Literal["missing", "unknown"]
    why: str
    remedy: str | None = None

    def result(self, part: str) -> CheckResult:
        """Return it as the result of a part."""
        return CheckResult(part, self.state, self.why, self.remedy)


def start_check(
    check: Callable[[], T], seconds: float | None = None
) -> Callable[[], T | NotChecked]:
    """Start a check; return a function that waits for its outcome or its timeout.

    A check that raises RequirementError finds something missing. After another error, the state of
    its part is unknown.
    """
    seconds = _SECONDS if seconds is None else seconds
    outcomes: list[T | NotChecked] = []
    # A call that never returns must not keep the process from ending.
    thread = threading.Thread(target=lambda: outcomes.append(_outcome(check)), daemon=True)
    end = time.monotonic() + seconds
    thread.start()

    def wait() -> T | NotChecked:
        thread.join(max(0.0, end - time.monotonic()))
        return outcomes[0] if outcomes else NotChecked("unknown", f"no answer within {seconds:g} s")

    return wait


def _outcome(check: Callable[[], T]) -> T | NotChecked:
    try:
        return check()
    except RequirementError as error:
        return NotChecked("missing", error.lacks, error.remedy)
    except Exception as error:  # noqa: BLE001 - the other parts are still reported
        return NotChecked("unknown", f"{type(error).__name__}: {error}")
