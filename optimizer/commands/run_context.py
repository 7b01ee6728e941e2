"""The context of a run: a checked machine, a locked study directory, and what serves there."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.artifacts.build_process import BuildProcess
from optimizer.artifacts.cache import ArtifactCache
from optimizer.artifacts.shared_cache import SharedCache
from optimizer.commands.called_models import source_from_server
from optimizer.commands.code_consent import announce_code
from optimizer.commands.hosts import launch_with, require_host
from optimizer.commands.packages import require_packages
from optimizer.commands.protocols import protocols
from optimizer.configuration.hardware import Hardware
from optimizer.configuration.hosting import ContainerHost, RemoteHost
from optimizer.configuration.named_parameters import CONFIG_PREFIX, UNCHANGED, is_any_field
from optimizer.configuration.runtimes import HOSTED_PACKAGE, STEP_RUNTIMES
from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ArtifactSpec
from optimizer.errors import Mistake, SpaceChangedError, SpaceFileError, UsageError
from optimizer.files.atomic import remove_unfinished, write_json
from optimizer.files.owned_names import remove_abandoned
from optimizer.fleet.price_list import price_list, price_warning, usual_prices
from optimizer.load.client import LoadClient
from optimizer.machine.docker_engine import remove_containers_of_the_dead
from optimizer.machine.fingerprint import Machine, this_machine
from optimizer.machine.gpus import clock_advice, refuse_foreign_processes
from optimizer.machine.quiet import wait_for_quiet
from optimizer.machine.slots import MachineSlots, Slot, local_hardware, local_slot
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.evaluator import LiveEvaluator, Protocols
from optimizer.search.level_runner import LevelRunner
from optimizer.search.prepare import PreparePhase
from optimizer.search.prepared import Prepared
from optimizer.space_file.chosen_point import fixed_at
from optimizer.space_file.deployed_models import CompleteSource
from optimizer.space_file.reader import Space, load_space
from optimizer.study.context import StudyContext, limit_names
from optimizer.study.decision import stored_decision
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Note, Watcher, to_all, warnings_to
from optimizer.study.files import read_start
from optimizer.study.progress_file import progress_file
from optimizer.study.run_log import run_log
from optimizer.study.run_state import RunState
from optimizer.study.warm_start import differences
from optimizer.triton.deployed_pipeline import read_settings
from optimizer.triton.model_config import wrong_field
from optimizer.triton.session import ModelFiles, ServingSession


def artifact_cache(location: Path | str | None) -> ArtifactCache:
    """Return the artefact cache in a folder, or this user's in front of a shared one at a URL.

    None is OPTIMIZER_CACHE, or this user's folder by the XDG base-directory specification.

    Raises:
        UsageError: where another user may have written what is in the folder.
        StorageError: when the folder cannot be read.
    """
    cache = _artifact_cache(location)
    cache.require_own()
    return cache


def _artifact_cache(location: Path | str | None) -> ArtifactCache:
    location = location or os.environ.get("OPTIMIZER_CACHE")
    if location is not None and "://" not in str(location):
        return ArtifactCache(Path(location).absolute())
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute()
    shared = SharedCache(str(location)) if location is not None else None
    return ArtifactCache(root / "triton-cost-optimizer", shared)


def open_space(
    space: Path | Space,
    complete: CompleteSource = source_from_server,
    hardware: Hardware | None = None,
    accelerator_type: str | None = None,
) -> Space:
    """Read a space file for this machine; return a space that was read already as it is.

    Args:
        complete: completes the sources of models that are deployed already.
        hardware: that a trial has; None for that of the machine as a whole.
        accelerator_type: see `load_space`.

    Raises:
        SpaceFileError: with every mistake in the file.
        UsageError: for a price list that cannot be used.
        RequirementError: where no server could be asked for what a configuration leaves out.
    """
    if isinstance(space, Space):
        return space
    prices, own = usual_prices(price_list()), hardware or local_hardware()
    read = load_space(space, prices, own, read_settings, complete, accelerator_type)
    if mistakes := _wrong_fields(read.search_space, "parameters."):
        raise SpaceFileError(space, mistakes)
    return read


def open_point(space: Path | Space, settings: Mapping[str, str]) -> Space:
    """Read a space as `open_space` does, and return its only point that is set as in `fixed_at`.

    Raises:
        SpaceFileError: with every mistake in the file.
        UsageError: with every wrong setting.
    """
    fixed = fixed_at(open_space(space), settings)
    if mistakes := _wrong_fields(fixed.search_space, ""):
        raise UsageError("\n".join(["--set:", *(f"  {each}" for each in mistakes)]))
    return fixed


def _wrong_fields(space: SearchSpace, prefix: str) -> list[Mistake]:
    """Return what is wrong with parameters "config.PATH" as fields of Triton's config.pbtxt.

    Args:
        prefix: of the parameters' keys in the messages.
    """
    return [
        Mistake(f"{prefix}{parameter.name}", rule, repr(value))
        for parameter in space.parameters
        if is_any_field(parameter.name)
        for value in parameter.values
        if value != UNCHANGED
        and (rule := wrong_field(parameter.name.removeprefix(CONFIG_PREFIX), value)) is not None
    ]


def require_machine(space: Space, slots: MachineSlots | None = None) -> tuple[Slot, Machine]:
    """Check that the space's host can serve it; return the slot and the fingerprint of the machine.

    Args:
        slots: of which a trial has one; None where it has the machine as a whole.

    Raises:
        RequirementError: the machine, the image or the server lacks something.
    """
    gpus = space.search_space.hardware.gpus
    if slots is not None and gpus:
        gpus = slots.hardware.gpus  # the space may have been read on another host of the same kind
    slot = local_slot(tuple(gpu.uuid for gpu in gpus)) if slots is None else slots.first
    runtimes = sorted({spec.runtime for spec in space.search_space.artifacts})
    steps = [HOSTED_PACKAGE[name] for name in runtimes if name in STEP_RUNTIMES]
    return slot, this_machine(require_host(space, slot), gpus, steps, slots)


@dataclass(frozen=True)
class RunContext:
    """What serves and measures the configurations of a space, and where its files are kept.

    Attributes:
        cache: the artefact cache.
        seed: of the arrivals.
        slot: of everything that runs alone.
        extra_limits_ms: latency limits within which a capacity is measured too, ascending.
        slots: that trials run on at the same time; None where they have the machine as a whole.
        wait_for_quiet_seconds: how long to wait for other processes that keep the machine busy;
            None does not look for them.
    """

    space: Space
    directory: StudyDirectory
    cache: ArtifactCache
    slot: Slot
    machine: Machine
    seed: int = 0
    extra_limits_ms: tuple[float, ...] = ()
    slots: MachineSlots | None = None
    wait_for_quiet_seconds: float | None = None

    @property
    def study_context(self) -> StudyContext:
        """What all measurements of this run have in common."""
        return StudyContext(
            price=self.space.price,
            demand=self.space.demand,
            limit_names=limit_names(self.space.workload),
            slot=self.slot,
            machine=self.machine.digest,
            confirm_requests=self.space.measurement.confirm_requests,
            extra_limits_ms=self.extra_limits_ms,
        )

    @property
    def machine_json(self) -> dict[str, Any]:
        """The machine as plain JSON values, with the cores of server and load client."""
        return {
            **self.machine.to_json(),
            "cores_separated": self.slot.separated,
            "server_cores": list(self.slot.cores),
            "client_cores": list(self.slot.client_cores),
        }

    def announce(self, watch: Watcher) -> None:
        """Tell the machine, the folders, and the code of others that runs.

        Raises:
            RequirementError: where another process uses the slot's GPUs.
        """
        watch(Note(f"machine: {self.machine.summary}"))
        if isinstance(self.space.host, ContainerHost):
            # Before anything that looks for the processes of others, on cores or on GPUs.
            remove_containers_of_the_dead()
        if self.slots is not None:
            watch(Note(f"trials at the same time: {self.slots.summary}"))
        self._wait_for_quiet(watch)
        watch(Note(self._cores_text()))
        for command in clock_advice(self._gpu_uuids):
            watch(Note(f"GPU clocks are not locked; for steadier figures, run: {command}"))
        watch(Note(f"results: {self.directory.root}; artefact cache: {self.cache}"))
        announce_code(self.space.models, watch)

    def _wait_for_quiet(self, watch: Watcher) -> None:
        if self.wait_for_quiet_seconds is None or isinstance(self.space.host, RemoteHost):
            return
        slots = self.slots.slots if self.slots is not None else (self.slot,)
        cores = tuple(sorted({core for slot in slots for core in slot.all_cores}))
        used = Slot(cores, cores, self._gpu_uuids)
        wait_for_quiet(used, self.wait_for_quiet_seconds, lambda text: watch(Note(text, True)))

    @property
    def _gpu_uuids(self) -> tuple[str, ...]:
        slots = self.slots.slots if self.slots is not None else (self.slot,)
        return tuple(uuid for slot in slots for uuid in slot.gpu_uuids)

    def _cores_text(self) -> str:
        if isinstance(self.space.host, RemoteHost):
            address = self.space.host.grpc
            return f"the server at {address} runs already: its use of its machine is not measured"
        refuse_foreign_processes(self._gpu_uuids)
        if self.slot.separated:
            return "server and load generator have their own cores"
        return "server and load generator share cores (fewer than four available)"

    @contextmanager
    def watched(
        self, watch: Watcher, trials: Mapping[int, TrialRecord] | None = None
    ) -> Iterator[Watcher]:
        """Log the run, keep its progress, and announce it; yield the watcher that does so.

        Args:
            trials: the records of the study, which are read if they are not given.
        """
        with with_progress(self.directory, watch, trials) as watch_all:
            self.announce(watch_all)
            yield watch_all

    @contextmanager
    def session(self) -> Iterator[ServingSession]:
        """Yield what serves configurations on the slot; stop its server in the end."""
        launcher, repository = launch_with(self.space.host, self.directory, self.cache.root)
        gpus = self.space.search_space.hardware.gpus
        with ServingSession(launcher, repository, self.slot, gpus) as session:
            yield session

    @contextmanager
    def prepared_session(self, watch: Watcher) -> Iterator[tuple[ServingSession, Prepared]]:
        """Build and gate the artefacts of the space; yield the session that serves them."""
        space, directory = self.space, self.directory
        with self.session() as session:
            with BuildProcess(
                self.cache, directory.build_log, len(self.slot.cores), engines=space.engines
            ) as builder:
                phase = PreparePhase(directory, builder, session, watch)
                prepared = phase.run(space.models, space.search_space)
            yield session, prepared

    @contextmanager
    def evaluator(self, watch: Watcher) -> Iterator[tuple[LiveEvaluator, Prepared]]:
        """Prepare the space; yield what measures its configurations."""
        with self.prepared_session(watch) as (session, prepared), self.levels(watch) as levels:
            yield self._live_evaluator(session, levels, prepared.files, watch), prepared

    @contextmanager
    def evaluator_of(
        self, files: Mapping[ArtifactSpec, ModelFiles], watch: Watcher
    ) -> Iterator[LiveEvaluator]:
        """Yield what measures configurations of a space that was prepared before.

        Args:
            files: model files by artefact.
        """
        with self.session() as session, self.levels(watch) as levels:
            yield self._live_evaluator(session, levels, files, watch)

    def _live_evaluator(
        self,
        session: ServingSession,
        levels: LevelRunner,
        files: Mapping[ArtifactSpec, ModelFiles],
        watch: Watcher,
    ) -> LiveEvaluator:
        workload, extra_limits_ms = self.space.workload, self.extra_limits_ms
        timing = self.protocols
        return LiveEvaluator(session, levels, workload, files, timing, watch, extra_limits_ms)

    @property
    def protocols(self) -> Protocols:
        """Protocols of the search and the confirm phase."""
        return protocols(self.space, self.slot, self.extra_limits_ms)

    @contextmanager
    def levels(self, watch: Watcher) -> Iterator[LevelRunner]:
        """Start a load client; yield what runs load levels with it."""
        with LoadClient(self.slot.client_cores) as client:
            # Workers draw arrivals of their own.
            rng = np.random.default_rng([self.seed, *self.slot.name.encode()])
            yield LevelRunner(client, self.space.workload, self.slot, rng, watch)


@contextmanager
def open_run(  # noqa: PLR0913 - in what the runs of four commands differ
    space: Space,
    directory: StudyDirectory,
    cache: Path | str | None,
    remedy: str,
    *,
    seed: int = 0,
    extra_limits_ms: tuple[float, ...] | None = None,
    require: Callable[[Space], tuple[Slot, Machine]] | None = None,
    watch: Watcher = lambda _: None,
) -> Iterator[RunContext]:
    """Check the machine, lock the directory, and check that its space and machine are the same.

    Args:
        cache: location of the artefact cache, see `artifact_cache`.
        remedy: what to do about another space, the end of the message.
        extra_limits_ms: see `RunContext`; None where they do not distinguish a study.
        require: checks the machine before anything is written; by default `require_machine`.
        watch: receives what holds up the run before it has watchers of its own.

    Raises:
        RequirementError: the machine, the image or the server lacks something.
        SpaceChangedError: the directory is of another space or machine.
        StudyBusyError: another process holds the directory.
    """
    slot, machine = (require or require_machine)(space)
    require_packages(space)
    with directory.locked(warnings_to(watch)):
        remove_unfinished(directory.root)
        remove_abandoned(Path(tempfile.gettempdir()))
        require_same_space(directory, space, machine, remedy, extra_limits_ms)
        yield RunContext(
            space, directory, artifact_cache(cache), slot, machine, seed, extra_limits_ms or ()
        )


def require_same_space(
    directory: StudyDirectory,
    space: Space,
    machine: Machine,
    remedy: str,
    extra_limits_ms: tuple[float, ...] | None = None,
) -> None:
    """Check that a study is resumed with its own space on its own machine; write down a new one's.

    Args:
        extra_limits_ms: latency limits that it searches for beside the space's; None where that
            does not matter.

    Raises:
        SpaceChangedError: with every difference, and the remedy.
    """
    current: dict[str, Any] = {"space": space.content, "machine": machine.to_json()}
    if extra_limits_ms:
        current["also_limit_ms"] = list(extra_limits_ms)
    if not directory.space.exists():
        write_json(directory.space, current)
        return
    start = read_start(directory)
    started = {**start.data, "space": start.content}
    if extra_limits_ms is None:
        started.pop("also_limit_ms", None)
    changes = [text for _, text in differences(started, current)]
    if changes:
        lines = "\n".join(f"  {text}" for text in changes)
        raise SpaceChangedError(
            f"study {directory.name} was started with another space or machine:\n{lines}\n{remedy}"
        )


def warn_of_space_file(space: Space, watch: Watcher) -> None:
    """Warn of an old price and of old names in the space file."""
    old_price = price_warning(space.price, datetime.now(UTC).date())
    for warning in (*space.notes, *([old_price] if old_price is not None else [])):
        watch(Note(warning, True))


@contextmanager
def with_log(directory: StudyDirectory, watch: Watcher) -> Iterator[Watcher]:
    """Yield a watcher that tells `watch` every event and keeps it in the log of `directory`."""
    with run_log(directory.run_log, lambda: datetime.now(UTC).astimezone()) as log:
        yield to_all(log, watch)


@contextmanager
def with_progress(
    directory: StudyDirectory, watch: Watcher, trials: Mapping[int, TrialRecord] | None = None
) -> Iterator[Watcher]:
    """Yield a watcher as `with_log` does, which also keeps progress.json; hold the lock meanwhile.

    Args:
        trials: the records in the directory, which are read if they are not given.

    Raises:
        StorageError: when a record is damaged.
    """
    trials = directory.trials.read_all() if trials is None else trials
    best = stored_decision(directory, trials.values()).best
    state = RunState(time.time, trials, best, len(directory.confirmations))
    with (
        with_log(directory, watch) as log,
        progress_file(directory, state, time.time) as progress,
    ):
        yield to_all(progress, log)
