"""The notes that optuna-dashboard shows, in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from optimizer.configuration.serving_config import ServingConfig, describe
from optimizer.measurement.level import LoadLevel, Measurement
from optimizer.measurement.level_checks import capacity_basis, level_verdict
from optimizer.measurement.trial_record import Outcome, TrialRecord, outcome_name
from optimizer.study.decision import ConfirmedCapacity
from optimizer.study.event_text import load_text
from optimizer.study.pipeline_times import (
    PipelineTimes,
    StepTimes,
    composed_targets,
    pipeline_times,
)
from optimizer.study.progress import regret_text

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#|~])")

_VALUE_MEANINGS = {
    "ok": "The value is the cost at the capacity, in dollars per million requests.",
    "infeasible": "The value is the cost at saturation, **outside the limits**; no service within "
    "them has this cost.",
    "bounded": "The value is the cost at saturation, where the trial was pruned: it was already "
    "worse than the best so far, so its capacity was not measured.",
    "failed": "There is no value: the configuration could not be measured.",
}


def study_note(
    name: str,
    phase: str,
    trials: Mapping[Outcome, int],
    best: ConfirmedCapacity | None,
    baseline: ConfirmedCapacity | None,
    regret_bound: float | None = None,
) -> str:
    """Return the note of a study.

    Args:
        phase: the current phase, or how the run ended.
        trials: their number by outcome.
        best: recommendation by them and the confirm phase.
        baseline: what someone serves who changes nothing, where it was measured.
        regret_bound: as in `SearchStatus`; None once the search is over.
    """
    counts = ", ".join(f"{n} {outcome_name(o)}" for o, n in trials.items())
    many = f"{(number := sum(trials.values()))} trial{'s' if number != 1 else ''}"
    parts = [f"# {_plain(name)}", f"**{_plain(phase)}** · {many}: {counts}"]
    if best is not None:
        parts.append(_best_table(best, baseline))
    elif number:
        parts.append("**Nothing has met the limits so far.**")
    if regret_bound is not None:
        parts.append(f"Remaining potential: {_plain(regret_text(regret_bound))}.")
    parts.append(
        "The best is the cheapest configuration within the limits, by confirmed figures where "
        "there are any. The values of infeasible and pruned trials are costs at saturation, which "
        "no service within the limits has."
    )
    return "\n\n".join(parts) + "\n"


def trial_note(record: TrialRecord) -> str:
    """Return the note of a trial: its result, its load levels, and the times of its steps."""
    parts = [
        f"**{_plain(describe(record.config))}**",
        f"**{outcome_name(record.outcome)}**: {_plain(record.reason)}",
        _VALUE_MEANINGS[record.outcome],
    ]
    if record.score is not None and record.measurement is not None:
        measurement, score = record.measurement, record.score
        parts.append(
            f"Capacity {measurement.capacity_per_second:.0f} requests/s "
            f"(at least {measurement.capacity_low_per_second:.0f}); "
            f"{_plain('$')}{score.usd_per_million_at_capacity:.4f} per million; "
            f"{score.replicas} replica{'s' if score.replicas != 1 else ''} for the demand."
        )
    # The latency of a pruned trial was measured at saturation only.
    for name, value in record.constraints if record.outcome != "bounded" else ():
        over = f"{abs(value):.0%} {'over' if value > 0 else 'within'} the limit"
        parts.append(f"Constraint {_plain(name)}: {value:+.3f} ({over}).")
    if record.measurement is not None:
        parts.append(_levels(record.measurement.levels))
        parts += _steps(record.config, record.measurement)
    seconds = record.seconds
    parts.append(
        f"The trial took {seconds.total:.1f} s: {seconds.measuring:.1f} s of load tests, "
        f"{seconds.serving:.1f} s to start the server and load the model."
    )
    return "\n\n".join(parts) + "\n"


_COLUMNS = (
    "",
    "configuration",
    "requests/s",
    "p95 at capacity, ms",
    "$ per million",
    "replicas, $",
)


def _best_table(best: ConfirmedCapacity, baseline: ConfirmedCapacity | None) -> str:
    rows = [_row("best", best)]
    if baseline is not None and baseline.config != best.config:
        rows.append(_row("baseline", baseline))
    return _table(_COLUMNS, rows)


def _row(name: str, entry: ConfirmedCapacity) -> tuple[str, ...]:
    score, p95_ms = entry.candidate.score, entry.latency_ms(95)
    basis = capacity_basis(entry.candidate.measurement)
    return (
        f"{name}, {entry.status}: trial {entry.trial.number}",
        describe(entry.config),
        f"{entry.candidate.measurement.capacity_per_second:.0f}" + (f" ({basis})" if basis else ""),
        f"{p95_ms:.1f}" if p95_ms is not None else "",
        f"{score.usd_per_million_at_capacity:.4f}",
        f"{score.replicas} for {score.fleet_usd_per_hour:.3f} an hour",
    )


def _levels(levels: Sequence[LoadLevel]) -> str:
    return _table(
        ["load", "served/s", "p50, ms", "p95, ms", "p99, ms", "verdict"], map(_level, levels)
    )


def _level(level: LoadLevel) -> tuple[str, ...]:
    worst = [level.latency_ms(percentile) for percentile in (50, 95, 99)]
    verdict = level_verdict(level) or ""
    served = f"{level.achieved_per_second:.0f}"
    return (load_text(level), served, *(f"{ms:.1f}" for ms in worst), verdict)


def _steps(config: ServingConfig, measurement: Measurement) -> Iterator[str]:
    """Yield where the time of a request to each pipeline goes, at the load nearest the capacity."""
    level = measurement.nearest_level or measurement.levels[0]
    for target in composed_targets(config):
        times = pipeline_times(config, target, level)
        if times is not None:
            yield f"Where the time goes: {_plain(target)} at {_plain(load_text(level))}, mean ms:"
            yield _table(_STEP_COLUMNS, [_step(step, times) for step in times.steps])


_STEP_COLUMNS = ("step", "queue", "compute", "share of the request", "instances busy")


def _step(step: StepTimes, times: PipelineTimes) -> tuple[str, ...]:
    busy = f"{min(1.0, step.busy):.0%} of {step.instances}"
    own = f"{step.queue_ms:.2f}", f"{step.compute_ms:.2f}"
    return (step.model, *own, f"{times.share(step):.0%}", busy)


def _table(columns: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> str:
    head = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return "\n".join([*head, *("| " + " | ".join(map(_plain, row)) + " |" for row in rows)])


def _plain(text: str) -> str:
    """Escape the characters that mean something in Markdown."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
