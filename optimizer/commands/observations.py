"""From what lies in a study to what its machine can be recommended for."""

from __future__ import annotations

from collections.abc import Iterator

from optimizer.analysis.study_reading import StudyReading
from optimizer.commands.load_test_job import Tests
from optimizer.configuration.serving_config import describe
from optimizer.fleet.instance_estimate import Observation
from optimizer.fleet.recommendation import StudyObservations
from optimizer.load.level_checks import capacity_basis
from optimizer.load.ramp import largest_rate_within
from optimizer.load.user_load_file import JOB_PERCENTILE
from optimizer.measurement.cost import Candidate, Demand, Price
from optimizer.measurement.level import LoadLevel, Measurement
from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.decision import ConfirmedCapacity, levels_near
from optimizer.study.history import scored
from optimizer.study.warm_start import at_demand

_SURE_PART_SECONDS = 60.0


def by_search(name: str, study: StudyReading, price: Price, demand: Demand) -> StudyObservations:
    """What a search has found, confirmed or not."""
    seen = [_observed(name, study, each) for each in study.decision(price, demand).ranking]
    nothing = None if seen else study.nothing_found
    return StudyObservations(name, price, study.machine, tuple(seen), nothing)


def _observed(name: str, study: StudyReading, finding: ConfirmedCapacity) -> Observation:
    level = _level_at_capacity(finding.candidate.measurement)
    worst = level.worst
    return Observation(
        study=name,
        machine=study.machine,
        candidate=finding.candidate,
        confirmed=finding.confirmed,
        latency_percentile=worst.limit_percentile,
        latency_ms=worst.latency_ms(worst.limit_percentile),
        use=level.machine,
        gpu_memory_mib=_gpu_memory_mib(study),
        setup_seconds=finding.trial.seconds.serving,
        warnings=(*level.warnings, *_basis(finding.candidate.measurement)),
    )


def _basis(measurement: Measurement) -> Iterator[str]:
    """Yield a warning where latency and capacity are of different loads."""
    if (basis := capacity_basis(measurement)) is not None:
        yield f"its capacity is {basis}"


def _level_at_capacity(measurement: Measurement) -> LoadLevel:
    """The worst of the levels there; the nearest one where none was measured right there."""
    level = measurement.nearest_level
    assert level is not None, "what meets limits does so at some load"
    return max(levels_near(measurement, level.load_factor), key=lambda each: each.limit_overshoot)


def _gpu_memory_mib(study: StudyReading) -> float:
    return sum(gpu.memory_mib for gpu in study.searched.search_space.hardware.gpus)


def by_tests(
    name: str, study: StudyReading, tests: Tests, price: Price, demand: Demand
) -> StudyObservations:
    """What an advanced job has found."""
    seen = []
    for record in tests.records:
        candidate = _candidate(record, tests.limit_ms, price, demand)
        if candidate is not None:
            seen.append(_tested(name, study, record, candidate))
    nothing = _nothing_tested(study, tests, price, demand) if not seen else None
    return StudyObservations(name, price, study.machine, tuple(seen), nothing)


def _nothing_tested(study: StudyReading, tests: Tests, price: Price, demand: Demand) -> str:
    """Why no test met the thresholds."""
    if tests.records:
        return "; ".join(f"{describe(each.config)}: {each.reason}" for each in tests.records)
    if study.decision(price, demand).ranking:
        return "its advanced job has tested nothing yet"
    return study.nothing_found


def _candidate(
    record: TrialRecord, limit_ms: float, price: Price, demand: Demand
) -> Candidate | None:
    """A test with its cost; None where it met the thresholds at no load."""
    if record.measurement is None:
        return None
    measurement = at_demand(demand.requests_per_second, record.measurement)
    cost = scored(measurement, price, demand)
    if cost is None:
        return None
    [level] = measurement.levels
    _, p95_ms = largest_rate_within(level, limit_ms)
    return Candidate(record.config, measurement, cost, p95_ms)


def _tested(
    name: str, study: StudyReading, record: TrialRecord, candidate: Candidate
) -> Observation:
    """What the machine did is that of the whole load."""
    [level] = candidate.measurement.levels
    return Observation(
        study=name,
        machine=study.machine,
        candidate=candidate,
        confirmed=False,
        latency_percentile=JOB_PERCENTILE,
        latency_ms=candidate.p95_ms_at_demand,
        use=level.machine,
        gpu_memory_mib=_gpu_memory_mib(study),
        setup_seconds=record.seconds.serving,
        warnings=(*level.warnings, *_short_parts(level)),
    )


def _short_parts(level: LoadLevel) -> Iterator[str]:
    """The best of several short parts of a load is lucky; the recommender counts whole minutes."""
    seconds = level.seconds / len(level.slices)
    if seconds < _SURE_PART_SECONDS:
        yield f"MaxInvocations is that of the best {seconds:.0f} s: a longer load tells more surely"
