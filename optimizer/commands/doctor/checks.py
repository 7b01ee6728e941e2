"""The results of an examination of the machine, and checks of its parts with a timeout."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from optimizer.errors import RequirementError

T = TypeVar("T")

_SECONDS = 30.0
"""A network disk, or a Docker engine on a busy machine, takes some seconds to answer."""


State = Literal["ok", "missing", "unknown"]


@dataclass(frozen=True)
class CheckResult:
    """The result of checking one part of the machine.

    Attributes:
        state: ok; missing, which includes what is not as it must be; or unknown.
        detail: the part itself, or why it is missing or unknown.
        remedy: what to do about it, None where there is nothing to do.
    """

    part: str
    state: State
    detail: str
    remedy: str | None = None


@dataclass(frozen=True)
class Area:
    """Parts that belong together."""

    name: str
    results: tuple[CheckResult, ...]


@dataclass(frozen=True)
class Ability:
    """Whether one kind of server can run here.

    Attributes:
        state: ok where it can run, missing where it cannot; or unknown.
        how: what it runs with, or what it needs first.
    """

    server: str
    state: State
    how: str


@dataclass(frozen=True)
class Examination:
    """The results of all parts, and the servers that can run."""

    areas: tuple[Area, ...]
    abilities: tuple[Ability, ...]

    @property
    def can_serve(self) -> bool:
        """Whether a server of some kind can run."""
        return any(ability.state == "ok" for ability in self.abilities)

    @property
    def remedies(self) -> dict[str, tuple[str, ...]]:
        """Each remedy with the parts that it is for, in the order of the parts."""
        parts: dict[str, tuple[str, ...]] = {}
        for area in self.areas:
            for result in area.results:
                if result.remedy is not None:
                    parts[result.remedy] = (*parts.get(result.remedy, ()), result.part)
        return parts


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
