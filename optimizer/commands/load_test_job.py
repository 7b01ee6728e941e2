"""The load-test job: test the best configurations of a study under users, as SageMaker does."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from optimizer.analysis.study_reading import StudyReading
from optimizer.commands.protocols import search_protocol
from optimizer.commands.run_context import open_run, with_progress
from optimizer.configuration.serving_config import ServingConfig
from optimizer.errors import DamagedStudyError, UsageError
from optimizer.load.ramp import find_in_user_load
from optimizer.load.user_load_file import JOB_PERCENTILE, LoadTestJob
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.evaluator import LiveEvaluator
from optimizer.search.resumable_runs import Measure, ResumableRuns
from optimizer.space_file.reader import Space
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Note, Watcher
from optimizer.study.files import read_start

_JOB = "job"
_FOLDER = "advanced"


@dataclass(frozen=True)
class JobTests:
    """The tests of an advanced job.

    Attributes:
        job: load and stopping conditions as plain JSON values; tests are compared only where these
            are the same.
        limit_ms: the shortest of its thresholds.
        records: the latest of each configuration.
    """

    job: Mapping[str, Any]
    limit_ms: float
    records: tuple[TrialRecord, ...]


def within_limits(job: LoadTestJob, space: Space) -> LoadTestJob:
    """Return the job, with the space's limits as thresholds where it has none.

    Raises:
        UsageError: where the space's limits are of another percentile than a job's thresholds.
    """
    if job.conditions.model_latency_thresholds:
        return job
    limits = tuple(stream.limit for stream in space.workload.streams)
    if any(limit.percentile != JOB_PERCENTILE for limit in limits):
        raise UsageError(
            f"--job: thresholds are of P{JOB_PERCENTILE:g}, and the space's limit is of another "
            "percentile: give StoppingConditions.ModelLatencyThresholds"
        )
    return replace(job, conditions=replace(job.conditions, model_latency_thresholds=limits))


@dataclass(frozen=True)
class JobRun:
    """One run of a job on this machine.

    Attributes:
        cache: folder of the artefact cache; None is this user's.
        ends_at: monotonic time after which no test may last; None for no bound.
    """

    job: LoadTestJob
    space: Space
    cache: Path | str | None
    seed: int
    ends_at: float | None

    def run(self, study: StudyReading, configs: Sequence[ServingConfig], watch: Watcher) -> None:
        """Test the configurations that are not yet tested; keep the records beside the study."""
        directory = StudyDirectory(study.directory.root / _FOLDER)
        space = replace(self.space, content={**self.space.content, _JOB: job_content(self.job)})
        remedy = f"restore it, or move {directory.root} away"
        with (
            open_run(space, directory, self.cache, remedy, seed=self.seed, watch=watch) as context,
            with_progress(directory, watch) as watch_all,
        ):
            runs = ResumableRuns(directory.trials, context.study_context, watch_all)
            if all(runs.history.decided(config) is not None for config in configs):
                return
            context.announce(watch_all)
            tested_space = _with_needed_artifacts(space, configs)
            with replace(context, space=tested_space).evaluator(watch_all) as (evaluator, _):
                tested = runs.measure_missing(
                    "advanced", configs, self._measure(evaluator), self._in_time
                )
            if untested := len(configs) - len(tested):
                watch_all(
                    Note(
                        f"JobDurationInSeconds is over: {untested} of {len(configs)} tests are "
                        "left; rerun the command to resume",
                        True,
                    )
                )

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
        """Return whether a test that starts now ends in time."""
        return self.ends_at is None or time.monotonic() + self.job.load.seconds <= self.ends_at


def _with_needed_artifacts(space: Space, configs: Sequence[ServingConfig]) -> Space:
    needed = {model.artifact for config in configs for model in config.models}
    others = [spec for spec in space.search_space.artifacts if spec not in needed]
    return replace(space, search_space=space.search_space.without(others))


def job_content(job: LoadTestJob) -> Mapping[str, Any]:
    """Return what a test depends on as plain JSON values, without the number of tests."""
    conditions = job.conditions
    return {
        "phases": [list(astuple(phase)) for phase in job.load.phases],
        "think_seconds": job.load.think_seconds,
        "max_invocations": conditions.max_invocations,
        "thresholds_ms": [limit.latency_ms for limit in conditions.model_latency_thresholds],
        "flat_invocations": conditions.flat_invocations,
    }


def read_tests(study: StudyReading) -> JobTests:
    """Read the tests of a study's advanced job.

    Raises:
        UsageError: where the study has none.
        StorageError: when its files are damaged.
    """
    directory = StudyDirectory(study.directory.root / _FOLDER)
    if not directory.space.exists():
        raise UsageError(
            f"study {study.name} has no advanced job: on its machine, "
            "`recommend --search SPACE.yaml --job JOB.json` runs one"
        )
    content = read_start(directory).content
    try:
        job = content[_JOB]
        limit_ms = min(job["thresholds_ms"])
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedStudyError(directory.space, f"no job ({error})") from error
    records = {record.config: record for record in directory.trials.read_all().values()}
    return JobTests(job, limit_ms, tuple(records.values()))
