"""Measure one configuration without a search: its capacity, its curve, one rate, or users."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from optimizer.commands.packages import require_packages
from optimizer.commands.protocols import search_protocol
from optimizer.commands.run_context import (
    RunContext,
    artifact_cache,
    open_point,
    require_machine,
    with_log,
)
from optimizer.configuration.serving_config import ServingConfig, describe
from optimizer.errors import RequirementError, TrialFailure, UsageError
from optimizer.files.atomic import write_json
from optimizer.load import perf_analyzer
from optimizer.load.capacity import CapacitySearch, RunLevel, find_capacity
from optimizer.load.curve import find_curve
from optimizer.load.level_plan import LevelPlan
from optimizer.load.levels import refuse_if_all_failed, refuse_void
from optimizer.load.perf_analyzer import PerfAnalyzerJob, PerfAnalyzerResult
from optimizer.load.ramp import why_user_load_missed
from optimizer.load.stopping import StoppingConditions
from optimizer.load.transmit import TOO_LATE
from optimizer.load.user_load import UserLoad
from optimizer.load.user_load_file import read_user_load
from optimizer.machine.slots import Slot
from optimizer.measurement.level import LoadLevel, Measurement
from optimizer.measurement.level_checks import why_missed
from optimizer.search.level_runner import LevelRunner, concurrency
from optimizer.space_file.reader import Space
from optimizer.space_file.repetition import must_vary
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Note, StepStarted, Watcher, warnings_to
from optimizer.study.gated_artifact import GatedArtifact, accuracy_to_json
from optimizer.triton.session import ServedConfiguration, files_of

_COMPARED_SHARE = 0.7
"""Of the capacity, where both tools measure when no rate is given: busy, and not yet unstable."""


@dataclass(frozen=True)
class MeasureOptions:
    """Options of `measure`, see `optimizer.api.measure`; settings are YAML text by parameter.

    Raises:
        UsageError: for options that do not go together.
    """

    space: Path | Space
    settings: Mapping[str, str]
    curve: bool = False
    rate_per_second: float | None = None
    users: Path | None = None
    second_opinion: Literal["perf_analyzer"] | None = None
    seed: int = 0
    results: Path = Path("results")
    cache: Path | str | None = None

    def __post_init__(self) -> None:
        """Check that the options go together."""
        modes = {
            "--curve": self.curve,
            "--rate": self.rate_per_second is not None,
            "--users": self.users is not None,
        }
        chosen = [name for name, on in modes.items() if on]
        if len(chosen) > 1:
            raise UsageError(f"give one of {', '.join(modes)}, not {' and '.join(chosen)}")
        if self.users is not None and self.second_opinion is not None:
            raise UsageError(f"--with {self.second_opinion} goes with rates, not with --users")


@dataclass(frozen=True)
class LoadTestResult:
    """The load levels of one configuration, and what follows from them.

    Attributes:
        levels: all levels, in the order of measuring.
        shown: the level whose time is broken down: that at the capacity, or the last.
        measurement: the capacity, None where it was not measured.
        users: the user load, None without one.
        compared, opinion: one level as this load generator measured it, and as perf_analyzer did.
        missed: why the limits were not met; None where they were.
    """

    levels: tuple[LoadLevel, ...]
    shown: LoadLevel
    measurement: Measurement | None = None
    users: UserLoad | None = None
    compared: LoadLevel | None = None
    opinion: PerfAnalyzerResult | None = None
    missed: str | None = None


@dataclass(frozen=True)
class MeasureResult:
    """One measured configuration, and the file that keeps the figures."""

    file: Path
    config: ServingConfig
    gated: tuple[GatedArtifact, ...]
    load_test: LoadTestResult


def measure_configuration(options: MeasureOptions, watch: Watcher) -> MeasureResult:
    """Serve one configuration and measure it."""
    space = open_point(options.space, options.settings)
    binary = _perf_analyzer(space) if options.second_opinion is not None else None
    users = read_user_load(options.users) if options.users is not None else None
    slot, machine = require_machine(space)
    require_packages(space)
    folder = options.results.absolute() / space.study / "measured"
    with StudyDirectory(folder).locked(warnings_to(watch)):
        directory = StudyDirectory(folder / f"{_next_number(folder):05}")
        cache = artifact_cache(options.cache)
        context = RunContext(space, directory, cache, slot, machine, options.seed)
        try:
            with with_log(directory, watch) as log:
                context.announce(log)
                config, gated, load_test = _load_test(context, options, users, binary, log)
        finally:
            shutil.rmtree(directory.repository.parent, ignore_errors=True)
        measured = MeasureResult(directory.root / "measured.json", config, gated, load_test)
        write_json(measured.file, _to_json(measured, context))
    return measured


def _load_test(
    context: RunContext,
    options: MeasureOptions,
    users: tuple[UserLoad, StoppingConditions] | None,
    binary: Path | None,
    watch: Watcher,
) -> tuple[ServingConfig, tuple[GatedArtifact, ...], LoadTestResult]:
    with context.prepared_session(watch) as (session, prepared):
        config = prepared.space.config(prepared.space.baseline)
        watch(StepStarted(f"loading {describe(config)}"))
        served = session.serve(config, files_of(config, prepared.files))
        try:
            with context.levels(watch) as levels:
                bench = _Bench(context.space, config, levels, served)
                result = bench.measure(options, users)
                if binary is not None:
                    result = bench.compared(result, options, binary, context.slot, watch)
        except TrialFailure as error:
            raise session.failure(error) from error
    return config, prepared.gated, result


@dataclass(frozen=True)
class _Bench:
    """One configuration that is being served, and the load levels that are run on it."""

    space: Space
    config: ServingConfig
    levels: LevelRunner
    served: ServedConfiguration

    def measure(
        self, options: MeasureOptions, users: tuple[UserLoad, StoppingConditions] | None
    ) -> LoadTestResult:
        """Measure all but the second opinion."""
        with self.levels.on(self.served, self.config) as run:
            if users is not None:
                return self._users(run, *users)
            if options.rate_per_second is not None:
                level = self._whole_level(run, options.rate_per_second)
                return LoadTestResult((level,), level, missed=why_missed(level))
            find = find_curve if options.curve else find_capacity
            outstanding = concurrency(self.config)
            protocol = search_protocol(self.space)
            result = find(run, self.space.workload, protocol, outstanding)
        measurement = result.valid_measurement
        levels, at_capacity = measurement.levels, measurement.level_at_capacity
        missed = measurement.ended if measurement.load_factor == 0 else None
        return LoadTestResult(levels, at_capacity or levels[-1], measurement, missed=missed)

    def _users(
        self, run: RunLevel, load: UserLoad, conditions: StoppingConditions
    ) -> LoadTestResult:
        timeout = search_protocol(self.space).saturation_timeout_seconds
        level = run(LevelPlan(load, 0.0, load.seconds, timeout, stop=conditions))
        limit_ms = self.space.workload.shortest_limit_ms
        thresholds = [limit.latency_ms for limit in conditions.model_latency_thresholds]
        missed = why_user_load_missed(level, min(thresholds, default=limit_ms))
        return LoadTestResult((level,), level, users=load, missed=missed)

    def compared(
        self,
        result: LoadTestResult,
        options: MeasureOptions,
        binary: Path,
        slot: Slot,
        watch: Watcher,
    ) -> LoadTestResult:
        """Measure the same level with this load generator and then with perf_analyzer."""
        capacity = result.measurement.capacity_per_second if result.measurement else 0.0
        rate = options.rate_per_second or _COMPARED_SHARE * capacity
        if rate == 0:
            watch(Note("no load met the limits: perf_analyzer measures one with --rate", True))
            return result
        level, missed = result.shown, result.missed
        if options.rate_per_second is None:
            with self.levels.on(self.served, self.config) as run:
                level = self._whole_level(run, rate)
            missed = why_missed(level)
        [stream], workload = self.space.workload.streams, self.space.workload
        assert isinstance(stream.arrivals, str), "refused before anything started"
        transport, endpoint = workload.transport, self.served.server.endpoint
        job = PerfAnalyzerJob(
            model=stream.target,
            version=stream.version,
            protocol=transport.protocol,
            address=endpoint.grpc if transport.protocol == "grpc" else endpoint.http,
            requests=self.levels.requests(stream, self.config),
            batch_size=stream.batch_size,
            batched=stream.payloads.batched,
            rate_per_second=rate,
            arrivals=stream.arrivals,
            seconds=level.seconds,
            cores=slot.client_cores,
        )
        opinion = perf_analyzer.run_perf_analyzer(binary, job)
        return replace(result, compared=level, opinion=opinion, missed=missed)

    def _whole_level(self, run: RunLevel, rate_per_second: float) -> LoadLevel:
        """Run one open-loop level to its end.

        Raises:
            LoadTestFailure: when every request was answered by an error, or the load generator fell
                behind. Late replies miss the limit, and are no failure.
        """
        workload = self.space.workload
        search = CapacitySearch(run, workload, search_protocol(self.space))
        level = search.whole_level(rate_per_second / workload.demand_per_second)
        refuse_void(level)
        if not any(str(stream.first_error).startswith(TOO_LATE) for stream in level.streams):
            refuse_if_all_failed(level)
        return level


def _to_json(measured: MeasureResult, context: RunContext) -> dict[str, Any]:
    result = measured.load_test
    return {
        "config": asdict(measured.config),
        "accuracy": {
            gated.spec.label: accuracy_to_json(gated.accuracy) for gated in measured.gated
        },
        "capacity": _capacity(result.measurement),
        "missed": result.missed,
        "levels": [asdict(level) for level in result.levels],
        "compared": asdict(result.compared) if result.compared is not None else None,
        "perf_analyzer": asdict(result.opinion) if result.opinion is not None else None,
        "machine": context.machine_json,
    }


def _capacity(measurement: Measurement | None) -> dict[str, Any] | None:
    if measurement is None:
        return None
    return {
        "per_second": measurement.capacity_per_second,
        "per_second_low": measurement.capacity_low_per_second,
        "per_second_high": measurement.capacity_high_per_second,
        "ended": measurement.ended,
    }


def _next_number(folder: Path) -> int:
    return max((int(path.name) for path in folder.glob("[0-9]*")), default=-1) + 1


def _perf_analyzer(space: Space) -> Path:
    """Find perf_analyzer. Raises UsageError where it cannot send the space's traffic."""
    if len(space.workload.streams) > 1:
        raise UsageError("--with perf_analyzer: it sends requests to one model, not to several")
    [stream] = space.workload.streams
    if space.workload.transport.encoding == "json" or space.workload.transport.shared_memory:
        raise UsageError("--with perf_analyzer: it sends binary tensors without shared memory only")
    if stream.arrivals not in perf_analyzer.DISTRIBUTIONS:
        raise UsageError("--with perf_analyzer: arrivals must be poisson or constant")
    if must_vary(stream, space.search_space):
        raise UsageError(
            "--with perf_analyzer: it sends a few requests over and over, so leave response_cache "
            "and traffic.repeats out"
        )
    binary = shutil.which(perf_analyzer.NAME)
    if binary is None:
        raise RequirementError("perf_analyzer is not on PATH", perf_analyzer.INSTALL_HINT)
    return Path(binary)
