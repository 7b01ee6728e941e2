"""What a run came to, as the summary that it leaves."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from optimizer.analysis.nothing_confirmed import nothing_confirmed
from optimizer.analysis.summary import (
    AccuracyFigures,
    MachineDrift,
    StudySummary,
    SummaryArtifact,
    SummaryClaim,
    SummaryEntry,
)
from optimizer.configuration.serving_config import describe
from optimizer.measurement.cost import Candidate
from optimizer.measurement.level import Measurement
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.confirm import Confirmed
from optimizer.search.drift import saturation_rates
from optimizer.search.prepared import Prepared
from optimizer.space_file.reader import Space
from optimizer.study.confidence import CapacityClaim
from optimizer.study.decision import levels_near
from optimizer.study.directory import StudyDirectory
from optimizer.study.gated_artifact import GatedArtifact, accuracy_to_json
from optimizer.study.history import History
from optimizer.study.search_status import SearchEnd


@dataclass(frozen=True)
class LoadRuns:
    """What a study measured beside its trials, each in the order of time."""

    calibration: Sequence[TrialRecord] = ()
    drift_runs: Sequence[TrialRecord] = ()
    confirmations: Sequence[TrialRecord] = ()

    @classmethod
    def of(cls, directory: StudyDirectory) -> LoadRuns:
        """Read them from a study's directory. Raises StorageError."""
        stores = (directory.calibration, directory.drift_runs, directory.confirmations)
        return cls(*(list(store.read_all().values()) for store in stores))


def summarise(
    space: Space,
    ended: SearchEnd,
    history: History,
    confirmed: Confirmed,
    runs: LoadRuns,
    prepared: Prepared,
) -> StudySummary:
    """Return what a study came to; the run adds `pareto`, `wall_seconds` and `machine`."""
    # What was carried over took another study's time.
    here = [record for record in history.records if record.origin is None]
    later = [*runs.drift_runs, *runs.confirmations]
    best = tuple(entry(candidate) for candidate in confirmed.best)
    overheads = [record.seconds.overhead for record in here]
    return StudySummary(
        study=space.study,
        outcome="found" if best else _outcome_without_a_best(history, confirmed),
        nothing_found=None
        if best
        else nothing_confirmed(history.records, runs.confirmations, confirmed.unconfirmed),
        ended=ended.reason,
        space_exhausted=ended.exhausted,
        settled=ended.converged,
        remaining_gap=ended.regret_bound,
        trials={**history.counts()},
        baseline=entry(confirmed.baseline) if confirmed.baseline is not None else None,
        best=best[0] if best else None,
        equal_cost=best,
        claims=tuple(_claim(claim) for claim in confirmed.claims),
        pace=_drift([*runs.calibration, *history.records, *later], prepared),
        price=space.price,
        demand_per_second=space.demand.requests_per_second,
        headroom=space.demand.headroom,
        accuracy_evidence=space.accuracy_evidence,
        artifacts=tuple(_artifact(gated) for gated in prepared.gated),
        measuring_seconds=sum(r.seconds.measuring for r in [*runs.calibration, *here, *later]),
        building_seconds=prepared.building_seconds,
        overhead_seconds_per_trial_median=statistics.median(overheads) if overheads else 0.0,
        confirm_shortened=confirmed.shortened or None,
    )


def entry(candidate: Candidate) -> SummaryEntry:
    """Return a confirmed configuration with its figures."""
    measurement = candidate.measurement
    return SummaryEntry(
        description=describe(candidate.config),
        config=asdict(candidate.config),
        capacity_per_second=measurement.capacity_per_second,
        latency_ms=_latency_ms(measurement),
        latency_ms_at_demand_p95=candidate.p95_ms_at_demand,
        **asdict(candidate.score),
    )


def _latency_ms(measurement: Measurement) -> dict[str, float]:
    levels = levels_near(measurement, measurement.load_factor)
    return {f"p{p}": max(level.latency_ms(p) for level in levels) for p in (50, 95, 99)}


def _outcome_without_a_best(history: History, confirmed: Confirmed) -> str:
    if not history.records:
        return "nothing was measured"
    return "nothing was confirmed" if confirmed.unconfirmed else "nothing met the limits"


def _claim(claim: CapacityClaim) -> SummaryClaim:
    return SummaryClaim(
        describe(claim.rival), claim.ratio, claim.low, claim.high, claim.confidence, claim.apart
    )


def _drift(records: Sequence[TrialRecord], prepared: Prepared) -> MachineDrift:
    reference = prepared.space.config(prepared.space.baseline)
    measured = saturation_rates(records, reference)
    changes = [change for pace in measured if (change := pace.drift_from(measured[0])) is not None]
    return MachineDrift(
        describe(reference),
        tuple(pace.per_second for pace in measured),
        max(changes, key=abs, default=None),
    )


def _artifact(gated: GatedArtifact) -> SummaryArtifact:
    accuracy = accuracy_to_json(gated.accuracy)
    return SummaryArtifact(
        gated.spec.label,
        AccuracyFigures(**accuracy) if accuracy is not None else None,
        gated.dropped,
        gated.failing,
        gated.timings,
    )
