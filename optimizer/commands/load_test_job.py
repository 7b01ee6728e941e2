"""The advanced job: the best configurations of a study under users, as a recommender's job."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from optimizer.analysis.study_reading import StudyReading
from optimizer.commands.hosts import require_host
from optimizer.commands.parts import (
    RunPlace,
    require_same_space,
    search_protocol,
    slot_of,
    study_context,
)
from optimizer.commands.with_progress import with_progress
from optimizer.configuration.serving_config import ServingConfig
from optimizer.errors import StorageError, UsageError
from optimizer.load.ramp import find_in_user_load
from optimizer.load.user_load_file import JOB_PERCENTILE, LoadTestJob
from optimizer.machine.fingerprint import this_machine
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.evaluator import LiveEvaluator
from optimizer.search.resumable_runs import Measure, ResumableRuns
from optimizer.space_file.reader import Space
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Note, Watcher

_JOB = "job"
_FOLDER = "advanced"


@dataclass(frozen=True)
class Tests:
    """What an advanced job left.

    Attributes:
        job: its load and stopping conditions as plain JSON values, which tests to be compared have
            in common.
        limit_ms: the shortest of its thresholds.
        records: one of each configuration, those of failures that passed left out.
    """

    job: Mapping[str, Any]
    limit_ms: float
    records: tuple[TrialRecord, ...]


def within_limits(job: LoadTestJob, space: Space) -> LoadTestJob:
    """The job with the space's limits for thresholds where it has none of its own.

    Raises:
        UsageError: where the space's are of a percentile that users are not judged by.
    """
    if job.conditions.model_latency_thresholds:
        return job
    limits = tuple(stream.limit for stream in space.workload.streams)
    if any(limit.percentile != JOB_PERCENTILE for limit in limits):
        raise UsageError(
            f"--job: a job is judged by P{JOB_PERCENTILE:g}, the space's limit is of another "
            "percentile: give StoppingConditions.ModelLatencyThresholds"
        )
    return replace(job, conditions=replace(job.conditions, model_latency_thresholds=limits))


@dataclass(frozen=True)
class JobRun:
    """One run of a job on this machine.

    Attributes:
        cache: folder of the artefact cache.
        ends_at: by the monotonic clock, after which no test may last; None for no bound.
    """

    job: LoadTestJob
    space: Space
    cache: Path
    seed: int
    ends_at: float | None

    def run(self, study: StudyReading, configs: Sequence[ServingConfig], watch: Watcher) -> None:
        """Test the configurations that were not yet, and keep what is found beside the study.

        Raises:
            OptimizerError: one of its branches, see `optimizer.errors`.
        """
        directory = StudyDirectory(study.directory.root / _FOLDER)
        space = replace(self.space, content={**self.space.content, _JOB: job_content(self.job)})
        slot = slot_of(space)
        machine = this_machine(require_host(space, slot), space.search_space.hardware.gpus)
        how_to_go_on = f"go on with it, or move {directory.root} away"
        with directory.locked(), with_progress(directory, watch) as watch_all:
            require_same_space(directory, space, machine, how_to_go_on)
            runs = ResumableRuns(directory.trials, study_context(space, slot, machine), watch_all)
            if all(runs.history.decided(config) is not None for config in configs):
                return
            place = RunPlace(directory, self.cache, slot, space.host)
            place.introduce(machine, watch_all)
            needed = _less_what_no_test_needs(space, configs)
            with place.session(needed) as session:
                prepared = place.prepare(session, needed, watch_all)
                with place.evaluator(session, needed, prepared, self.seed, watch_all) as evaluator:
                    tested = runs.measure_missing(
                        "advanced", configs, self._measure(evaluator), self._in_time
                    )
            if left := len(configs) - len(tested):
                spent = f"JobDurationInSeconds is spent: {left} of {len(configs)} tests are left"
                watch_all(Note(f"{spent} to the same command", True))

    def _measure(self, evaluator: LiveEvaluator) -> Measure:
        find = partial(
            find_in_user_load,
            workload=self.space.workload,
            load=self.job.load,
            conditions=self.job.conditions,
            timeout_seconds=search_protocol(self.space).saturation_timeout_seconds,
        )
        return lambda config: evaluator.serve_and_measure(config, find)

    def _in_time(self) -> bool:
        """Whether a test that begins now ends in time."""
        return self.ends_at is None or time.monotonic() + self.job.load.seconds <= self.ends_at


def _less_what_no_test_needs(space: Space, configs: Sequence[ServingConfig]) -> Space:
    needed = {model.artifact for config in configs for model in config.models}
    searched = space.search_space
    others = [spec for spec in searched.artifacts if spec not in needed]
    return replace(space, search_space=searched.without(others))


def job_content(job: LoadTestJob) -> Mapping[str, Any]:
    """What tests depend on, as JSON has it; not how many there are."""
    conditions = job.conditions
    return {
        "phases": [list(astuple(phase)) for phase in job.load.phases],
        "think_seconds": job.load.think_seconds,
        "max_invocations": conditions.max_invocations,
        "thresholds_ms": [limit.latency_ms for limit in conditions.model_latency_thresholds],
        "flat_invocations": conditions.flat_invocations,
    }


def read_tests(study: StudyReading) -> Tests:
    """What the advanced job of a study left.

    Raises:
        UsageError: where it had none.
        StorageError: when its files are damaged.
    """
    directory = StudyDirectory(study.directory.root / _FOLDER)
    if not directory.space.exists():
        raise UsageError(
            f"study {study.name} has no advanced job: on its machine, "
            "`recommend --search SPACE.yaml --job JOB.json` runs one"
        )
    begun = directory.read_json(directory.space)
    try:
        job = begun["space"][_JOB]
        limit_ms = min(job["thresholds_ms"])
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(f"cannot read {directory.space}: no job ({error})") from error
    records = {record.config: record for record in directory.trials.read_all().values()}
    return Tests(job, limit_ms, tuple(records.values()))
