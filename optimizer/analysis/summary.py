"""The summary of a study: what it came to, typed, and summary.json, where programs read it.

A figure of the summary is a field of `StudySummary`, filled in by `run_summary.summarise`. The
fields are the keys of the file, in its order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from optimizer.artifacts.accuracy import FailingBatch
from optimizer.errors import DamagedStudyError, StorageError
from optimizer.files.atomic import write_json
from optimizer.measurement.cost import Price
from optimizer.measurement.disturbance import NOTABLE_SLOWDOWN, DisturbanceCheck
from optimizer.measurement.host_share import HostTiming
from optimizer.measurement.trial_record import Outcome
from optimizer.space_file.section import first_mistake
from optimizer.study.directory import StudyDirectory
from optimizer.study.progress import BestSoFar

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class NothingConfirmed:
    """The cause, and the remedy for this cause."""

    reason: str
    advice: str


@dataclass(frozen=True)
class SummaryEntry:
    """A configuration with its confirmed figures.

    Attributes:
        config: the ServingConfig in plain JSON values.
        latency_ms: percentiles ("p50", "p95", "p99") at the capacity, the worst over the rounds.
        latency_ms_at_demand_p95: at the demand per replica.
    """

    description: str
    config: Mapping[str, Any]
    capacity_per_second: float
    latency_ms: Mapping[str, float]
    latency_ms_at_demand_p95: float | None
    usd_per_million_at_capacity: float
    usd_per_million_at_demand: float
    replicas: int
    fleet_usd_per_hour: float


@dataclass(frozen=True)
class SummaryClaim:
    """How the capacity of the best configuration compares with that of another finalist.

    Attributes:
        capacity_ratio: the best's to the rival's, with its interval at `CONFIDENCE`.
        confidence: probability that the best serves more.
        apart: whether the difference is statistically significant.
    """

    rival: str
    capacity_ratio: float
    capacity_ratio_low: float
    capacity_ratio_high: float
    confidence: float
    apart: bool


@dataclass(frozen=True)
class MachineDrift:
    """The saturation throughput of one configuration, measured again and again.

    Attributes:
        reference: the configuration.
        saturation_per_second: in the order of time.
        largest_change: relative to the first measurement, None where none is significant.
    """

    reference: str = ""
    saturation_per_second: tuple[float, ...] = ()
    largest_change: float | None = None


@dataclass(frozen=True)
class DisturbanceSummary:
    """How much trials at the same time slowed each other down, over all checks.

    Attributes:
        workers: at the same time, at most.
        checks: how often it was measured.
        largest_slowdown: share of its rate alone that the slowest worker lost; None where no loss
            was notable.
    """

    workers: int
    checks: int
    largest_slowdown: float | None

    @classmethod
    def of(cls, checks: Sequence[DisturbanceCheck]) -> DisturbanceSummary | None:
        """Return the summary of some checks; None without one."""
        if not checks:
            return None
        notable = [check.slowdown for check in checks if check.is_above(NOTABLE_SLOWDOWN)]
        most = max(len(check.together) for check in checks)
        return cls(most, len(checks), max(notable, default=None))


@dataclass(frozen=True)
class AccuracyFigures:
    """Accuracy of an artefact's outputs; `max_abs_error` is None where an output is not finite."""

    argmax_agreement: float
    mean_cosine: float
    min_cosine: float
    max_abs_error: float | None
    samples: int = 0
    metric: float | None = None


@dataclass(frozen=True)
class SummaryArtifact:
    """An artefact and what the accuracy gate decided.

    Attributes:
        dropped: why it left the space, None where it is served.
        failing_batch: the smallest batch with wrong outputs; smaller ones are served.
    """

    artifact: str
    accuracy: AccuracyFigures | None = None
    dropped: str | None = None
    failing_batch: FailingBatch | None = None
    timings: tuple[HostTiming, ...] = ()


@dataclass(frozen=True)
class ParetoEntry:
    """A configuration that no other one beats within all limits of the study.

    Attributes:
        usd_per_million_at_capacity, capacity_per_second: by limit, None where no load meets it.
    """

    description: str
    config: Mapping[str, Any]
    limits_ms: tuple[float, ...]
    usd_per_million_at_capacity: tuple[float | None, ...]
    capacity_per_second: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class StudySummary:
    """What a study came to. Fields with a default may be missing from files of earlier versions.

    Attributes:
        nothing_found: why nothing was confirmed and what to do, None where something was.
        ended: why the search ended.
        settled: whether the search converged: nothing unmeasured is worth measuring.
        remaining_gap: the bound on the regret, see `SearchStatus`; None where nothing tells.
        trials: their number by outcome.
        baseline, best, equal_cost: confirmed figures only. `equal_cost` begins with the best.
        wall_seconds: of the run that ended the study.
        pareto: of a study of several limits, None of others.
        disturbance: of a study whose trials ran at the same time, None of others.
        confirm_shortened: how the confirm phase was shortened to end in time; None where it was
            not.
    """

    schema_version: int = SCHEMA_VERSION
    study: str = ""
    outcome: str = ""
    nothing_found: NothingConfirmed | None = None
    ended: str
    space_exhausted: bool = False
    settled: bool = False
    remaining_gap: float | None = None
    trials: Mapping[Outcome, int]
    baseline: SummaryEntry | None = None
    best: SummaryEntry | None
    equal_cost: tuple[SummaryEntry, ...] = ()
    claims: tuple[SummaryClaim, ...] = ()
    pace: MachineDrift = MachineDrift()
    price: Price | None = None
    demand_per_second: float = 0.0
    headroom: float = 0.0
    accuracy_evidence: str = ""
    artifacts: tuple[SummaryArtifact, ...] = ()
    measuring_seconds: float = 0.0
    building_seconds: float = 0.0
    overhead_seconds_per_trial_median: float = 0.0
    pareto: tuple[ParetoEntry, ...] | None = None
    disturbance: DisturbanceSummary | None = None
    confirm_shortened: str | None = None
    wall_seconds: float = 0.0
    machine: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the content of summary.json in plain JSON values."""
        content = asdict(self)
        for name in ("pareto", "disturbance", "confirm_shortened"):
            if content[name] is None:
                del content[name]
        return content

    def is_current(self, trials: int, best: BestSoFar | None) -> bool:
        """Return whether the records say the same: no run has measured anything since.

        Args:
            trials: their number.
            best: by the same records, at the study's own price and demand.
        """
        recommended, own = None, None
        if best is not None and best.confirmed:
            recommended = (best.configuration, best.capacity_per_second)
        if self.best is not None:
            own = (self.best.description, self.best.capacity_per_second)
        return sum(self.trials.values()) == trials and own == recommended


@cache
def _json() -> TypeAdapter[StudySummary]:
    return TypeAdapter(StudySummary)


def write_summary(directory: StudyDirectory, summary: StudySummary) -> None:
    """Write summary.json. Raises StorageError."""
    write_json(directory.summary, summary.to_json())


def read_summary(directory: StudyDirectory) -> StudySummary | None:
    """Read summary.json; None where the study has none yet.

    Raises:
        DamagedStudyError: when the file is not a summary.
        StorageError: when a newer version of this program wrote it.
    """
    path = directory.summary
    if not path.exists():
        return None
    data = directory.read_json(path)
    version = data.get("schema_version", SCHEMA_VERSION)
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise StorageError(
            f"{path}: schema_version must be at most {SCHEMA_VERSION}, got {version}; a newer "
            "version of this program wrote it: upgrade, or delete the file and rerun the study"
        )
    try:
        # As JSON, where no text passes for a number.
        return _json().validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise DamagedStudyError(path, first_mistake(error)) from error


def current_summary(
    directory: StudyDirectory, trials: int, best: BestSoFar | None
) -> StudySummary | None:
    """Read summary.json; None where something was measured after it.

    Args:
        trials, best: by the records, see `StudySummary.is_current`.

    Raises:
        StorageError: as `read_summary`.
    """
    summary = read_summary(directory)
    return summary if summary is not None and summary.is_current(trials, best) else None
