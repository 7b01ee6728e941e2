"""What the records in a study's folder recommend, and whether its summary says the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from optimizer.configuration.serving_config import describe
from optimizer.measurement.cost import Candidate
from optimizer.measurement.level import Measurement
from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.decision import Decision, decide, levels_near
from optimizer.study.directory import StudyDirectory
from optimizer.study.searched_space import read_searched


def stored_decision(directory: StudyDirectory) -> Decision:
    """Return what the records in a study's folder recommend; nothing before its search.

    Raises:
        StorageError: when its files are damaged.
    """
    if not directory.searched.exists():
        return Decision()
    own = read_searched(directory)
    trials, confirmations = directory.trials.read_all(), directory.confirmations.read_all()
    return decide(trials.values(), confirmations.values(), own.price, own.demand, own.search_space)


def is_current(
    summary: Mapping[str, Any], trials: Sequence[TrialRecord], decision: Decision
) -> bool:
    """Whether a summary says what the records say: no run has measured anything since.

    A summary that lacks its figures says nothing.

    Args:
        decision: by the same records, at the study's own price and demand.
    """
    best = next(iter(decision.confirmed), None)
    try:
        told = summary["best"]
        named = (told["description"], told["capacity_per_second"]) if told is not None else None
        count = sum(summary["trials"].values())
    except (AttributeError, KeyError, TypeError):
        return False
    recommended = None
    if best is not None:
        recommended = (describe(best.config), best.candidate.measurement.capacity_per_second)
    return count == len(trials) and named == recommended


def entry(candidate: Candidate | None) -> dict[str, Any] | None:
    """Return a configuration and its figures as plain JSON values."""
    if candidate is None:
        return None
    measurement, score = candidate.measurement, candidate.score
    return {
        "description": describe(candidate.config),
        "config": asdict(candidate.config),
        "capacity_per_second": measurement.capacity_per_second,
        "latency_ms": _latency(measurement),
        "latency_ms_at_demand_p95": candidate.p95_ms_at_demand,
        "usd_per_million_at_capacity": score.usd_per_million_at_capacity,
        "usd_per_million_at_demand": score.usd_per_million_at_demand,
        "replicas": score.replicas,
        "fleet_usd_per_hour": score.fleet_usd_per_hour,
    }


def _latency(measurement: Measurement) -> dict[str, float]:
    """Worst percentiles over the rounds at the capacity, in ms."""
    levels = levels_near(measurement, measurement.load_factor)
    return {
        f"p{percentile}": max(level.latency_ms(percentile) for level in levels)
        for percentile in (50, 95, 99)
    }
