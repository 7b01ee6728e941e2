"""Checks that run one after the other, whatever becomes of each, and leave one report.

For machines that are at hand for minutes: the report is written anew after each check, so that a
run that is cut off leaves one too.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

Figures = Mapping[str, object]
Check = Callable[[], Figures]
State = Literal["passed", "failed", "not run"]


class CannotRunError(Exception):
    """A check that this machine cannot run; the message is the cause."""


@dataclass(frozen=True)
class Outcome:
    """What became of one check.

    Attributes:
        cause: why it failed or was not run.
    """

    check: str
    state: State
    seconds: float = 0.0
    figures: Figures = field(default_factory=dict)
    cause: str = ""


@dataclass(frozen=True)
class Report:
    """The outcomes of all checks.

    Attributes:
        title: a heading, and notes that hold for every figure.
    """

    title: str
    notes: Sequence[str]
    outcomes: Sequence[Outcome]

    @property
    def exit_code(self) -> int:
        """1 where a check failed, else 3 where one was not run, else 0."""
        states = {outcome.state for outcome in self.outcomes}
        return 1 if "failed" in states else 3 if "not run" in states else 0

    def markdown(self) -> str:
        """Return the report as a page."""
        lines = [f"# {self.title}", "", *self.notes, ""]
        lines += ["| check | outcome | seconds |", "| --- | --- | --- |"]
        lines += [f"| {each.check} | {each.state} | {each.seconds:.1f} |" for each in self.outcomes]
        for each in self.outcomes:
            lines += ["", f"## {each.check}: {each.state}", ""]
            lines += [f"- {name}: {value}" for name, value in each.figures.items()]
            lines += ["```text", each.cause, "```"] if each.cause else []
        return "\n".join([*lines, ""])

    def write(self, folder: Path) -> None:
        """Write report.md and report.json."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.md").write_text(self.markdown())
        content = {**asdict(self), "exit_code": self.exit_code}
        (folder / "report.json").write_text(json.dumps(content, indent=1, default=str))


def run_checks(
    title: str, notes: Sequence[str], checks: Mapping[str, Check], folder: Path
) -> Report:
    """Run every check, and return the report, which lies in `folder` then."""
    outcomes = {name: Outcome(name, "not run", cause="it was not reached") for name in checks}
    report = Report(title, notes, tuple(outcomes.values()))
    report.write(folder)
    for name, check in checks.items():
        print(f"{name} ...", flush=True)
        outcomes[name] = _outcome(name, check)
        print(f"  {outcomes[name].state} {outcomes[name].cause}".rstrip(), flush=True)
        report = Report(title, notes, tuple(outcomes.values()))
        report.write(folder)
    return report


def _outcome(name: str, check: Check) -> Outcome:
    started = time.monotonic()
    try:
        return Outcome(name, "passed", figures=check(), seconds=time.monotonic() - started)
    except CannotRunError as error:
        return Outcome(name, "not run", cause=str(error))
    except Exception as error:  # noqa: BLE001 - the others go on, whatever is wrong with this one
        where = traceback.extract_tb(error.__traceback__)[-1]
        cause = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        return Outcome(name, "failed", time.monotonic() - started, cause=cause)
