"""Figures of a study as texts."""

from __future__ import annotations

from optimizer.configuration.serving_config import describe
from optimizer.load.level_checks import capacity_basis
from optimizer.measurement.cost import Candidate, Price
from optimizer.measurement.level import Measurement
from optimizer.measurement.trial_record import TrialRecord

CANDIDATE_COLUMNS = (
    "requests/s",
    "interval",
    "p95, ms",
    "p95 at demand, ms",
    "$ per million",
    "replicas",
    "$ an hour",
)
"""Of `candidate_cells`."""

TRIAL_COLUMNS = (
    "trial",
    "configuration",
    "outcome",
    "requests/s",
    "interval",
    "p95, ms",
    "$ per million",
    "replicas",
    "measured, s",
    "why it ended",
)
"""Of `trial_cells`."""


def candidate_cells(candidate: Candidate) -> tuple[str, ...]:
    """At the capacity of one instance; replicas and $ an hour of the fleet."""
    measurement, score = candidate.measurement, candidate.score
    return (
        f"{measurement.capacity_per_second:,.1f}",
        _interval(measurement),
        _p95(measurement),
        f"{candidate.p95_ms_at_demand:.1f}",
        usd(score.usd_per_million_at_capacity),
        f"{score.replicas:,}",
        usd(score.fleet_usd_per_hour),
    )


def trial_cells(record: TrialRecord) -> tuple[str, ...]:
    """One trial of the search."""
    measurement, score = record.measurement, record.score
    figures = ("-", "-", "-")
    if measurement is not None and measurement.load_factor > 0:
        figures = (
            f"{measurement.capacity_per_second:,.1f}",
            _interval(measurement),
            _p95(measurement),
        )
    return (
        str(record.number),
        describe(record.config),
        record.outcome,
        *figures,
        usd(score.usd_per_million_at_capacity) if score is not None else "-",
        str(score.replicas) if score is not None else "-",
        f"{record.seconds.measuring:.1f}",
        record.reason,
    )


def _p95(measurement: Measurement) -> str:
    """Return the p95 latency in ms at the capacity, or where it was measured instead."""
    if (basis := capacity_basis(measurement)) is not None:
        return basis
    level = measurement.nearest_level
    return f"{level.latency_ms(95):.1f}" if level is not None else "-"


def _interval(measurement: Measurement) -> str:
    high = measurement.capacity_high_per_second
    end = f"{high:,.1f}" if high is not None else "more"
    return f"{measurement.capacity_low_per_second:,.1f} to {end}"


def usd(value: float) -> str:
    """Cents show their digits."""
    return f"${value:.4f}" if value < 1 else f"${value:,.2f}"


def price_text(price: Price) -> str:
    """With its source and date."""
    return (
        f"{price.instance_type}, ${price.usd_per_hour:g} an hour, {price.rate} "
        f"({price.source}, {price.as_of}); the whole instance is charged"
    )
