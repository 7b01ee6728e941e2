"""Tables of configurations and of trials, with the figures that every command shows of them.

A figure of a configuration is one entry of `FIGURES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from optimizer.configuration.serving_config import describe
from optimizer.measurement.cache_use import cache_uses
from optimizer.measurement.level import Measurement
from optimizer.measurement.level_checks import capacity_basis, sent_requests
from optimizer.measurement.trial_record import TrialRecord, outcome_name
from optimizer.report import number_formats as form
from optimizer.report.table import Table, table_of
from optimizer.study.confidence import CapacityClaim
from optimizer.study.decision import ConfirmedCapacity
from optimizer.study.event_text import trial_text

_SURE = 0.999


def _percentiles(each: ConfirmedCapacity) -> str:
    return " / ".join(form.milliseconds(each.latency_ms(p)) for p in (50, 95, 99))


def _interval(measurement: Measurement) -> str:
    low, high = measurement.capacity_low_per_second, measurement.capacity_high_per_second
    return form.interval(low, high, form.rate)


FIGURES: Mapping[str, Callable[[ConfirmedCapacity], str]] = {
    "configuration": lambda each: describe(each.config),
    "status": lambda each: each.status,
    "capacity, requests/s": lambda each: form.rate(each.candidate.measurement.capacity_per_second),
    "95% interval": lambda each: _interval(each.candidate.measurement),
    "p50 / p95 / p99 at capacity, ms": _percentiles,
    "p95 at demand, ms": lambda each: form.milliseconds(each.candidate.p95_ms_at_demand),
    "$ per million at capacity": lambda each: form.usd(
        each.candidate.score.usd_per_million_at_capacity
    ),
    "$ per million at demand": lambda each: form.usd(
        each.candidate.score.usd_per_million_at_demand
    ),
    "replicas": lambda each: form.count(each.candidate.score.replicas),
    "fleet, $ an hour": lambda each: form.usd(each.candidate.score.fleet_usd_per_hour),
}
"""Capacity, latency and $ per million at capacity are those of one instance; replicas and the rest
those of the fleet for the demand, sized by the lower end of the interval."""


def configurations_table(title: str, named: Sequence[tuple[str, ConfirmedCapacity]]) -> Table:
    """Return the figures of some configurations, each with the name that it goes by."""
    rows = tuple((name, *(cell(each) for cell in FIGURES.values())) for name, each in named)
    note = (
        "Capacity, latency and $ per million at capacity are those of one instance; replicas and "
        "the fleet's cost are for the demand, by the lower end of the interval. Of equal costs the "
        "higher precision goes first, then the lower latency at demand."
    )
    return Table(title, ("", *FIGURES), rows, (note,), texts=("configuration", "status"))


def cache_table(entries: Sequence[ConfirmedCapacity]) -> Table | None:
    """Return how much the response cache answered; None where none was asked."""
    rows = tuple(
        (
            describe(each.config),
            use.model,
            form.fine_percent(use.hit_rate),
            form.MISSING
            if use.expected_hit_rate is None
            else form.fine_percent(use.expected_hit_rate),
        )
        for each in entries
        for use in cache_uses(each.candidate.measurement.levels)
    )
    if not rows:
        return None
    columns = ("configuration", "model", "answered by the cache", "expected")
    note = (
        "Expected is the share of a cache that has served this traffic for long; what it does not "
        "answer is executed."
    )
    return Table("Response cache", columns, rows, (note,), texts=("configuration", "model"))


def rejections_table(entries: Sequence[ConfirmedCapacity]) -> Table | None:
    """Return what queue policies rejected at the capacity; None where none did."""
    levels = [(each.config, each.candidate.measurement.nearest_level) for each in entries]
    rows = tuple(
        (
            describe(config),
            form.rate(level.offered_per_second),
            form.fine_percent(level.rejected / sent_requests(level)),
        )
        for config, level in levels
        if level is not None and level.rejected
    )
    if not rows:
        return None
    columns = ("configuration", "offered, requests/s", "rejected")
    note = (
        "The queue policy rejects requests when the queue is full or they have waited too long. "
        "They are no errors, and count as requests that missed the limit."
    )
    return Table("Rejected requests", columns, rows, (note,), texts=("configuration",))


def claims_table(claims: Sequence[CapacityClaim]) -> Table:
    """Return how the capacity of the best compares with that of the other finalists."""
    columns: Mapping[str, Callable[[CapacityClaim], str]] = {
        "compared with": lambda claim: describe(claim.rival),
        "times as much": lambda claim: form.ratio(claim.ratio),
        "95% interval": lambda claim: form.interval(claim.low, claim.high, form.ratio),
        "confidence": confidence_text,
        "difference": lambda claim: "significant" if claim.apart else "not significant",
    }
    title = "Capacity of the best, relative to the other finalists"
    return table_of(title, columns, claims, texts=("difference",))


def confidence_text(claim: CapacityClaim) -> str:
    """Return how sure the sign of the difference is."""
    sure = max(claim.confidence, 1 - claim.confidence)
    return f"above {form.fine_percent(_SURE)}" if sure > _SURE else form.fine_percent(sure)


_TRIAL: Mapping[str, Callable[[TrialRecord], str]] = {
    "trial": lambda record: str(record.number),
    "configuration": lambda record: describe(record.config),
    "outcome": lambda record: outcome_name(record.outcome),
}


def short_trials_table(trials: Sequence[TrialRecord]) -> Table:
    """Return the trials with what came of each in one sentence, for a terminal."""
    columns = {**_TRIAL, "result": trial_text}
    return table_of("Trials", columns, trials, texts=("configuration", "outcome", "result"))


def trials_table(trials: Sequence[TrialRecord]) -> Table:
    """Return the trials with their figures."""
    columns: Mapping[str, Callable[[TrialRecord], str]] = {
        **_TRIAL,
        "requests/s": lambda r: _of(r, lambda m: form.rate(m.capacity_per_second)),
        "95% interval": lambda r: _of(r, _interval),
        "p95, ms": lambda r: _of(r, _p95),
        "$ per million": lambda r: (
            form.usd(r.score.usd_per_million_at_capacity) if r.score else form.MISSING
        ),
        "replicas": lambda r: form.count(r.score.replicas) if r.score else form.MISSING,
        "measured, s": lambda r: f"{r.seconds.measuring:.1f}",
        "reason": lambda r: r.reason,
    }
    return table_of("", columns, trials, texts=("configuration", "outcome", "reason"))


def _of(record: TrialRecord, cell: Callable[[Measurement], str]) -> str:
    measurement = record.measurement
    return cell(measurement) if measurement and measurement.load_factor > 0 else form.MISSING


def _p95(measurement: Measurement) -> str:
    """Return the p95 latency in ms at the capacity, or where it was measured instead."""
    if (basis := capacity_basis(measurement)) is not None:
        return basis
    level = measurement.nearest_level
    return form.milliseconds(level.latency_ms(95) if level is not None else None)
