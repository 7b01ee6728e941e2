"""Serve many configurations with one server, which is restarted only when necessary."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from optimizer.configuration.hardware import Gpu
from optimizer.configuration.model_graph import NO_GRAPH
from optimizer.configuration.releases import EngineFacts, refuse_mismatch
from optimizer.configuration.serving_config import (
    ArtifactSpec,
    ModelServing,
    ServerOptions,
    ServingConfig,
)
from optimizer.errors import LoadTestFailure, ModelLoadFailure, ServerFailure, TrialFailure
from optimizer.machine.gpus import memory_in_use_mib
from optimizer.machine.slots import Slot
from optimizer.measurement.model_memory import ModelMemory
from optimizer.triton.client_errors import UnexplainedLoadFailure
from optimizer.triton.control import RequestedModel, ServerControl
from optimizer.triton.deployed_config import CONFIG_FILE
from optimizer.triton.launcher import RunningServer, ServerLauncher, last_errors
from optimizer.triton.repository import ModelWriter, config_of
from optimizer.workload.streams import OutputTensor, Payloads

_LOAD_SECONDS = 120.0
_COLD_BYTES_PER_SECOND = 10e6
"""Of a network disk whose blocks are fetched from a snapshot when they are first read."""

_UNLOAD_SECONDS = 10.0
_DYING_SECONDS = 0.5
"""A killed server drops its connections before its exit can be observed."""

_MEMORY_RELEASE_SECONDS = 2.0
_MEMORY_GROWTH_BYTES = 512 * 2**20
"""Growth since its start from which a server is taken to leak memory."""


@dataclass(frozen=True)
class ModelFiles:
    """What a model needs besides its configuration.

    Attributes:
        artifact: directory of its files.
        engine: TensorRT and GPU that an engine was built with and for; None for other files.
        version: of the model that requests name; empty for the newest that is served.
    """

    artifact: Path
    payloads: Payloads
    outputs: tuple[OutputTensor, ...]
    engine: EngineFacts | None = None
    version: str = ""

    @property
    def size_bytes(self) -> int:
        """Size of the artefact's files."""
        return sum(file.stat().st_size for file in self.artifact.rglob("*") if file.is_file())

    @property
    def load_seconds(self) -> float:
        """Time that the model may take to load, its files read from a cold disk."""
        return _LOAD_SECONDS + self.size_bytes / _COLD_BYTES_PER_SECOND


def files_of(
    config: ServingConfig, built: Mapping[ArtifactSpec, ModelFiles]
) -> dict[str, ModelFiles]:
    """Return the files of each model of a configuration, by its name."""
    return {model.name: built[model.artifact] for model in config.models}


def config_texts(
    config: ServingConfig, files: Mapping[str, ModelFiles], templates: Path
) -> dict[str, str]:
    """Return the config.pbtxt of each model by file name; with several, the name has the model's.

    Args:
        files: by model.
        templates: folder with one folder per backend.
    """
    several = len(config.models) > 1
    texts = {}
    for model in config.models:
        own, name = files[model.name], f"{model.name}.{CONFIG_FILE}" if several else CONFIG_FILE
        texts[name], _ = config_of(model, own.artifact, own.payloads, own.outputs, templates)
    return texts


@dataclass(frozen=True)
class ServedConfiguration:
    """A server that serves one configuration now.

    Attributes:
        processes: ids of the configuration's model processes.
        start_seconds: time that the server took to start; None for one that ran already.
        load_seconds: time that the server took to load the models, until they were ready.
    """

    server: RunningServer
    control: ServerControl
    processes: frozenset[int] = frozenset()
    start_seconds: float | None = None
    load_seconds: float = 0.0


class ServingSession:
    """Serves configurations one after the other; a context manager that stops the server.

    The server is restarted when its options change, after a failure, when it has a response cache,
    or when it does not release the memory of unloaded models; otherwise models are only unloaded
    and loaded.

    Args:
        gpus: the server's GPUs, if known: engines of other GPUs are refused.
    """

    def __init__(
        self,
        launcher: ServerLauncher,
        repository: ModelWriter,
        slot: Slot,
        gpus: tuple[Gpu, ...] = (),
    ) -> None:
        self._launcher = launcher
        self._repository = repository
        self._slot = slot
        self._gpus = gpus
        self._running: ServedConfiguration | None = None
        self._options: ServerOptions | None = None
        self._memory_when_new: int | None = None
        self._empty = ModelMemory()

    def __enter__(self) -> ServingSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def serve(self, config: ServingConfig, files: Mapping[str, ModelFiles]) -> ServedConfiguration:
        """Load the models of `config`, each after those that it calls.

        Args:
            files: of each model, by name.

        Raises:
            TrialFailure: the server is stopped, since it may keep memory after a failed load.
        """
        try:
            served = self._server(config.server)
            # Processes of unloaded models may still run.
            before = frozenset(served.server.model_processes() or ())
            earlier_seconds = served.control.loading_seconds
            models = {model.name: model for model in config.models}
            for name, steps in (config.graph or NO_GRAPH).loads(tuple(models)):
                written = {
                    each: self._written(models[each], files[each], served.server)
                    for each in (*steps, name)
                }
                requested, paths = written.pop(name)
                served.control.load(
                    name,
                    requested,
                    sum(files[each].load_seconds for each in (*steps, name)),
                    paths=paths,
                    version=files[name].version,
                    steps=written,
                )
            loaded = frozenset(served.server.model_processes() or ()) - before
            load_seconds = served.control.loading_seconds - earlier_seconds
            return replace(served, processes=loaded, load_seconds=load_seconds)
        except TrialFailure as error:
            raise self.failure(error) from error

    def _written(
        self, model: ModelServing, files: ModelFiles, server: RunningServer
    ) -> RequestedModel:
        """Write a model to the repository; return the configuration that is written."""
        if files.engine is not None:
            version = server.control.version()
            refuse_mismatch(files.engine, version, self._gpus, server.tensorrt)
        config = self._repository.write(model, files.artifact, files.payloads, files.outputs)
        return config, [path for path, _ in model.parameters]

    def retire(self, *, wait: bool = False) -> None:
        """Unload the models; with `wait`, return when they are gone."""
        if self._running is None:
            return
        try:
            self._running.control.unload_all(_UNLOAD_SECONDS if wait else 0.0)
        except ServerFailure:
            self.stop()

    def memory_of_models(self) -> ModelMemory:
        """Return the memory of the loaded models."""
        return self._memory() - self._empty

    def _memory(self) -> ModelMemory:
        """Return the memory in use by the server and its models, and by others on its GPUs."""
        in_use = self._running.server.memory_with_models_bytes() if self._running else None
        of_server = in_use / 2**20 if in_use is not None else None
        if self._slot.gpu_uuids:
            return ModelMemory(memory_in_use_mib(self._slot.gpu_uuids), of_server)
        return ModelMemory(of_server)

    def failure(self, error: TrialFailure) -> TrialFailure:
        """Stop the server after `error` and return the failure that explains it best.

        When the server has died, its exit is the reason and not the broken connection.
        """
        reason = self._exit_reason(error)
        log = self._running.server.log_since_start() if self._running is not None else ""
        self.stop()
        if reason is not None and not isinstance(error, ServerFailure | ModelLoadFailure):
            return ServerFailure(reason)
        if reason is not None:
            return ServerFailure(f"{error}; {reason}")
        if isinstance(error, UnexplainedLoadFailure):
            text = f"{error}; {last_errors(log)}"
            return ModelLoadFailure(text, transient=error.transient)
        return error

    def _exit_reason(self, error: TrialFailure) -> str | None:
        """Return why the server exited, None where it still runs."""
        grace = _DYING_SECONDS if isinstance(error, ServerFailure | LoadTestFailure) else 0.0
        deadline = time.monotonic() + grace
        while self._running is not None:
            reason = self._running.server.exit_reason()
            if reason is not None or time.monotonic() >= deadline:
                return reason
            time.sleep(0.01)
        return None

    def stop(self) -> None:
        """Stop the server."""
        running, self._running = self._running, None
        if running is not None:
            running.server.stop()

    def _server(self, options: ServerOptions) -> ServedConfiguration:
        if self._running is not None and self._must_restart(self._running, options):
            self.stop()
        if self._running is None:
            started = time.monotonic()
            server = self._launcher.start(options, self._slot)
            seconds = time.monotonic() - started if server.pid is not None else None
            self._running = ServedConfiguration(server, server.control, start_seconds=seconds)
            self._options = options
            self._memory_when_new = server.memory_bytes()
            self._empty = self._memory()
        return self._running

    def _must_restart(self, running: ServedConfiguration, options: ServerOptions) -> bool:
        if options != self._options or running.server.exit_reason() is not None:
            return True
        # Entries outlive their model: another of the same name would be answered from them.
        if options.cache_bytes is not None:
            return True
        now, new = running.server.memory_bytes(), self._memory_when_new
        if now is not None and new is not None and now - new > _MEMORY_GROWTH_BYTES:
            return True
        return bool(self._slot.gpu_uuids) and self._gpu_memory_is_kept(running)

    def _gpu_memory_is_kept(self, running: ServedConfiguration) -> bool:
        """Return whether a GPU holds more than with a new server, although no model is loaded."""
        empty_mib, end = self._empty.device_mib, time.monotonic() + _MEMORY_RELEASE_SECONDS
        while empty_mib is not None and not running.control.loaded:
            in_use_mib = memory_in_use_mib(self._slot.gpu_uuids)
            if in_use_mib is None or (in_use_mib - empty_mib) * 2**20 <= _MEMORY_GROWTH_BYTES:
                return False
            if time.monotonic() > end:
                return True
            time.sleep(0.05)
        return False
