"""One configuration measured, without a search: its capacity, its curve, one rate, or users."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.commands.hosts import require_host
from optimizer.commands.parts import (
    RunPlace,
    machine_json,
    open_space,
    require_packages,
    search_protocol,
    slot_of,
)
from optimizer.commands.with_progress import logged
from optimizer.configuration.serving_config import ServingConfig, describe
from optimizer.errors import RequirementError, TrialFailure, UsageError
from optimizer.files.atomic import write_json
from optimizer.load import perf_analyzer
from optimizer.load.capacity import CapacitySearch, RunLevel, find_capacity
from optimizer.load.client import LoadClient
from optimizer.load.curve import find_curve
from optimizer.load.level_checks import refuse_if_all_failed, refuse_void, why_missed
from optimizer.load.level_plan import LevelPlan
from optimizer.load.perf_analyzer import PerfAnalyzerJob, PerfAnalyzerResult
from optimizer.load.ramp import why_user_load_missed
from optimizer.load.stopping import StoppingConditions
from optimizer.load.transmit import TOO_LATE
from optimizer.load.user_load import UserLoad
from optimizer.load.user_load_file import read_user_load
from optimizer.machine.fingerprint import Machine, this_machine
from optimizer.machine.slots import Slot
from optimizer.measurement.level import LoadLevel, Measurement
from optimizer.search.level_runner import LevelRunner, concurrency
from optimizer.space_file.reader import Space, fixed_at
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Note, StepStarted, Watcher
from optimizer.study.gated_artifact import GatedArtifact, accuracy_to_json
from optimizer.triton.session import ServedConfiguration, files_of

_OPINION_SHARE = 0.7
"""Of the capacity, where both measure when no rate is given: busy, and not about to tip over."""


@dataclass(frozen=True)
class MeasureRequest:
    """What one `measure` was asked to do.

    Attributes:
        settings: YAML text by parameter; see `fixed_at` for the rest.
        results: folder of the studies; this measurement goes to STUDY/measured/NUMBER below it.
        cache: folder of the artefact cache.
        curve: measure the load-latency curve after the capacity.
        rate_per_second: measure this rate alone, and no capacity.
        users: file of a user load, which is run alone.
        second_opinion: have perf_analyzer measure the same level.
    """

    space: Path | Space
    settings: Mapping[str, str]
    results: Path
    cache: Path
    seed: int = 0
    curve: bool = False
    rate_per_second: float | None = None
    users: Path | None = None
    second_opinion: bool = False


@dataclass(frozen=True)
class MeasuredBest:
    """What load levels showed.

    Attributes:
        levels: all that were run, in order.
        at: the level that tells where the time goes: at the capacity, or the last.
        measurement: the capacity, None where it was not asked for.
        users: the user load, None without one.
        compared, opinion: one level as this client saw it, and as perf_analyzer did.
        missed: why the limits were not met; None where they were.
    """

    levels: tuple[LoadLevel, ...]
    at: LoadLevel
    measurement: Measurement | None = None
    users: UserLoad | None = None
    compared: LoadLevel | None = None
    opinion: PerfAnalyzerResult | None = None
    missed: str | None = None


@dataclass(frozen=True)
class MeasureResult:
    """What was found of which configuration, and the file that it is kept in."""

    file: Path
    config: ServingConfig
    gated: tuple[GatedArtifact, ...]
    found: MeasuredBest


def measure_configuration(request: MeasureRequest, watch: Watcher) -> MeasureResult:
    """Serve one configuration and measure it.

    Everything that can be known to be missing or wrong is found before anything starts.

    Raises:
        OptimizerError: one of its branches, see `optimizer.errors`.
    """
    space = fixed_at(open_space(request.space), request.settings)
    binary = _binary(space) if request.second_opinion else None
    users = read_user_load(request.users) if request.users is not None else None
    slot = slot_of(space)
    server = require_host(space, slot)
    require_packages(space)
    folder = request.results.absolute() / space.study / "measured"
    with StudyDirectory(folder).locked():
        directory = StudyDirectory(folder / f"{_next_number(folder):05}")
        place = RunPlace(directory, request.cache, slot, space.host)
        machine = this_machine(server, space.search_space.hardware.gpus)
        try:
            with logged(directory, watch) as log, place.session(space) as session:
                place.introduce(machine, log)
                prepared = place.prepare(session, space, log)
                config = prepared.space.config(prepared.space.baseline)
                log(StepStarted(f"loading {describe(config)}"))
                served = session.serve(config, files_of(config, prepared.files))
                try:
                    with LoadClient(place.slot.client_cores) as client:
                        rng = np.random.default_rng(request.seed)
                        levels = LevelRunner(client, space.workload, place.slot, rng, log)
                        bench = _Bench(space, config, levels, served)
                        found = bench.measure(request, users)
                        if binary is not None:
                            found = bench.compared(found, request, binary, place.slot, log)
                except TrialFailure as error:
                    raise session.failure(error) from error
        finally:
            shutil.rmtree(directory.repository.parent, ignore_errors=True)
        measured = MeasureResult(directory.root / "measured.json", config, prepared.gated, found)
        write_json(measured.file, _to_json(measured, machine, place.slot))
    return measured


@dataclass(frozen=True)
class _Bench:
    """One configuration that is being served, and the levels that are run on it."""

    space: Space
    config: ServingConfig
    levels: LevelRunner
    served: ServedConfiguration

    def measure(
        self, request: MeasureRequest, users: tuple[UserLoad, StoppingConditions] | None
    ) -> MeasuredBest:
        """What was asked for, less the second opinion."""
        with self.levels.on(self.served, self.config) as run:
            if users is not None:
                return self._users(run, *users)
            if request.rate_per_second is not None:
                level = self._whole_level(run, request.rate_per_second)
                return MeasuredBest((level,), level, missed=why_missed(level))
            find = find_curve if request.curve else find_capacity
            outstanding = concurrency(self.config)
            protocol = search_protocol(self.space)
            result = find(run, self.space.workload, protocol, outstanding)
        measurement = result.valid_measurement
        levels, at = measurement.levels, measurement.level_at_capacity
        missed = measurement.ended if measurement.load_factor == 0 else None
        return MeasuredBest(levels, at or levels[-1], measurement, missed=missed)

    def _users(self, run: RunLevel, load: UserLoad, conditions: StoppingConditions) -> MeasuredBest:
        timeout = search_protocol(self.space).saturation_timeout_seconds
        level = run(LevelPlan(load, 0.0, load.seconds, timeout, stop=conditions))
        own_ms = self.space.workload.shortest_limit_ms
        thresholds = [limit.latency_ms for limit in conditions.model_latency_thresholds]
        missed = why_user_load_missed(level, min(thresholds, default=own_ms))
        return MeasuredBest((level,), level, users=load, missed=missed)

    def compared(
        self, found: MeasuredBest, request: MeasureRequest, binary: Path, slot: Slot, watch: Watcher
    ) -> MeasuredBest:
        """Have this client and perf_analyzer measure the same level, one after the other."""
        capacity = found.measurement.capacity_per_second if found.measurement else 0.0
        rate = request.rate_per_second or _OPINION_SHARE * capacity
        if rate == 0:
            watch(Note("no load met the limits: perf_analyzer measures one with --rate", True))
            return found
        level, missed = found.at, found.missed
        if request.rate_per_second is None:
            with self.levels.on(self.served, self.config) as run:
                level = self._whole_level(run, rate)
            missed = why_missed(level)
        [stream], workload = self.space.workload.streams, self.space.workload
        assert isinstance(stream.arrivals, str), "refused before anything started"
        transport, endpoint = workload.transport, self.served.server.endpoint
        question = PerfAnalyzerJob(
            model=stream.target,
            protocol=transport.protocol,
            address=endpoint.grpc if transport.protocol == "grpc" else endpoint.http,
            requests=self.levels.requests(stream, self.config),
            batch_size=stream.batch_size,
            rate_per_second=rate,
            arrivals=stream.arrivals,
            seconds=level.seconds,
            cores=slot.client_cores,
        )
        opinion = perf_analyzer.run_perf_analyzer(binary, question)
        return replace(found, compared=level, opinion=opinion, missed=missed)

    def _whole_level(self, run: RunLevel, rate_per_second: float) -> LoadLevel:
        """Run one open-loop level to its end.

        Raises:
            LoadTestFailure: when every request was answered by an error, or the load generator fell
                behind. What is merely late misses the limit.
        """
        level = self._search(run).whole_level(rate_per_second / self._demand)
        refuse_void(level)
        if not any(str(stream.first_error).startswith(TOO_LATE) for stream in level.streams):
            refuse_if_all_failed(level)
        return level

    @property
    def _demand(self) -> float:
        return self.space.workload.demand_per_second

    def _search(self, run: RunLevel) -> CapacitySearch:
        return CapacitySearch(run, self.space.workload, search_protocol(self.space))


def _to_json(measured: MeasureResult, machine: Machine, slot: Slot) -> dict[str, Any]:
    found = measured.found
    return {
        "config": asdict(measured.config),
        "accuracy": {
            gated.spec.label: accuracy_to_json(gated.accuracy) for gated in measured.gated
        },
        "capacity": _capacity(found.measurement),
        "missed": found.missed,
        "levels": [asdict(level) for level in found.levels],
        "compared": asdict(found.compared) if found.compared is not None else None,
        "perf_analyzer": asdict(found.opinion) if found.opinion is not None else None,
        "machine": machine_json(machine, slot),
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


def _binary(space: Space) -> Path:
    """perf_analyzer on PATH. Raises UsageError where it cannot offer the space's traffic."""
    if len(space.models) > 1:
        raise UsageError("--with perf_analyzer: it sends requests to one model, not to several")
    [stream] = space.workload.streams
    if space.workload.transport.encoding == "json" or space.workload.transport.shared_memory:
        raise UsageError("--with perf_analyzer: binary tensors without shared memory alone")
    if stream.arrivals not in perf_analyzer.DISTRIBUTIONS:
        raise UsageError("--with perf_analyzer: arrivals must be poisson or constant, not a trace")
    found = shutil.which(perf_analyzer.NAME)
    if found is None:
        raise RequirementError("perf_analyzer is not on PATH", perf_analyzer.INSTALL_HINT)
    return Path(found)
