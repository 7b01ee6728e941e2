"""The only place where parts are chosen and joined; used by the command line and from Python."""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.artifacts.workshop import Workshop
from optimizer.errors import RequirementError, SpaceChangedError, UsageError
from optimizer.export.bundle import write_bundle
from optimizer.fleet.price_catalogue import shipped_prices
from optimizer.load.capacity import CapacityProtocol
from optimizer.load.client import LoadClient
from optimizer.machine.fingerprint import Machine, this_machine
from optimizer.machine.slots import Slot, local_slot
from optimizer.model_spec import TransformersSource
from optimizer.search.confirm import Confirmed, ConfirmPhase
from optimizer.search.evaluator import LiveEvaluator, Protocols
from optimizer.search.events import Note, Watcher
from optimizer.search.history import History
from optimizer.search.loop import SearchEnd, SearchLoop, Setting
from optimizer.search.optuna_study import SAMPLER_PACKAGES, OptunaStudy
from optimizer.search.prepare import Prepared, PreparePhase
from optimizer.search.served_levels import ServedLevels
from optimizer.search.study_directory import StudyDirectory, write_json
from optimizer.search.summary import summarise
from optimizer.search.warm_start import blocking_differences, carried_over, differences
from optimizer.search_space import SearchSpace
from optimizer.serving_config import ModelServing, Runtime
from optimizer.shipped import shipped
from optimizer.space_file import Budget, Space, load_space
from optimizer.trial_record import TrialRecord
from optimizer.triton.embedded import EmbeddedRuntime, find_embedded_runtime
from optimizer.triton.launcher import EmbeddedLauncher
from optimizer.triton.repository import ModelRepository
from optimizer.triton.session import ModelFiles, ServingSession

_RUNTIME_PACKAGE: Mapping[Runtime, str] = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "pytorch": "torch",
}
_TIMEOUT_LIMITS = 5
_SHORTEST_TIMEOUT_SECONDS = 2.0
"""A request that takes longer than this many latency limits, and this long, is given up."""

_GRAPH_PACKAGES = {"onnx", "onnxruntime"}
_EXPORT_PACKAGES = {"torch", "transformers", "onnxscript"}


@dataclass(frozen=True)
class RunRequest:
    """What one `run` was asked to do; None leaves the space file's own value.

    Attributes:
        results: folder that holds the studies.
        cache: folder of the artefact cache.
        storage: URL of a study database; None keeps a journal in the study's folder.
        warm_start: name of a study in `results` whose measurements are taken over.
    """

    space: Path
    results: Path
    cache: Path
    study: str | None = None
    trials: int | None = None
    timeout_seconds: float | None = None
    seed: int = 0
    sampler: str = "gp"
    storage: str | None = None
    warm_start: str | None = None


@dataclass(frozen=True)
class RunResult:
    """What a run left: the summary, and whether it was there already."""

    directory: StudyDirectory
    summary: Mapping[str, Any]
    was_finished: bool


def default_cache() -> Path:
    """The artefact cache of this user, by the XDG base-directory specification."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "triton-cost-optimizer"


def open_space(path: Path) -> Space:
    """Read a space file for this machine. Raises SpaceFileError."""
    return load_space(path, shipped_prices(), cores=len(local_slot().cores))


def run_study(request: RunRequest, watch: Watcher) -> RunResult:
    """Run a study to its end, from wherever it stands.

    Everything that can be known to be missing or wrong is found before anything starts.

    Raises:
        OptimizerError: one of its branches, see `optimizer.errors`.
    """
    started = time.monotonic()
    space = _with_request(open_space(request.space), request)
    runtime = find_embedded_runtime()
    _require_packages(space, request.sampler)
    machine = this_machine()
    directory = StudyDirectory(request.results.absolute() / space.study)
    if request.warm_start is not None and not directory.trials.read_all():
        _hold_to_what_holds_here(request.results, request.warm_start, space, machine)
    with directory.locked():
        _hold_to_what_was_begun(directory, space, machine)
        if (summary := _finished(directory, space.budget)) is not None:
            return RunResult(directory, summary, was_finished=True)
        study = _Study(request, space, directory, machine, local_slot(), runtime, watch)
        return RunResult(directory, study.run(started), was_finished=False)


def _with_request(space: Space, request: RunRequest) -> Space:
    budget = Budget(
        request.trials or space.budget.trials,
        request.timeout_seconds or space.budget.wall_clock_seconds,
    )
    return replace(space, study=request.study or space.study, budget=budget)


def _require_packages(space: Space, sampler: str) -> None:
    """Say what is missing now, not when the first artefact is built."""
    wanted = {*_GRAPH_PACKAGES, *SAMPLER_PACKAGES[sampler]}
    wanted |= {_RUNTIME_PACKAGE[spec.runtime] for spec in space.search_space.artifacts}
    if isinstance(space.model.source, TransformersSource):
        wanted |= _EXPORT_PACKAGES
    missing = sorted(name for name in wanted if importlib.util.find_spec(name) is None)
    if missing:
        raise RequirementError(
            f"this space needs {', '.join(missing)}: pip install 'triton-cost-optimizer[embedded]'"
        )


def _hold_to_what_was_begun(directory: StudyDirectory, space: Space, machine: Machine) -> None:
    """A study is resumed with its own space, on its own machine, or not at all."""
    now = {"space": space.content, "machine": _plain(machine)}
    if not directory.space.exists():
        write_json(directory.space, now)
        return
    begun = directory.read_json(directory.space)
    changed = [text for _, text in differences(begun, now)]
    if changed:
        lines = "\n".join(f"  {text}" for text in changed)
        raise SpaceChangedError(
            f"study {directory.name} was begun with something else:\n{lines}\n"
            f"go on with what it was begun with, or begin another that takes over what still "
            f"holds: --study NEW --warm-start {directory.name}"
        )


def _hold_to_what_holds_here(results: Path, name: str, space: Space, machine: Machine) -> None:
    """A study is taken over only where its measurements would come out the same."""
    other = StudyDirectory(results.absolute() / name)
    if not other.space.exists():
        raise UsageError(f"--warm-start: there is no study {name} in {results}")
    begun = other.read_json(other.space)
    blocking = [
        *blocking_differences(begun["space"], space.content),
        *(text for _, text in differences(begun["machine"], _plain(machine), ("machine",))),
    ]
    if blocking:
        lines = "\n".join(f"  {text}" for text in blocking)
        raise UsageError(f"--warm-start: nothing measured in {name} holds here:\n{lines}")


def _plain(machine: Machine) -> dict[str, Any]:
    data = asdict(machine)
    return {**data, "cpu_features": list(machine.cpu_features), "packages": dict(machine.packages)}


def _finished(directory: StudyDirectory, budget: Budget) -> Mapping[str, Any] | None:
    """The summary of a study that has nothing left to do within this budget."""
    if not directory.summary.exists():
        return None
    summary: Mapping[str, Any] = directory.read_json(directory.summary)
    records = directory.trials.read_all()
    here = sum(record.origin is None for record in records.values())
    whole = sum(summary["trials"].values()) == len(records)
    return summary if whole and (here >= budget.trials or summary["space_exhausted"]) else None


class _Study:
    """One run of one study: its parts, joined, and its phases in their order."""

    def __init__(
        self,
        request: RunRequest,
        space: Space,
        directory: StudyDirectory,
        machine: Machine,
        slot: Slot,
        runtime: EmbeddedRuntime,
        watch: Watcher,
    ) -> None:
        self._request = request
        self._space = space
        self._directory = directory
        self._machine = machine
        self._slot = slot
        self._runtime = runtime
        self._watch = watch
        self._templates = shipped("model_repository_templates")
        self._setting = Setting(
            price=space.price,
            demand=space.demand,
            limit_names=tuple(f"latency.{stream.name}" for stream in space.workload.streams),
            slot=slot,
            machine=machine.digest,
        )

    def run(self, started: float) -> Mapping[str, Any]:
        """All phases; returns the summary that was written."""
        self._introduce()
        # A damaged record, or a storage that cannot be opened, is known now, and not after
        # everything is built.
        self._directory.trials.read_all()
        self._open_study(self._space.search_space).close()
        with self._session() as session:
            prepared = self._prepare(session)
            history = self._take_over(prepared)
            with (
                self._open_study(prepared.space) as study,
                LoadClient(self._slot.client_cores) as client,
            ):
                study.reconcile({record.number: record for record in history.records})
                rng = np.random.default_rng(self._request.seed)
                workload = self._space.workload
                evaluator = LiveEvaluator(
                    session,
                    ServedLevels(client, workload, self._slot, rng, self._watch),
                    workload,
                    prepared.files,
                    _protocols(self._space),
                    self._watch,
                )
                ended = self._search(study, evaluator, history, prepared)
                confirmed = self._confirm(evaluator, history, prepared)
        self._hand_out(confirmed, prepared)
        return self._summarise(started, ended, history, confirmed, prepared)

    def _search(
        self, study: OptunaStudy, evaluator: LiveEvaluator, history: History, prepared: Prepared
    ) -> SearchEnd:
        loop = SearchLoop(
            study,
            prepared.space,
            evaluator,
            self._directory,
            history,
            self._setting,
            self._watch,
        )
        return loop.run(self._space.budget)

    def _introduce(self) -> None:
        slot, machine = self._slot, self._machine
        self._watch(Note(f"machine: {machine.summary}"))
        where = "their own cores" if slot.separated else "the same cores, too few to separate them"
        self._watch(Note(f"server and load client keep to {where}"))
        self._watch(Note(f"results: {self._directory.root}; artefact cache: {self._request.cache}"))

    @contextmanager
    def _session(self) -> Iterator[ServingSession]:
        repository = self._directory.repository
        launcher = EmbeddedLauncher(
            self._runtime,
            self._runtime.lay_out(repository.parent / "backends"),
            repository,
            self._directory.server_log,
        )
        models = ModelRepository(repository, self._templates)
        with ServingSession(launcher, models, self._slot) as session:
            yield session

    def _prepare(self, session: ServingSession) -> Prepared:
        with ExitStack() as stack:
            workshop = stack.enter_context(
                Workshop(self._request.cache, self._directory.build_log, len(self._slot.cores))
            )
            phase = PreparePhase(
                self._directory, workshop, session, len(self._slot.cores), self._watch
            )
            return phase.run(self._space.model, self._space.search_space)

    def _take_over(self, prepared: Prepared) -> History:
        """The records of this study; those of another one first, where asked and not yet done."""
        records = self._directory.trials.read_all()
        if self._request.warm_start is not None and not records:
            for record in self._carried_over(self._request.warm_start, prepared):
                self._directory.trials.write(record)
            records = self._directory.trials.read_all()
            self._watch(Note(f"{len(records)} trials taken over from {self._request.warm_start}"))
        return History(records)

    def _carried_over(self, name: str, prepared: Prepared) -> list[TrialRecord]:
        other = StudyDirectory(self._request.results.absolute() / name)
        records = list(other.trials.read_all().values())
        return carried_over(records, name, prepared.space, self._space.price, self._space.demand)

    def _open_study(self, space: SearchSpace) -> OptunaStudy:
        return OptunaStudy(
            self._space.study,
            self._directory.journal,
            self._request.storage,
            space,
            self._request.sampler,
            self._request.seed,
        )

    def _confirm(self, evaluator: LiveEvaluator, history: History, prepared: Prepared) -> Confirmed:
        phase = ConfirmPhase(evaluator, self._directory, self._setting, self._watch)
        return phase.run(history, prepared.space.config(prepared.space.baseline))

    def _hand_out(self, confirmed: Confirmed, prepared: Prepared) -> None:
        """best/, and the baseline beside it, with copies of their artefacts."""
        if confirmed.best:
            self._write(self._directory.best, confirmed.best[0].config.models[0], prepared)
        else:
            # A winner of an earlier run that no longer holds is none.
            shutil.rmtree(self._directory.best, ignore_errors=True)
        baseline = prepared.space.config(prepared.space.baseline).models[0]
        self._write(self._directory.baseline, baseline, prepared)

    def _write(self, target: Path, model: ModelServing, prepared: Prepared) -> None:
        files: ModelFiles = prepared.files[model.artifact]
        write_bundle(target, self._templates, model, files)

    def _summarise(
        self,
        started: float,
        ended: SearchEnd,
        history: History,
        confirmed: Confirmed,
        prepared: Prepared,
    ) -> Mapping[str, Any]:
        summary = summarise(
            self._space,
            ended,
            history,
            confirmed,
            list(self._directory.confirmations.read_all().values()),
            prepared,
        )
        summary |= {
            "wall_seconds": time.monotonic() - started,
            "machine": {**_plain(self._machine), "cores_separated": self._slot.separated},
        }
        write_json(self._directory.summary, summary)
        return summary


def _protocols(space: Space) -> Protocols:
    settings = space.measurement
    limit_seconds = max(stream.limit.latency_ms for stream in space.workload.streams) / 1000
    search = CapacityProtocol(
        saturation_seconds=settings.saturation_seconds,
        check_seconds=settings.check_seconds,
        warmup_seconds=settings.warmup_seconds,
        check_timeout_seconds=max(_SHORTEST_TIMEOUT_SECONDS, _TIMEOUT_LIMITS * limit_seconds),
    )
    return Protocols(search, replace(search, check_seconds=settings.confirm_seconds))
