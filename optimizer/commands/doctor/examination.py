"""What an examination of the machine found. Pure values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "missing", "unknown"]


@dataclass(frozen=True)
class CheckResult:
    """One part of the machine.

    Attributes:
        state: ok as it is; missing, or not as it must be; or unknown.
        found: what there is, or why it is not known.
        remedy: what to do about it, None where nothing is to be done.
    """

    part: str
    state: State
    found: str
    remedy: str | None = None


@dataclass(frozen=True)
class Area:
    """Parts that belong together."""

    name: str
    findings: tuple[CheckResult, ...]


@dataclass(frozen=True)
class Ability:
    """One kind of server, and whether it can run here.

    Attributes:
        state: ok, it can; missing, it cannot; or unknown.
        how: with what it runs, or what it needs first.
    """

    server: str
    state: State
    how: str


@dataclass(frozen=True)
class Examination:
    """All that was found, and what follows from it."""

    areas: tuple[Area, ...]
    abilities: tuple[Ability, ...]

    @property
    def can_serve(self) -> bool:
        """Whether a server of some kind can run."""
        return any(ability.state == "ok" for ability in self.abilities)

    @property
    def remedies(self) -> dict[str, tuple[str, ...]]:
        """What to do, in the order of the parts, each once and with the parts that it is for."""
        found = [f for area in self.areas for f in area.findings if f.remedy is not None]
        return {
            remedy: tuple(finding.part for finding in found if finding.remedy == remedy)
            for remedy in dict.fromkeys(f.remedy for f in found if f.remedy is not None)
        }
