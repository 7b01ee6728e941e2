"""summary.json: what a study came to, for programs. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from optimizer.analysis.nothing_confirmed import nothing_confirmed
from optimizer.configuration.serving_config import describe
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.confirm import Confirmed
from optimizer.search.drift import saturation_rates
from optimizer.search.loop import SearchEnd
from optimizer.search.prepare import Prepared
from optimizer.space_file.reader import Space
from optimizer.study.confidence import CapacityClaim
from optimizer.study.directory import StudyDirectory
from optimizer.study.gated_artifact import accuracy_to_json
from optimizer.study.history import History
from optimizer.study.stored_decision import entry

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class LoadRuns:
    """What a study measured beside its trials, each in the order of time."""

    calibration: Sequence[TrialRecord] = ()
    drift_runs: Sequence[TrialRecord] = ()
    confirmations: Sequence[TrialRecord] = ()

    @classmethod
    def of(cls, directory: StudyDirectory) -> LoadRuns:
        """What lies in a study's directory. Raises StorageError."""
        stores = (directory.calibration, directory.drift_runs, directory.confirmations)
        return cls(*(list(store.read_all().values()) for store in stores))


def summarise(
    space: Space,
    ended: SearchEnd,
    history: History,
    confirmed: Confirmed,
    runs: LoadRuns,
    prepared: Prepared,
) -> dict[str, Any]:
    """What a study came to, in plain JSON values.

    `best` and `baseline` carry confirmed figures only; null where nothing was confirmed, of which
    `nothing_confirmed` tells the reason and what to do. `claims` compare the best with every other
    finalist, `pace` the machine with itself over time. `remaining_gap` is the share of the best
    one's cost that an unmeasured configuration may still save, at most with a probability of 95 %;
    null where nobody knows.
    """
    # What was carried over took another study's time.
    here = [record for record in history.records if record.origin is None]
    later = [*runs.drift_runs, *runs.confirmations]
    found = bool(confirmed.best)
    return {
        "schema_version": SCHEMA_VERSION,
        "study": space.study,
        "outcome": "found" if found else _without_a_best(history, confirmed),
        "nothing_found": None if found else _nothing_found(history, confirmed, runs),
        "ended": ended.reason,
        "space_exhausted": ended.exhausted,
        "settled": ended.converged,
        "remaining_gap": ended.regret_bound,
        "trials": history.counts(),
        "baseline": entry(confirmed.baseline),
        "best": entry(confirmed.best[0] if found else None),
        "equal_cost": [entry(candidate) for candidate in confirmed.best],
        "claims": [_claim(claim) for claim in confirmed.claims],
        "pace": _pace([*runs.calibration, *history.records, *later], prepared),
        "price": asdict(space.price),
        "demand_per_second": space.demand.requests_per_second,
        "headroom": space.demand.headroom,
        "accuracy_evidence": space.accuracy_evidence,
        "artifacts": [
            {
                "artifact": item.spec.label,
                "accuracy": accuracy_to_json(item.accuracy),
                "dropped": item.dropped,
                "failing_batch": asdict(item.failing) if item.failing is not None else None,
                "timings": [asdict(timing) for timing in item.timings],
            }
            for item in prepared.gated
        ],
        "measuring_seconds": sum(r.seconds.measuring for r in [*runs.calibration, *here, *later]),
        "building_seconds": prepared.building_seconds,
        "overhead_seconds_per_trial_median": (
            statistics.median(record.seconds.overhead for record in here) if here else 0.0
        ),
    }


def _without_a_best(history: History, confirmed: Confirmed) -> str:
    if not history.records:
        return "nothing was measured"
    return "nothing was confirmed" if confirmed.unconfirmed else "nothing met the limits"


def _nothing_found(history: History, confirmed: Confirmed, runs: LoadRuns) -> dict[str, Any]:
    return asdict(nothing_confirmed(history.records, runs.confirmations, confirmed.unconfirmed))


def _claim(claim: CapacityClaim) -> dict[str, Any]:
    """`capacity_ratio`: the best's to the rival's, with its interval at `CONFIDENCE`."""
    return {
        "rival": describe(claim.rival),
        "capacity_ratio": claim.ratio,
        "capacity_ratio_low": claim.low,
        "capacity_ratio_high": claim.high,
        "confidence": claim.confidence,
        "apart": claim.apart,
    }


def _pace(records: Sequence[TrialRecord], prepared: Prepared) -> dict[str, Any]:
    """What the baseline saturated at, in the order of time; the largest change since the first."""
    reference = prepared.space.config(prepared.space.baseline)
    found = saturation_rates(records, reference)
    changes = [change for pace in found if (change := pace.change_from(found[0])) is not None]
    return {
        "reference": describe(reference),
        "saturation_per_second": [pace.per_second for pace in found],
        "largest_change": max(changes, key=abs, default=None),
    }
