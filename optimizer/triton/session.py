"""One server kept running over many configurations, restarted only when it must be."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from optimizer.configuration.hardware import Gpu
from optimizer.configuration.releases import EngineFacts, refuse_mismatch
from optimizer.configuration.serving_config import ArtifactSpec, ServerOptions, ServingConfig
from optimizer.errors import LoadTestFailure, ModelLoadFailure, ServerFailure, TrialFailure
from optimizer.machine.gpus import memory_in_use_mib
from optimizer.machine.slots import Slot
from optimizer.triton.control import ServerControl
from optimizer.triton.launcher import RunningServer, ServerLauncher, last_errors
from optimizer.triton.model_config import model_config, to_text
from optimizer.triton.repository import WritesModels
from optimizer.workload.streams import OutputTensor, Payloads

_LOAD_SECONDS = 120.0
_UNLOAD_SECONDS = 10.0
_DYING_SECONDS = 0.5
"""A server that is killed drops its connections before its end can be seen."""

_GIVING_BACK_SECONDS = 2.0
_MEMORY_GROWTH_BYTES = 512 * 2**20
"""A server that holds this much more than when it was new does not give memory back."""


@dataclass(frozen=True)
class ModelFiles:
    """What a model needs beside its configuration: its files, its inputs, its output.

    Attributes:
        engine: what a TensorRT engine was built with and for; None for other files.
    """

    artifact: Path
    payloads: Payloads
    output: OutputTensor
    engine: EngineFacts | None = None


def files_of(
    config: ServingConfig, built: Mapping[ArtifactSpec, ModelFiles]
) -> dict[str, ModelFiles]:
    """What serving a configuration needs, by model, out of everything that was built."""
    return {model.name: built[model.artifact] for model in config.models}


def config_texts(
    config: ServingConfig, files: Mapping[str, ModelFiles], templates: Path
) -> dict[str, str]:
    """The config.pbtxt of each model by a file name, of which several models share no two.

    Args:
        files: by model.
        templates: folder with one folder per backend.
    """
    several = len(config.models) > 1
    texts = {}
    for model in config.models:
        own, template = files[model.name], templates / model.artifact.backend / "config.pbtxt"
        message = model_config(model, own.payloads, own.output, template)
        texts[f"{model.name}.config.pbtxt" if several else "config.pbtxt"] = to_text(message)
    return texts


@dataclass(frozen=True)
class ServedConfiguration:
    """A server that serves one configuration now.

    Attributes:
        processes: ids of those that the configuration's models run in, beside the server's own.
    """

    server: RunningServer
    control: ServerControl
    processes: frozenset[int] = frozenset()


class ServingSession:
    """Serves configurations one after the other; a context manager that stops the server.

    The server is restarted when its options change, after a failure, or when it keeps memory of
    models that are gone; otherwise models are unloaded and loaded.

    Args:
        gpus: that the server may use, as far as they are known: no other's engines are loaded.
    """

    def __init__(
        self,
        launcher: ServerLauncher,
        repository: WritesModels,
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
        self._empty_mib: float | None = None

    def __enter__(self) -> ServingSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def serve(self, config: ServingConfig, files: Mapping[str, ModelFiles]) -> ServedConfiguration:
        """Have exactly the models of `config` served, each as asked.

        Args:
            files: what each model needs beside its configuration, by name.

        Raises:
            TrialFailure: the server is stopped then, since after a failed load it may keep memory.
        """
        try:
            served = self._server(config.server)
            # The processes of models that were served before end when they like.
            before = frozenset(served.server.model_processes() or ())
            for model in config.models:
                needed = files[model.name]
                if needed.engine is not None:
                    refuse_mismatch(needed.engine, served.control.version(), self._gpus)
                asked = self._repository.write(
                    model, needed.artifact, needed.payloads, needed.output
                )
                served.control.load(model.name, asked, _LOAD_SECONDS)
            loaded = frozenset(served.server.model_processes() or ()) - before
            return replace(served, processes=loaded)
        except TrialFailure as error:
            raise self.failure(error) from error

    def retire(self, *, wait: bool = False) -> None:
        """Unload what is served; with `wait` until it is gone, else the next `serve` waits."""
        if self._running is None:
            return
        try:
            for model in self._running.control.loaded:
                self._running.control.unload(model, _UNLOAD_SECONDS if wait else 0.0)
        except ServerFailure:
            self.stop()

    def memory_of_models_mib(self) -> float | None:
        """What the loaded models take, on the GPU that has most of it or else of the machine."""
        now = self._memory_mib()
        return now - self._empty_mib if now is not None and self._empty_mib is not None else None

    def _memory_mib(self) -> float | None:
        if self._slot.gpu_uuids:
            return memory_in_use_mib(self._slot.gpu_uuids)
        in_use = self._running.server.memory_with_models_bytes() if self._running else None
        return in_use / 2**20 if in_use is not None else None

    def failure(self, error: TrialFailure) -> TrialFailure:
        """Stop the server after `error` and return the failure that explains it best.

        When the server has died, its end is the reason and not the broken connection.
        """
        reason = self._end_behind(error)
        log = self._running.server.log_since_start() if self._running is not None else ""
        self.stop()
        if reason is not None and not isinstance(error, ServerFailure | ModelLoadFailure):
            return ServerFailure(reason)
        if reason is not None:
            return ServerFailure(f"{error}; {reason}")
        if isinstance(error, ModelLoadFailure) and _reason_is_in_the_log(error):
            text = f"{error}; {last_errors(log)}"
            return ModelLoadFailure(text, transient=error.transient)
        return error

    def _end_behind(self, error: TrialFailure) -> str | None:
        """Why the server ended, None where it still runs."""
        patience = _DYING_SECONDS if isinstance(error, ServerFailure | LoadTestFailure) else 0.0
        until = time.monotonic() + patience
        while self._running is not None:
            reason = self._running.server.exit_reason()
            if reason is not None or time.monotonic() >= until:
                return reason
            time.sleep(0.01)
        return None

    def stop(self) -> None:
        """Stop the server; nothing of it is left."""
        running, self._running = self._running, None
        if running is not None:
            running.server.stop()

    def _server(self, options: ServerOptions) -> ServedConfiguration:
        if self._running is not None and self._must_restart(self._running, options):
            self.stop()
        if self._running is None:
            server = self._launcher.start(options, self._slot)
            self._running = ServedConfiguration(server, server.control)
            self._options = options
            self._memory_when_new = server.memory_bytes()
            self._empty_mib = self._memory_mib()
        return self._running

    def _must_restart(self, running: ServedConfiguration, options: ServerOptions) -> bool:
        if options != self._options or running.server.exit_reason() is not None:
            return True
        now, new = running.server.memory_bytes(), self._memory_when_new
        if now is not None and new is not None and now - new > _MEMORY_GROWTH_BYTES:
            return True
        return bool(self._slot.gpu_uuids) and self._gpu_memory_is_kept(running)

    def _gpu_memory_is_kept(self, running: ServedConfiguration) -> bool:
        """Whether a GPU is not as empty as with a new server, though nothing is loaded."""
        end = time.monotonic() + _GIVING_BACK_SECONDS
        while (kept := self.memory_of_models_mib()) is not None and not running.control.loaded:
            if kept * 2**20 <= _MEMORY_GROWTH_BYTES:
                return False
            if time.monotonic() > end:
                return True
            time.sleep(0.05)
        return False


def _reason_is_in_the_log(error: ModelLoadFailure) -> bool:
    """Triton does not reply why a model never came up, nor what is wrong with a config.pbtxt."""
    return error.transient or "failed to poll" in str(error)
