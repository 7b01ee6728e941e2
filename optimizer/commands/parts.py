"""Parts that every command joins: the space, the server's session, the artefacts, the protocols."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.artifacts.build_process import BuildProcess
from optimizer.commands.hosts import launch_with
from optimizer.configuration.hosting import Host, RemoteHost
from optimizer.errors import RequirementError, SpaceChangedError, UsageError
from optimizer.files.atomic import write_json
from optimizer.fleet.price_list import price_list, price_warning, usual_prices
from optimizer.load.capacity import CapacityProtocol
from optimizer.load.client import LoadClient
from optimizer.machine.fingerprint import Machine
from optimizer.machine.gpus import clock_advice, refuse_foreign_processes
from optimizer.machine.slots import Slot, local_hardware, local_slot
from optimizer.runtimes import RUNTIME_PACKAGE
from optimizer.search.evaluator import LiveEvaluator, Protocols
from optimizer.search.level_runner import LevelRunner
from optimizer.search.prepare import Prepared, PreparePhase
from optimizer.space_file.parameter_schema import with_defaults
from optimizer.space_file.reader import MeasurementSettings, Space, load_space
from optimizer.study.context import StudyContext, limit_names
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Note, Watcher
from optimizer.study.warm_start import differences
from optimizer.triton.session import ServingSession
from optimizer.workload.model_spec import TransformersSource
from optimizer.workload.streams import Workload

_TIMEOUT_LIMITS = 5
_SHORTEST_TIMEOUT_SECONDS = 2.0
"""A request that takes longer than this many latency limits, and this long, is given up."""

_CONFIRM_SECONDS = 20.0
_GPU_CONFIRM_SECONDS = 300.0
"""In each of two rounds: short levels flatter a card that has not grown hot."""

GRAPH_PACKAGES = {"onnx", "onnxruntime"}
"""What every model's files are made with."""

EXPORT_PACKAGES = {"torch", "transformers", "onnxscript"}
"""What exports a model of transformers; an ONNX file needs none of them."""


def default_cache() -> Path:
    """This user's artefact cache: OPTIMIZER_CACHE, or by the XDG base-directory specification."""
    if given := os.environ.get("OPTIMIZER_CACHE"):
        return Path(given)
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "triton-cost-optimizer"


def open_space(given: Path | Space) -> Space:
    """Read a space file for this machine; what was read already is taken as it is.

    Raises:
        SpaceFileError: with every mistake in the file.
        UsageError: for a price list that cannot be used.
    """
    if isinstance(given, Space):
        return given
    return load_space(given, usual_prices(price_list()), local_hardware())


def warn_of_space_file(space: Space, watch: Watcher) -> None:
    """Warn of an old price and of old names in the space file."""
    old_price = price_warning(space.price, datetime.now(UTC).date())
    for warning in (*space.deprecations, *([old_price] if old_price is not None else [])):
        watch(Note(warning, True))


def slot_of(space: Space) -> Slot:
    """Where the space's configurations run: this machine, and the GPUs that the file names."""
    return local_slot(tuple(gpu.uuid for gpu in space.search_space.hardware.gpus))


def require_packages(space: Space, more: Collection[str] = ()) -> None:
    """Say what is missing now, not when the first artefact is built. Raises RequirementError."""
    wanted = {*GRAPH_PACKAGES, *more}
    runtimes = {spec.runtime for spec in space.search_space.artifacts}
    # What builds engines is asked for by `require_host`.
    wanted |= {RUNTIME_PACKAGE[runtime] for runtime in runtimes if runtime in RUNTIME_PACKAGE}
    if any(isinstance(model.source, TransformersSource) for model in space.models):
        wanted |= EXPORT_PACKAGES
    missing = sorted(name for name in wanted if importlib.util.find_spec(name) is None)
    if missing:
        raise RequirementError(
            f"this space needs {', '.join(missing)}: pip install 'triton-cost-optimizer[embedded]'"
        )


@dataclass(frozen=True)
class RunPlace:
    """Where configurations are served, and where what they need and leave is kept.

    Attributes:
        cache: folder of the artefact cache.
    """

    directory: StudyDirectory
    cache: Path
    slot: Slot
    host: Host

    def introduce(self, machine: Machine, watch: Watcher) -> None:
        """Say where it is. Raises RequirementError where another process uses the slot's GPUs."""
        watch(Note(f"machine: {machine.summary}"))
        watch(Note(self._cores()))
        for command in clock_advice(self.slot.gpu_uuids):
            watch(Note(f"clocks are left as they are; steadier figures with: {command}"))
        watch(Note(f"results: {self.directory.root}; artefact cache: {self.cache}"))

    def _cores(self) -> str:
        if isinstance(self.host, RemoteHost):
            return f"the server at {self.host.grpc} runs already: what it uses is not seen"
        refuse_foreign_processes(self.slot.gpu_uuids)
        separated = self.slot.separated
        where = "their own cores" if separated else "the same cores, too few to separate them"
        return f"server and load client keep to {where}"

    @contextmanager
    def session(self, space: Space) -> Iterator[ServingSession]:
        """Serves configurations of `space`; its server is stopped in the end."""
        launcher, repository = launch_with(self.host, self.directory, self.cache)
        gpus = space.search_space.hardware.gpus
        with ServingSession(launcher, repository, self.slot, gpus) as session:
            yield session

    @contextmanager
    def evaluator(
        self,
        session: ServingSession,
        space: Space,
        prepared: Prepared,
        seed: int,
        watch: Watcher,
        extra_limits_ms: tuple[float, ...] = (),
    ) -> Iterator[LiveEvaluator]:
        """Measures configurations of what was prepared, with a load client of its own.

        Args:
            seed: of the arrivals.
            extra_limits_ms: latency limits within which a capacity is found as well.
        """
        with LoadClient(self.slot.client_cores) as client:
            rng = np.random.default_rng(seed)
            levels = LevelRunner(client, space.workload, self.slot, rng, watch)
            timing = protocols(space, self.slot, extra_limits_ms)
            yield LiveEvaluator(
                session, levels, space.workload, prepared.files, timing, watch, extra_limits_ms
            )

    def prepare(self, session: ServingSession, space: Space, watch: Watcher) -> Prepared:
        """Build and gate what the space needs, see `PreparePhase`."""
        cores = len(self.slot.cores)
        log, engines = self.directory.build_log, space.engines
        with BuildProcess(self.cache, log, cores, engines=engines) as workshop:
            phase = PreparePhase(self.directory, workshop, session, watch)
            return phase.run(space.models, space.search_space)


def machine_json(machine: Machine, slot: Slot) -> dict[str, Any]:
    """The machine as JSON has it, and which of its cores server and load client keep to."""
    return {
        **machine.to_json(),
        "cores_separated": slot.separated,
        "server_cores": list(slot.cores),
        "client_cores": list(slot.client_cores),
    }


def search_protocol(space: Space, extra_limits_ms: tuple[float, ...] = ()) -> CapacityProtocol:
    """How long levels take by the space's settings, and by further limits."""
    return protocol_by(space.measurement, space.workload, extra_limits_ms)


def protocol_by(
    settings: MeasurementSettings, workload: Workload, extra_limits_ms: tuple[float, ...] = ()
) -> CapacityProtocol:
    """How long levels of a workload take."""
    own_ms = [stream.limit.latency_ms for stream in workload.streams]
    limit_seconds = max([*own_ms, *extra_limits_ms]) / 1000
    return CapacityProtocol(
        saturation_seconds=settings.saturation_seconds,
        check_seconds=settings.check_seconds,
        warmup_seconds=settings.warmup_seconds,
        check_timeout_seconds=max(_SHORTEST_TIMEOUT_SECONDS, _TIMEOUT_LIMITS * limit_seconds),
    )


def protocols(space: Space, slot: Slot, extra_limits_ms: tuple[float, ...] = ()) -> Protocols:
    """How long levels take in a search and when confirming, by the space's settings."""
    search = search_protocol(space, extra_limits_ms)
    usual = _GPU_CONFIRM_SECONDS if slot.gpu_uuids else _CONFIRM_SECONDS
    confirm_seconds = space.measurement.confirm_seconds or usual
    return Protocols(search, replace(search, check_seconds=confirm_seconds))


def require_one_limit(workload: Workload, option: str) -> None:
    """Other limits are for streams that share one.

    Raises:
        UsageError: naming `option`, where they do not.
    """
    if len({stream.limit.latency_ms for stream in workload.streams}) > 1:
        own = ", ".join(f"{each.name} {each.limit.latency_ms:g} ms" for each in workload.streams)
        raise UsageError(
            f"{option}: must be left out where streams have limits of their own; got {own}"
        )


def study_context(
    space: Space, slot: Slot, machine: Machine, extra_limits_ms: tuple[float, ...] = ()
) -> StudyContext:
    """What all measurements of a space on this machine have in common."""
    return StudyContext(
        price=space.price,
        demand=space.demand,
        limit_names=limit_names(space.workload),
        slot=slot,
        machine=machine.digest,
        confirm_requests=space.measurement.confirm_requests,
        extra_limits_ms=extra_limits_ms,
    )


def require_same_space(
    directory: StudyDirectory,
    space: Space,
    machine: Machine,
    remedy: str,
    extra_limits_ms: tuple[float, ...] | None = None,
) -> None:
    """A study is resumed with its own space, on its own machine, or not at all.

    Args:
        extra_limits_ms: latency limits that it searches for beside the space's; None where that
            does not matter.

    Raises:
        SpaceChangedError: with every difference, and the remedy.
    """
    now: dict[str, Any] = {"space": space.content, "machine": machine.to_json()}
    if extra_limits_ms:
        now["also_limit_ms"] = list(extra_limits_ms)
    if not directory.space.exists():
        write_json(directory.space, now)
        return
    begun = directory.read_json(directory.space)
    begun["space"] = with_defaults(begun["space"])
    if extra_limits_ms is None:
        begun.pop("also_limit_ms", None)
    changed = [text for _, text in differences(begun, now)]
    if changed:
        lines = "\n".join(f"  {text}" for text in changed)
        raise SpaceChangedError(
            f"study {directory.name} was begun with something else:\n{lines}\n{remedy}"
        )
