"""The Python interface, for notebooks and for programs that run or read studies.

The functions do what the commands of the same names do, and take the same options. Tables are
pandas DataFrames with units in the names of their columns, figures are plotly's. All errors are
branches of `optimizer.errors.OptimizerError`. Nothing is printed: progress goes to `watch`, a
function of events (`optimizer.study.events`); `watch=print` shows them all.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, TypedDict, Unpack

import pandas as pd

from optimizer.analysis.comparison import Comparison
from optimizer.analysis.study_reading import StudyReading, read_study
from optimizer.analysis.summary import StudySummary
from optimizer.cluster.choice import cluster_choice, require_ray
from optimizer.commands.measure import MeasureOptions, MeasureResult, measure_configuration
from optimizer.commands.run import run_study
from optimizer.commands.run_context import open_space
from optimizer.commands.run_options import RunOptions
from optimizer.commands.simulate import SimulateOptions, SimulateResult, simulate_configuration
from optimizer.configuration.serving_config import ServingConfig, describe
from optimizer.errors import OptimizerError
from optimizer.measurement.trial_record import TrialRecord
from optimizer.report.study_figures import (
    Figure,
    cost_latency_figure,
    history_figure,
    levels_by_configuration,
    load_latency_figure,
)
from optimizer.report.study_frames import (
    confirmations_frame,
    finding_series,
    levels_frame,
    measured_levels_frame,
    predicted_levels_frame,
    steps_frame,
    trials_frame,
)
from optimizer.search.winner_phase import WinnerTest
from optimizer.space_file.reader import Space
from optimizer.study.decision import ConfirmedCapacity, Decision
from optimizer.study.events import Event, Watcher

ParameterValue = bool | int | str | list[int]
"""A parameter's value, as the space file writes it."""

Phase = Literal["trials", "confirmations", "calibration"]
"""Where load levels were measured."""

_RESULTS = "results"


def load_space(path: str | Path) -> Space:
    """Read a space file for this machine.

    Raises:
        SpaceFileError: with every mistake in it, by key and line.
        RequirementError: when it asks for a GPU, and the machine has none.
    """
    return open_space(Path(path))


def run(
    space: str | Path | Space,
    *,
    study: str | None = None,
    trials: int | None = None,
    timeout_seconds: float | None = None,
    until: datetime.time | None = None,
    regret_percent: float | None = None,
    seed: int = 0,
    sampler: str | None = None,
    storage: str | None = None,
    warm_start: str | None = None,
    prior: str | None = None,
    enqueue: Literal["published"] | None = None,
    also_limits_ms: tuple[float, ...] = (),
    winner_tests: tuple[WinnerTest, ...] = (),
    gpus: str | None = None,
    slots: int | None = None,
    max_disturbance_percent: float | None = None,
    notify: str | None = None,
    cluster: str | None = None,
    worker_resources: Mapping[str, float] | None = None,
    wait_for_quiet_seconds: float | None = None,
    results: str | Path = _RESULTS,
    cache: str | Path | None = None,
    watch: Watcher | None = None,
) -> Study:
    """Start or resume a study; return when its search has ended.

    Servers and load generators are stopped in the end, also after an error.

    Args:
        space: a space file, or what `load_space` read.
        study: name of the study; None is the space file's.
        trials: end the search after so many configurations; None is the space file's.
        timeout_seconds: the longest time of the run; None is the space file's.
        until: end the run by the next such time of the local clock, in the place of a timeout.
        regret_percent: end the search when no configuration is cheaper than the best one by more,
            with 95 % confidence (guided); None is the space file's.
        seed: of the sampler and of arrivals.
        sampler: guided, gp, tpe, random or grid; None is guided, and tpe with `also_limits_ms`.
        storage: URL of a study database; None is a journal file in the study's folder.
        warm_start: name of a study in `results` whose still-valid results are reused.
        prior: name of a study in `results`, of the same models on other hardware, whose service
            times are taken over up to a scale.
        enqueue: configurations that are measured first: those of the published benchmark.
        also_limits_ms: latency limits within which the cost is minimised too.
        winner_tests: what is measured of the best configuration besides, however short the run.
        gpus: "all", or a comma-separated list of indices or UUIDs: a trial runs on each of these
            GPUs at the same time.
        slots: number of trials at the same time on a machine without GPUs, each on its own part of
            the cores.
        max_disturbance_percent: by which trials at the same time may slow each other down; above
            it, the run goes on with one at a time. None only warns.
        notify: command or http(s) URL that is told how the run ends, and what goes wrong.
        cluster: head of a Ray cluster on whose nodes trials run, HOST:PORT or "auto".
        worker_resources: custom resources of Ray that each worker requires.
        wait_for_quiet_seconds: how long to wait at the start for other processes that keep the
            machine busy; None does not wait.
        results: folder of the studies.
        cache: folder of the artefact cache, or the URL of a shared one; None is this user's.
        watch: is called with every event.

    Raises:
        OptimizerError: one of its branches, see `optimizer.errors`.
    """
    options = RunOptions(
        space=_space(space),
        study=study,
        trials=trials,
        timeout_seconds=timeout_seconds,
        until=until,
        regret_percent=regret_percent,
        seed=seed,
        sampler=sampler,
        storage=storage,
        warm_start=warm_start,
        prior=prior,
        enqueue=enqueue,
        also_limits_ms=tuple(also_limits_ms),
        winner_tests=tuple(winner_tests),
        gpus=gpus,
        slots=slots,
        max_disturbance_percent=max_disturbance_percent,
        notify=notify,
        cluster=cluster_choice(cluster, (worker_resources or {}).items()),
        wait_for_quiet_seconds=wait_for_quiet_seconds,
        results=Path(results),
        cache=cache,
    )
    result = run_study(options, watch or _ignore)
    return Study(result.directory.root)


class StudyOptions(TypedDict, total=False):
    """Arguments of `run` that `run_each_accelerator_type` takes as well."""

    study: str | None
    trials: int | None
    timeout_seconds: float | None
    until: datetime.time | None
    regret_percent: float | None
    seed: int
    sampler: str | None
    storage: str | None
    warm_start: str | None
    prior: str | None
    enqueue: Literal["published"] | None
    also_limits_ms: tuple[float, ...]
    winner_tests: tuple[WinnerTest, ...]
    notify: str | None
    cache: str | Path | None


@dataclass(frozen=True)
class StudiesByType:
    """The studies of the types of accelerators that a cluster has.

    Attributes:
        studies: those that ended, by name: that of the space's study and the type.
        errors: why others did not, by name.
        comparison: of those that ended; None for fewer than two.
    """

    studies: Mapping[str, Study]
    errors: Mapping[str, OptimizerError]
    comparison: Comparison | None


def run_each_accelerator_type(
    space: str | Path,
    *,
    cluster: str,
    worker_resources: Mapping[str, float] | None = None,
    results: str | Path = _RESULTS,
    watch_study: Callable[[str], Watcher] | None = None,
    **options: Unpack[StudyOptions],
) -> StudiesByType:
    """Run or resume a study for each type of accelerator of a Ray cluster, all at the same time.

    Args:
        space: a space file with a price for each type.
        cluster, worker_resources, results: see `run`.
        watch_study: returns what is called with every event of a study, by the study's name.
        options: of each study, see `run`.

    Raises:
        RequirementError: Ray is not installed.
        UsageError: the cluster has no accelerators, or a type has no price.
    """
    require_ray()
    # Only here, so that no other run imports Ray.
    from optimizer.commands.each_accelerator import run_each_type

    choice = cluster_choice(cluster, (worker_resources or {}).items())
    chosen = RunOptions(space=Path(space), cluster=choice, results=Path(results), **options)
    ended = run_each_type(chosen, watch_study or (lambda _: _ignore))
    studies = {name: Study(name, results) for name in ended.studies}
    return StudiesByType(studies, ended.errors, ended.comparison)


def measure(
    space: str | Path | Space,
    settings: Mapping[str, ParameterValue] | None = None,
    *,
    curve: bool = False,
    rate_per_second: float | None = None,
    users: str | Path | None = None,
    second_opinion: Literal["perf_analyzer"] | None = None,
    seed: int = 0,
    results: str | Path = _RESULTS,
    cache: str | Path | None = None,
    watch: Watcher | None = None,
) -> MeasuredConfiguration:
    """Serve one configuration and measure it: its capacity, its curve, one rate, or users.

    Args:
        space: a space file, or what `load_space` read.
        settings: values by parameter, such as {"precision": "int8", "bert.max_batch_size": 16}; the
            others have the baseline's values, or the nearest that go with these.
        curve: measure the load-latency curve after the capacity.
        rate_per_second: measure this rate alone, and no capacity.
        users: file of a user load (PHASES or STAIRS, JSON), which is run alone.
        second_opinion: another tool that measures the same level.
        seed: of the arrivals.
        results: folder of the studies; files are written to STUDY/measured/NUMBER below it.
        cache: folder of the artefact cache, or the URL of a shared one; None is this user's.
        watch: is called with every event.

    Raises:
        OptimizerError: one of its branches, see `optimizer.errors`.
    """
    opened = open_space(_space(space))
    options = MeasureOptions(
        space=opened,
        settings=_yaml_texts(settings),
        curve=curve,
        rate_per_second=rate_per_second,
        users=Path(users) if users is not None else None,
        second_opinion=second_opinion,
        seed=seed,
        results=Path(results),
        cache=cache,
    )
    return MeasuredConfiguration(opened, measure_configuration(options, watch or _ignore))


def simulate(
    study: str | Path | Study,
    settings: Mapping[str, ParameterValue] | None = None,
    *,
    seed: int = 0,
    results: str | Path = _RESULTS,
) -> SimulatedConfiguration:
    """Predict a configuration from what a study has measured of others; nothing is served.

    Args:
        study: a name in `results`, a study's own folder, or a Study.
        settings: see `measure`; values need not be among those that were searched.
        seed: of the simulation.
        results: folder of the studies.

    Raises:
        UsageError: where there is no such study, no saturated level in it, or a wrong value.
        StorageError: when its files are damaged.
    """
    name = str(study.folder if isinstance(study, Study) else study)
    options = SimulateOptions(name, _yaml_texts(settings), seed, Path(results))
    return SimulatedConfiguration(simulate_configuration(options))


def _ignore(_: Event) -> None:
    pass


def _space(space: str | Path | Space) -> Path | Space:
    return space if isinstance(space, Space) else Path(space)


def _yaml_texts(settings: Mapping[str, ParameterValue] | None) -> dict[str, str]:
    # JSON is a part of YAML.
    return {name: json.dumps(value) for name, value in (settings or {}).items()}


class Study:
    """The files of a study, as they were when this object was created: it may still be running.

    Args:
        name_or_path: a name in `results`, or a study's own folder, also of another machine.
        results: folder of the studies.

    Raises:
        UsageError: where there is no such study, or its search has not started yet.
        StorageError: when its files are damaged.
    """

    def __init__(self, name_or_path: str | Path, results: str | Path = _RESULTS) -> None:
        self._reading: StudyReading = read_study(Path(results), str(name_or_path))

    def __repr__(self) -> str:
        return f"Study({str(self.folder)!r})"

    @property
    def name(self) -> str:
        """The study's name."""
        return self._reading.name

    @property
    def folder(self) -> Path:
        """The folder of the study: records, logs, and best/, which `optimizer serve` starts."""
        return self._reading.directory.root

    @cached_property
    def summary(self) -> StudySummary | None:
        """The content of summary.json, with the same names; None where no run has ended."""
        return self._reading.summary

    @property
    def best(self) -> pd.Series | None:
        """The recommended configuration, by the study's price and demand.

        The figures are the confirmed ones where there are any (`confirmed`), else those of the best
        trial. None where nothing met the limits.
        """
        return self._series(self._decision.best)

    @property
    def baseline(self) -> pd.Series | None:
        """The unoptimised configuration, likewise; None where it missed the limits."""
        return self._series(self._decision.entry_of(self._reading.baseline))

    def _series(self, capacity: ConfirmedCapacity | None) -> pd.Series | None:
        space = self._reading.searched.search_space
        return finding_series(capacity, space) if capacity is not None else None

    def trials(self) -> pd.DataFrame:
        """Return one row for each trial of the search: configuration, capacity, latency, cost.

        Where a trial did not meet the limits, capacity and cost are missing (NaN). Latencies are
        those of the highest load level within the limits, in ms, and `latencies_at_per_second` is
        its rate; rates are requests a second.
        """
        return trials_frame(self._reading.trials, self._reading.searched.search_space)

    def confirmations(self) -> pd.DataFrame:
        """Return one row for each round of the confirm phase, as `trials` does, without a cost.

        Rounds have numbers of their own; `trial` is the one that was measured again.
        """
        reading = self._reading
        return confirmations_frame(
            reading.confirmations, reading.trials, reading.searched.search_space
        )

    def levels(self, of: Phase = "trials") -> pd.DataFrame:
        """Return one row for each load level and stream, in the order of measuring.

        Latencies count from when requests were due, in ms; `queue_ms` and `compute_ms` are the
        server's own means (of a pipeline, along the longest path through its steps), and
        `client_lag_ms` is how late the load generator sent (p99).

        Args:
            of: the phase; `trial` is the number of the trial, round or run in it.
        """
        return levels_frame(self._records(of), self._reading.searched.workload)

    def steps(self, of: Phase = "trials") -> pd.DataFrame:
        """Return one row for each load level and step of a pipeline; none without a pipeline.

        `queue_ms`, `input_ms`, `infer_ms` and `output_ms` are means of all calls for one request
        together, `path_ms` is the step's part of the longest path, `share` that of the request's
        time, and `busy` the share of the time for which its instances execute.

        Args:
            of: see `levels`.
        """
        return steps_frame(self._records(of))

    def _records(self, of: Phase) -> Sequence[TrialRecord]:
        records: Mapping[Phase, Sequence[TrialRecord]] = {
            "trials": self._reading.trials,
            "confirmations": self._reading.confirmations,
            "calibration": self._reading.calibration,
        }
        return records[of]

    def simulate(
        self, settings: Mapping[str, ParameterValue] | None = None, *, seed: int = 0
    ) -> SimulatedConfiguration:
        """Predict another configuration, see `optimizer.simulate`."""
        return simulate(self, settings, seed=seed)

    def figure_history(self) -> Figure:
        """Draw the cost of each trial at its capacity, and the lowest so far."""
        return history_figure(self._reading.trials)

    def figure_cost_latency(self) -> Figure:
        """Draw cost against latency of the trials that met the limits, each at its capacity."""
        return cost_latency_figure(self._reading.trials, self._best_config)

    def figure_load_latency(self) -> Figure:
        """Draw latency against load of the best, the baseline and the next cheapest trials."""
        reading = self._reading
        space = reading.searched.search_space
        best = [self._best_config] if self._best_config else []
        first = [*best, space.config(space.baseline)]
        records = [*reading.trials, *reading.confirmations]
        return load_latency_figure(levels_by_configuration(records, first))

    @cached_property
    def _decision(self) -> Decision:
        return self._reading.own_decision

    @property
    def _best_config(self) -> ServingConfig | None:
        best = self._decision.best
        return best.config if best is not None else None


@dataclass(frozen=True)
class MeasuredConfiguration:
    """One configuration, measured.

    Attributes:
        result: all figures, and the file that keeps them.
    """

    space: Space
    result: MeasureResult

    @property
    def configuration(self) -> str:
        """The configuration in words."""
        return describe(self.result.config)

    @property
    def capacity_per_second(self) -> float | None:
        """Requests a second within the limits; None where the capacity was not measured."""
        measurement = self.result.load_test.measurement
        return measurement.capacity_per_second if measurement is not None else None

    @property
    def capacity_interval_per_second(self) -> tuple[float, float | None] | None:
        """The 95 % interval of the capacity; without an upper end where no load was too much."""
        measurement = self.result.load_test.measurement
        if measurement is None:
            return None
        return measurement.capacity_low_per_second, measurement.capacity_high_per_second

    def levels(self) -> pd.DataFrame:
        """Return one row for each load level and stream, see `Study.levels`."""
        return measured_levels_frame(
            self.result.config, self.result.load_test.levels, self.space.workload
        )

    def figure_load_latency(self) -> Figure:
        """Draw latency against load."""
        return load_latency_figure({self.configuration: self.result.load_test.levels})


@dataclass(frozen=True)
class SimulatedConfiguration:
    """One configuration, predicted and not served.

    Attributes:
        result: all predictions, by stream.
    """

    result: SimulateResult

    @property
    def configuration(self) -> str:
        """The configuration in words."""
        return describe(self.result.config)

    @property
    def measured(self) -> TrialRecord | None:
        """The study's own trial of the same configuration, if it has one."""
        return self.result.measured

    def capacities(self) -> pd.DataFrame:
        """Return one row for each stream: its saturation, and its capacity within the limit.

        `capacity_per_second` is 0 where even an almost idle server misses the limit.
        """
        rows = [
            {
                "stream": own.stream.name,
                "saturation_per_second": own.saturation_per_second,
                "capacity_per_second": own.capacity_per_second,
                "limit_percentile": own.stream.limit.percentile,
                "limit_ms": own.stream.limit.latency_ms,
            }
            for own in self.result.prediction.streams
        ]
        return pd.DataFrame(rows)

    def levels(self) -> pd.DataFrame:
        """Return one row for each stream and load, from a tenth of saturation to 95 % of it."""
        streams = self.result.prediction.streams
        return predicted_levels_frame({own.stream.name: own.levels for own in streams})
