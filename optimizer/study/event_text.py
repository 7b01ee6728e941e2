"""Events as plain lines, for a terminal, a pipe and the log of a run. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from optimizer.configuration.serving_config import describe
from optimizer.load.level_checks import capacity_basis, level_verdict
from optimizer.measurement.level import LoadLevel, Measurement
from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.events import (
    ArtifactReady,
    DriftRunStarted,
    Event,
    LevelFinished,
    LevelStarted,
    Note,
    PhaseStarted,
    SearchStatusChanged,
    StepStarted,
    TrialFinished,
    TrialStarted,
)
from optimizer.study.search_status import ExpectedCost


def level_text(level: LoadLevel) -> str:
    """A measured level in one line."""
    verdict = level_verdict(level)
    shown = f", {verdict}" if verdict is not None else ""
    served = f"{level.achieved_per_second:.0f}/s served, p95 {level.latency_ms(95):.1f} ms"
    return f"{load_text(level)}: {served}{shown}"


def load_text(level: LoadLevel) -> str:
    """What a level offered, in a word."""
    return "saturation" if level.kind == "saturation" else f"{level.offered_per_second:.0f}/s"


def level_lines(level: LoadLevel) -> list[str]:
    """A measured level, and below it what a reader must know before trusting it."""
    return [level_text(level), *(f"  warning: {text}" for text in level.warnings)]


def trial_text(record: TrialRecord) -> str:
    """What came of a trial, in one line without its configuration."""
    if record.score is not None and record.measurement is not None:
        cost = f"${record.score.usd_per_million_at_capacity:.4f} per million"
        return f"{capacity_text(record.measurement)}, {cost}{_further_text(record)}"
    if record.outcome == "ok" and record.measurement is not None:
        return f"holds {capacity_text(record.measurement)}"
    return record.reason + _further_text(record)


def capacity_text(measurement: Measurement) -> str:
    """Return a capacity; one that was not measured itself with the level that it follows from."""
    basis = capacity_basis(measurement)
    return f"{measurement.capacity_per_second:.0f}/s" + (f" ({basis})" if basis else "")


def _further_text(record: TrialRecord) -> str:
    """What is served within further limits."""
    return "".join(
        f"; within {each.limit_ms:g} ms: {capacity_text(each.measurement)}"
        for each in record.further
    )


def expectation_text(expected: ExpectedCost) -> str:
    """Why a configuration was proposed, and what is expected of it."""
    low, cost, high = expected.low, expected.usd_per_million, expected.high
    saving = f", saving {expected.saving:.1%}" if expected.saving is not None else ""
    return (
        f"{expected.why}: ${cost:.4f} per million ({low:.4f} to {high:.4f}){saving}, "
        f"{expected.feasible:.0%} likely within the limits, in {expected.seconds:.0f} s"
    )


def regret_text(regret_bound: float) -> str:
    """What the search may have missed so far."""
    return f"an unmeasured configuration may be up to {regret_bound:.0%} cheaper (95%)"


def event_lines(event: Event, *, verbose: bool = False) -> list[str]:
    """An event as lines; none where it is not worth keeping.

    Args:
        verbose: say every step, the beginning of every level, and what is expected of a proposal.
    """
    text = _text(event)
    if text is None and verbose:
        text = _detail(event)
    lines = text.split("\n") if text is not None else []
    if verbose and isinstance(event, TrialStarted) and event.expected is not None:
        lines.append(f"      {expectation_text(event.expected)}")
    return lines


def _text(event: Event) -> str | None:
    match event:
        case PhaseStarted(phase, steps):
            text = f"{phase}: up to {steps} steps"
        case ArtifactReady(name, detail, dropped):
            text = f"  {name}: {'left out, ' if dropped else ''}{detail}"
        case TrialStarted(_, measured, of, config):
            text = f"  {measured}/{of} {describe(config)}"
        case DriftRunStarted(config):
            text = f"  the pace of the machine: {describe(config)}"
        case LevelFinished(level):
            text = "\n".join(f"      {line}" for line in level_lines(level))
        case TrialFinished(record, _):
            text = f"    {record.outcome}: {trial_text(record)}"
        case Note(said):
            text = said
        case _:
            return None
    return text


def _detail(event: Event) -> str | None:
    match event:
        case StepStarted(doing):
            return f"      {doing}"
        case LevelStarted(offered, seconds):
            return f"      {level_started_text(offered, seconds)}"
        case SearchStatusChanged(status) if status.regret_bound is not None:
            return f"  {regret_text(status.regret_bound)}"
        case _:
            return None


def level_started_text(offered_per_second: float | None, seconds: float) -> str:
    """A level that begins, in a few words."""
    load = "saturating" if offered_per_second is None else f"offering {offered_per_second:.0f}/s"
    return f"{load} for {seconds:.0f} s"


def warnings_of(event: Event) -> Iterator[str]:
    """What a person must know even if they want to hear nothing else."""
    match event:
        case Note(text, warning=True):
            yield text
        case ArtifactReady(label, detail, dropped=True):
            yield f"{label} is left out: {detail}"
        case LevelFinished(level):
            yield from level.warnings
        case TrialFinished(record, _) if record.outcome == "failed":
            yield f"{describe(record.config)} failed: {record.reason}"
        case _:
            pass
