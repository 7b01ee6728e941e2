"""The results of an examination of the machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
