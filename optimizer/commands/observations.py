"""The measurements of a study as observations that instance types are ranked by."""

from __future__ import annotations

from collections.abc import Iterator

from optimizer.analysis.study_reading import StudyReading
from optimizer.commands.load_test_job import JobTests
from optimizer.configuration.serving_config import describe
from optimizer.fleet.instance_estimate import Observation
from optimizer.fleet.recommendation import StudyObservations
from optimizer.load.ramp import largest_rate_within
from optimizer.load.user_load_file import JOB_PERCENTILE
from optimizer.measurement.cost import Candidate, Demand, Price
from optimizer.measurement.level import LoadLevel, Measurement
from optimizer.measurement.level_checks import capacity_basis
from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.decision import ConfirmedCapacity, levels_near
from optimizer.study.history import scored
from optimizer.study.warm_start import at_demand

_WHOLE_PART_SECONDS = 60.0


def by_search(name: str, study: StudyReading, price: Price, demand: Demand) -> StudyObservations:
    """Return the configurations that a search has ranked, confirmed or not."""
    ranking = study.decision(price, demand).ranking
    observations = tuple(_observation(name, study, capacity) for capacity in ranking)
    nothing = None if observations else study.why_nothing_confirmed
    return StudyObservations(name, price, study.machine, observations, nothing)


def _observation(name: str, study: StudyReading, capacity: ConfirmedCapacity) -> Observation:
    level = _level_at_capacity(capacity.candidate.measurement)
    worst = level.worst
    return Observation(
        study=name,
        machine=study.machine,
        candidate=capacity.candidate,
        confirmed=capacity.confirmed,
        latency_percentile=worst.limit_percentile,
        latency_ms=worst.latency_ms(worst.limit_percentile),
        use=level.machine,
        gpu_memory_mib=_gpu_memory_mib(study),
        setup_seconds=study.setup_seconds(capacity),
        warnings=(*level.warnings, *_basis(capacity.candidate.measurement)),
    )


def _basis(measurement: Measurement) -> Iterator[str]:
    """Yield a warning where latency and capacity are of different loads."""
    if (basis := capacity_basis(measurement)) is not None:
        yield f"its capacity is {basis}"


def _level_at_capacity(measurement: Measurement) -> LoadLevel:
    """Return the worst of the levels at the capacity, or the nearest level."""
    level = measurement.nearest_level
    assert level is not None, "a ranked configuration met the limits at some load"
    return max(levels_near(measurement, level.load_factor), key=lambda each: each.limit_overshoot)


def _gpu_memory_mib(study: StudyReading) -> float:
    return sum(gpu.memory_mib for gpu in study.searched.search_space.hardware.gpus)


def by_tests(
    name: str, study: StudyReading, tests: JobTests, price: Price, demand: Demand
) -> StudyObservations:
    """Return the configurations that met the thresholds of an advanced job."""
    observations = tuple(
        _tested(name, study, record, candidate)
        for record in tests.records
        if (candidate := _candidate(record, tests.limit_ms, price, demand)) is not None
    )
    nothing = None if observations else _nothing_tested(study, tests, price, demand)
    return StudyObservations(name, price, study.machine, observations, nothing)


def _nothing_tested(study: StudyReading, tests: JobTests, price: Price, demand: Demand) -> str:
    """Return why no test met the thresholds."""
    if tests.records:
        return "; ".join(f"{describe(each.config)}: {each.reason}" for each in tests.records)
    if study.decision(price, demand).ranking:
        return "its advanced job has tested nothing yet"
    return study.why_nothing_confirmed


def _candidate(
    record: TrialRecord, limit_ms: float, price: Price, demand: Demand
) -> Candidate | None:
    """Return a test with its cost, or None where it met the thresholds at no load."""
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
    """Return the observation of a test; the use of the machine is that of the whole load."""
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
    """Yield a warning where parts are short: the best of them is lucky, and minutes count."""
    seconds = level.seconds / len(level.slices)
    if seconds < _WHOLE_PART_SECONDS:
        yield f"MaxInvocations is that of the best {seconds:.0f} s: a longer load is more certain"
