"""Compare studies of results/ or of folders from other hosts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optimizer.analysis.capacity_ratio import Estimate, Ratio
from optimizer.analysis.comparability import refuse_incomparable, workload_identity
from optimizer.analysis.comparison import (
    ComparedStudy,
    Comparison,
    Entry,
    Shared,
    StudyToCompare,
    compare,
)
from optimizer.analysis.study_reading import StudyReading, read_studies
from optimizer.configuration.serving_config import describe
from optimizer.errors import UsageError
from optimizer.files.atomic import write_json
from optimizer.study.decision import ConfirmedCapacity

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class CompareOptions:
    """Options of `compare`; the comparison is also written to the file `json`."""

    studies: tuple[str, ...]
    json: Path | None = None
    results: Path = Path("results")


def compare_studies(options: CompareOptions) -> Comparison:
    """Compare studies with the first one.

    Raises:
        UsageError: where there is no such study, or workloads differ.
        StorageError: when files are damaged, or cannot be written.
    """
    if len(options.studies) < 2:
        raise UsageError("compare needs two studies or more")
    readings = read_studies(options.results, options.studies)
    _refuse_incomparable(readings)
    comparison = compare(
        [StudyToCompare(name, reading, reading.summary) for name, reading in readings.items()]
    )
    if options.json is not None:
        write_json(options.json, _to_json(comparison))
    return comparison


def _refuse_incomparable(readings: Mapping[str, StudyReading]) -> None:
    """Refuse studies of different workloads, whose capacities have different meanings."""
    workloads = {name: reading.searched.workload for name, reading in readings.items()}
    try:
        refuse_incomparable(
            [
                (name, workload_identity(readings[name].content, workloads[name]))
                for name in readings
            ]
        )
    except UsageError as error:
        limits = [{s.name: s.limit for s in each.streams} for each in workloads.values()]
        if all(limit == limits[0] for limit in limits):
            raise
        raise UsageError(
            f"{error}\nfor the capacity of a study within another limit: "
            "python -m optimizer pareto STUDY"
        ) from error


def _to_json(comparison: Comparison) -> dict[str, Any]:
    """Return plain JSON values; ratios are to the first study, and null there."""
    return {
        "schema_version": SCHEMA_VERSION,
        "studies": [_study(study) for study in comparison.studies],
        "differences": {
            "machine": {each.what: list(each.values) for each in comparison.machine},
            "settings": {each.what: list(each.values) for each in comparison.settings},
        },
        "shared": [_shared(each) for each in comparison.shared],
    }


def _study(study: ComparedStudy) -> dict[str, Any]:
    own = study.reading.searched
    return {
        "study": study.name,
        "folder": str(study.reading.directory.root),
        "ended": study.ended,
        "pace_largest_change": study.drift,
        "machine": study.reading.machine.to_json(),
        "price": asdict(own.price),
        "demand": asdict(own.demand),
        "limits": {stream.name: asdict(stream.limit) for stream in own.workload.streams},
        "baseline": _entry(study.baseline),
        "best": _entry(study.best),
        "best_at_the_first_studys_demand": _finding(study.recounted),
    }


def _entry(entry: Entry | None) -> dict[str, Any] | None:
    if entry is None:
        return None
    return {
        **(_finding(entry.finding) or {}),
        "p95_ms_at_demand": entry.finding.candidate.p95_ms_at_demand,
        "capacity_estimate": _estimate(entry.estimate),
        "capacity_ratio": _ratio(entry.ratio),
    }


def _finding(finding: ConfirmedCapacity | None) -> dict[str, Any] | None:
    if finding is None:
        return None
    candidate = finding.candidate
    return {
        "description": describe(candidate.config),
        "config": asdict(candidate.config),
        "trial": finding.trial.number,
        "confirmed": finding.confirmed,
        "capacity_per_second": candidate.measurement.capacity_per_second,
        "capacity_low_per_second": candidate.measurement.capacity_low_per_second,
        "latency_ms": {f"p{p}": finding.latency_ms(p) for p in (50, 95, 99)},
        **asdict(candidate.score),
    }


def _estimate(estimate: Estimate) -> dict[str, Any]:
    low, high = estimate.interval or (None, None)
    return {"per_second": estimate.per_second, "low_per_second": low, "high_per_second": high}


def _ratio(ratio: Ratio | None) -> dict[str, Any] | None:
    if ratio is None:
        return None
    return {**asdict(ratio), "verdict": ratio.verdict}


def _shared(shared: Shared) -> dict[str, Any]:
    return {
        "study": shared.other,
        "median_ratio": shared.median,
        "met_the_limits_in_one_alone": shared.in_one_alone,
        "configurations": [
            {
                "description": describe(each.config),
                "config": asdict(each.config),
                "first_capacity_per_second": each.first_per_second,
                "capacity_per_second": each.other_per_second,
                "capacity_ratio": _ratio(each.ratio),
            }
            for each in shared.configurations
        ],
    }
