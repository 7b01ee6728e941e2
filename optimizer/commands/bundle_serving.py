"""Serve a bundle in a clean server, to record its examples or to verify it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from optimizer.commands.code_consent import CodeConsent
from optimizer.commands.hosts import Needs, launch_with, own_backends, require_server
from optimizer.configuration.hardware import Gpu
from optimizer.configuration.hosting import EmbeddedHost, Host
from optimizer.configuration.serving_config import ServingConfig
from optimizer.errors import RequirementError, TrialFailure, UsageError
from optimizer.export.bundle.manifest import Manifest
from optimizer.export.bundle.serving import BundleRepository, files_in
from optimizer.files.owned_names import temporary_folder
from optimizer.machine.gpus import present_gpus
from optimizer.machine.slots import Slot, local_slot
from optimizer.space_file.reader import read_host
from optimizer.study.directory import StudyDirectory
from optimizer.triton.launcher import PickPorts, free_ports
from optimizer.triton.session import ServedConfiguration, ServingSession
from optimizer.workload.streams import Tensors, Workload

_ANSWER_SECONDS = 120.0

ServerSettings = Mapping[str, object]
"""Keys of a space file's section `server`."""


@dataclass(frozen=True)
class BundleHost:
    """The host, the cores and the GPUs that serve a bundle.

    Attributes:
        gpus: by the configuration's logical indices.
    """

    host: Host
    slot: Slot
    gpus: tuple[Gpu, ...]


def bundle_host(settings: ServerSettings, config: ServingConfig) -> BundleHost:
    """Check that this machine can serve a configuration; return the host. Nothing is left running.

    Args:
        settings: a launcher and its settings.
        config: the configuration.

    Raises:
        UsageError: for settings that do not go together.
        RequirementError: the machine, the image or the server lacks something.
    """
    if "launcher" not in settings:
        raise UsageError(f"{', '.join(settings)}: goes with --launcher docker or remote")
    host = read_host(settings, Path.cwd())
    gpus = _gpus(config)
    slot = local_slot(tuple(gpu.uuid for gpu in gpus))
    hosted = [m.artifact.runtime for m in config.models if m.artifact.backend == "python"]
    fields = tuple(path for model in config.models for path, _ in model.parameters)
    backends = own_backends(model.artifact for model in config.models)
    names = tuple(model.name for model in config.models)
    needs = Needs(names, tuple(hosted), backends, fields)
    require_server(host, needs, slot)
    missing = [name for name in needs.packages if importlib.util.find_spec(name) is None]
    if isinstance(host, EmbeddedHost) and missing:
        raise RequirementError(
            f"models in Triton's Python backend need {', '.join(missing)}",
            "pip install -r requirements.txt of the bundle",
        )
    return BundleHost(host, slot, gpus)


def measured_on(manifest: Manifest) -> ServerSettings:
    """Return the server of a bundle's measurements. Raises UsageError for a remote server."""
    versions = manifest.versions
    if versions.server == "remote":
        raise UsageError(
            "the bundle was measured on a remote server, whose address it does not have: give "
            "--launcher remote with --grpc, --http, --metrics and --repository, or another launcher"
        )
    image = {"image": versions.image} if versions.image is not None else {}
    return {"launcher": versions.server, **image}


def _gpus(config: ServingConfig) -> tuple[Gpu, ...]:
    """Return the first GPUs of this machine, as many as the configuration uses."""
    used = [gpu for m in config.models for group in m.groups for gpu in group.logical_gpus]
    needed = max(used, default=-1) + 1
    present = present_gpus() if needed else ()
    if len(present) < needed:
        raise RequirementError(
            f"the configuration needs {needed} GPU{'s' if needed > 1 else ''}, and the NVIDIA "
            f"driver of this machine lists {len(present)}"
        )
    return present[:needed]


@dataclass(frozen=True)
class ServedBundle:
    """A bundle that is being served, and the session that serves it."""

    session: ServingSession
    served: ServedConfiguration

    def answers(self, model: str, requests: Sequence[Tensors], outputs: Sequence[str]) -> Tensors:
        """Return the outputs of a model. Raises TrialFailure with the most likely cause."""
        control = self.served.control
        batched = control.config(model).max_batch_size > 0
        try:
            return control.infer(model, requests, outputs, _ANSWER_SECONDS, batched=batched)
        except TrialFailure as error:
            raise self.session.failure(error) from error


@contextmanager
def served_bundle(
    root: Path,
    config: ServingConfig,
    workload: Workload,
    where: BundleHost,
    consent: CodeConsent,
    pick_ports: PickPorts = free_ports,
    folders: Mapping[str, Path] | None = None,
) -> Iterator[ServedBundle]:
    """Serve the files of a bundle as they are; nothing is left running.

    Args:
        root: folder of the bundle.
        folders: of the models in `root`, by name; None where they have the models' names.
        config: the configuration.
        workload: the streams, whose payloads the models are loaded with.
        where: see `bundle_host`.
        consent: says what code may run.
        pick_ports: returns the ports of the server.

    Raises:
        TrialFailure: where it cannot be served.
        UsageError: where that would run code that is not allowed.
    """
    own = folders or {model.name: root / model.name for model in config.models}
    consent.check(own.values())
    streams = {stream.target: stream for stream in workload.streams}
    with temporary_folder() as temporary:
        # Only these two folders are visible in a container.
        directory = StudyDirectory(temporary)
        launcher, repository = launch_with(where.host, directory, root.resolve(), pick_ports)
        models = BundleRepository(own, repository)
        with ServingSession(launcher, models, where.slot, where.gpus) as session:
            files = {name: files_in(folder, streams.get(name)) for name, folder in own.items()}
            yield ServedBundle(session, session.serve(config, files))
