"""Events as plain lines, for a terminal, a pipe and the log of a run."""

from __future__ import annotations

from collections.abc import Iterator

from optimizer.configuration.serving_config import describe
from optimizer.measurement.level import LoadLevel, Measurement
from optimizer.measurement.level_checks import capacity_basis, level_verdict
from optimizer.measurement.trial_record import TrialRecord, outcome_name
from optimizer.study.events import (
    ArtifactReady,
    DisturbanceCheckStarted,
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
    WorkerEvent,
    WorkersStarted,
)
from optimizer.study.progress import regret_text
from optimizer.study.search_status import ExpectedCost


def level_text(level: LoadLevel) -> str:
    """Return a measured level in one line."""
    verdict = level_verdict(level)
    shown = f", {verdict}" if verdict is not None else ""
    served = f"{level.achieved_per_second:.0f}/s served, p95 {level.latency_ms(95):.1f} ms"
    return f"{load_text(level)}: {served}{shown}"


def load_text(level: LoadLevel) -> str:
    """Return the offered load of a level."""
    return "saturation" if level.kind == "saturation" else f"{level.offered_per_second:.0f}/s"


def trial_text(record: TrialRecord) -> str:
    """Return the result of a trial in one line, without its configuration."""
    if record.score is not None and record.measurement is not None:
        cost = f"${record.score.usd_per_million_at_capacity:.4f} per million"
        return f"{capacity_text(record.measurement)}, {cost}{_extra_limits_text(record)}"
    if record.outcome == "ok" and record.measurement is not None:
        return f"confirmed at {capacity_text(record.measurement)}"
    return record.reason + _extra_limits_text(record)


def _marked(record: TrialRecord) -> str:
    """Return the worker of a trial, where several ran trials at the same time."""
    return f"{record.worker}: " if record.worker else ""


def capacity_text(measurement: Measurement) -> str:
    """Return a capacity, with the level that it is estimated from unless it was measured itself."""
    basis = capacity_basis(measurement)
    return f"{measurement.capacity_per_second:.0f}/s" + (f" ({basis})" if basis else "")


def _extra_limits_text(record: TrialRecord) -> str:
    return "".join(
        f"; within {each.limit_ms:g} ms: {capacity_text(each.measurement)}"
        for each in record.further
    )


def expectation_text(expected: ExpectedCost) -> str:
    """Return the expected cost of a configuration, and why it was proposed."""
    low, cost, high = expected.low, expected.usd_per_million, expected.high
    saving = f", saving {expected.saving:.1%}" if expected.saving is not None else ""
    return (
        f"${cost:.4f} per million ({low:.4f} to {high:.4f}){saving}, "
        f"{expected.feasible:.0%} likely within the limits, measured in {expected.seconds:.0f} s; "
        f"reason: {expected.why}"
    )


def level_started_text(offered_per_second: float | None, seconds: float) -> str:
    """Return the load and duration of a level that starts."""
    load = "saturating" if offered_per_second is None else f"offering {offered_per_second:.0f}/s"
    return f"{load} for {seconds:.0f} s"


def event_lines(event: Event, *, verbose: bool = False) -> list[str]:
    """Return an event as lines; none for an event that is not worth a line.

    Args:
        verbose: show every step, the start of every level, and the expected cost of a proposal.
    """
    if isinstance(event, WorkerEvent):
        own = event_lines(event.event, verbose=verbose)
        return [f"      {event.worker}: {line.strip()}" for line in own]
    text = _text(event)
    if text is None and verbose:
        text = _detail(event)
    lines = text.split("\n") if text is not None else []
    if verbose and isinstance(event, TrialStarted) and event.expected is not None:
        lines.append(f"      expected {expectation_text(event.expected)}")
    return lines


def _text(event: Event) -> str | None:
    match event:
        case PhaseStarted(phase, steps):
            text = f"{phase}: up to {steps} steps"
        case ArtifactReady(name, detail, dropped):
            text = f"  {name}: {'excluded: ' if dropped else ''}{detail}"
        case TrialStarted(_, step, of, config):
            on = f"on {event.worker}: " if event.worker else ""
            text = f"  {step}/{of} {on}{describe(config)}"
        case DriftRunStarted(config):
            text = f"  baseline rerun: {describe(config)}"
        case DisturbanceCheckStarted(config, workers):
            text = f"  baseline alone, then on {workers} workers at once: {describe(config)}"
        case WorkersStarted(locations):
            text = "\n".join(f"  {name}: {location}" for name, location in locations.items())
        case LevelFinished(level):
            warnings = (f"  warning: {warning}" for warning in level.warnings)
            text = "\n".join(f"      {line}" for line in (level_text(level), *warnings))
        case TrialFinished(record, _):
            text = f"    {_marked(record)}{outcome_name(record.outcome)}: {trial_text(record)}"
        case Note(note):
            text = note
        case _:
            return None
    return text


def _detail(event: Event) -> str | None:
    match event:
        case StepStarted(step):
            return f"      {step}"
        case LevelStarted(offered, seconds):
            return f"      {level_started_text(offered, seconds)}"
        case SearchStatusChanged(status) if status.regret_bound is not None:
            return f"  remaining potential: {regret_text(status.regret_bound)}"
        case _:
            return None


def warnings_of(event: Event) -> Iterator[str]:
    """Yield what a person must read even in quiet mode."""
    match event:
        case Note(text, warning=True):
            yield text
        case ArtifactReady(label, detail, dropped=True):
            yield f"{label} is excluded: {detail}"
        case LevelFinished(level):
            yield from level.warnings
        case WorkerEvent(_, _, own):
            yield from warnings_of(own)
        case TrialFinished(record, _) if record.outcome == "failed":
            yield f"{describe(record.config)} failed: {record.reason}"
        case _:
            pass
