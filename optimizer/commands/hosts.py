"""The launcher and the model repository of each kind of host, and the checks before they start."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.configuration.hosting import ContainerHost, EmbeddedHost, Host, RemoteHost
from optimizer.configuration.named_parameters import CONFIG_PREFIX, UNCHANGED, is_any_field
from optimizer.configuration.releases import content_of, refuse_newer_fields
from optimizer.configuration.runtimes import HOSTED_PACKAGE, Runtime
from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ArtifactSpec, ServerOptions
from optimizer.errors import RequirementError, ServerFailure, storage_errors
from optimizer.files.shipped import shipped
from optimizer.machine.docker_engine import ContainerEngine, ContainerTask
from optimizer.machine.slots import Slot
from optimizer.space_file.reader import Space
from optimizer.study.directory import StudyDirectory
from optimizer.triton.docker_launcher import DockerLauncher
from optimizer.triton.embedded import SERVER_VERSION, find_embedded_runtime
from optimizer.triton.embedded_launcher import EmbeddedLauncher
from optimizer.triton.launcher import PickPorts, ServerLauncher, free_ports
from optimizer.triton.remote_launcher import RemoteLauncher
from optimizer.triton.repository import ModelRepository, PlaceFile, link

_MISSING = "missing: "
_IMPORTS = f"""
import importlib, shutil, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception as error:
        print("{_MISSING}" + name)
if shutil.which("tritonserver") is None:
    print("{_MISSING}tritonserver")
"""
_IMPORT_SECONDS = 300.0
_CUDA_CHECKS: Mapping[Runtime, tuple[str, str]] = {
    "onnxruntime": (
        "import onnxruntime; 'CUDAExecutionProvider' in onnxruntime.get_available_providers() or "
        "sys.exit(f'{onnxruntime.__version__} is a build without its CUDA provider')",
        "pip install --no-deps onnxruntime-gpu, which replaces the files of onnxruntime",
    ),
    "pytorch": (
        "import torch; torch.cuda.is_available() or "
        "sys.exit(f'{torch.__version__} sees no CUDA device')",
        "install a PyTorch that is built for CUDA, in a version for the driver",
    ),
}
"""By runtime: code that says why it sees no GPU, and what to do then."""

_CONNECT_SECONDS = 5.0
EMBEDDED_BACKEND = "python"
"""The only backend of the embedded server."""

_CLAIM = ".triton-cost-optimizer"
"""File in a shared repository that lists the models that this program may replace."""


@dataclass(frozen=True)
class Needs:
    """What a server must have.

    Attributes:
        models: names of the models to serve.
        runtimes: that are hosted in Triton's Python backend.
        backends: of the server itself, and of models that are deployed already.
        fields: paths of fields of config.pbtxt that are set.
    """

    models: tuple[str, ...]
    runtimes: tuple[Runtime, ...]
    backends: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()

    @property
    def packages(self) -> list[str]:
        """Python packages that the server's interpreter needs."""
        packages = {HOSTED_PACKAGE[runtime] for runtime in self.runtimes}
        return sorted({"numpy", *packages} if packages else ())


def require_host(space: Space, slot: Slot) -> str:
    """Check that the space's host can serve it; nothing is left running.

    Returns:
        The server, as far as measurements depend on it.

    Raises:
        RequirementError: the machine, the image or the server lacks something.
    """
    artifacts = space.search_space.artifacts
    hosted = [spec.runtime for spec in artifacts if spec.backend == "python"]
    # Ensembles are part of the server itself.
    deployed = [each.backend for each in space.deployed.values() if not each.ensemble]
    backends = (*deployed, *own_backends(artifacts))
    names = tuple(model.name for model in space.models)
    needs = Needs(names, tuple(hosted), backends, tuple(_fields(space.search_space)))
    server = require_server(space.host, needs, slot)
    _require_engine_builder(space)
    return server


def own_backends(artifacts: Iterable[ArtifactSpec]) -> tuple[str, ...]:
    """Return the backends of a server that execute artefacts of this program."""
    specs = (spec for spec in artifacts if spec.backend not in ("python", "repository"))
    return tuple(dict.fromkeys(spec.backend for spec in specs))


def _fields(space: SearchSpace) -> Iterator[str]:
    """Yield the paths of fields of config.pbtxt to which some points give a value."""
    for parameter in space.parameters:
        if is_any_field(parameter.name) and {*parameter.values} - {UNCHANGED}:
            yield parameter.name.removeprefix(CONFIG_PREFIX)


def require_server(host: Host, needs: Needs, slot: Slot) -> str:
    """Check as `require_host` does that a host can serve some models."""
    return _kind(host).require(host, needs, slot)


def _require_engine_builder(space: Space) -> None:
    engines = space.engines
    if engines is None or not any(s.runtime == "tensorrt" for s in space.search_space.artifacts):
        return
    if engines.build_in != "local":
        ContainerEngine.connect().image(engines.image)
    elif importlib.util.find_spec("tensorrt") is None:
        raise RequirementError(
            "engines.build_in is local, and tensorrt is not installed here: "
            "pip install 'triton-cost-optimizer[tensorrt]', in the server's own version"
        )


def launch_with(
    host: Host, directory: StudyDirectory, cache: Path, pick_ports: PickPorts = free_ports
) -> tuple[ServerLauncher, ModelRepository]:
    """Return the launcher of a study's servers, and the repository of their models.

    Args:
        host: the space file's.
        directory: the study's.
        cache: folder of the artefact cache.
        pick_ports: returns the ports of a server that is started.

    Raises:
        RequirementError: see `require_host`.
    """
    kind = _kind(host)
    return kind.launcher(host, directory, cache, pick_ports), kind.repository(host, directory)


@dataclass(frozen=True)
class _Kind:
    require: Callable[[Any, Needs, Slot], str]
    launcher: Callable[[Any, StudyDirectory, Path, PickPorts], ServerLauncher]
    repository: Callable[[Any, StudyDirectory], ModelRepository]


def _kind(host: Host) -> _Kind:
    return _KINDS[type(host)]


def _own_repository(_: Host, directory: StudyDirectory) -> ModelRepository:
    return _repository(directory.repository, link)


def _repository(root: Path, place_file: PlaceFile) -> ModelRepository:
    return ModelRepository(root, shipped("model_repository_templates"), place_file)


# Embedded


def _require_embedded(_: EmbeddedHost, needs: Needs, slot: Slot) -> str:
    runtime = find_embedded_runtime()
    refuse_newer_fields(needs.fields, SERVER_VERSION)
    missing = sorted({*needs.backends} - {EMBEDDED_BACKEND})
    if missing:
        raise RequirementError(
            f"the embedded server has no backend {', '.join(map(repr, missing))}, only python: "
            "use a server that has it, by server.launcher docker or remote"
        )
    if slot.gpu_uuids:
        _require_cuda(needs.runtimes, runtime.environment_with(slot.gpu_uuids))
    return "embedded"


def _require_cuda(runtimes: Iterable[Runtime], environment: Mapping[str, str]) -> None:
    """Raise RequirementError where one of the runtimes that run on GPUs is a build for the CPU.

    Another process looks: this one would take memory of the GPU until it ends.
    """
    for runtime in sorted({*runtimes} & _CUDA_CHECKS.keys()):
        check, remedy = _CUDA_CHECKS[runtime]
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; {check}"],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=_IMPORT_SECONDS,
            check=False,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
            raise RequirementError(f"{runtime} cannot use the GPU: {last}", remedy)


def _embedded(
    _: EmbeddedHost, directory: StudyDirectory, __: Path, pick_ports: PickPorts
) -> ServerLauncher:
    runtime = find_embedded_runtime()
    backends = runtime.lay_out(directory.repository.parent / "backends")
    return EmbeddedLauncher(
        runtime, backends, directory.repository, directory.server_log, pick_ports
    )


# Docker


def _require_container(host: ContainerHost, needs: Needs, slot: Slot) -> str:
    engine = ContainerEngine.connect()
    image = engine.image(host.image)
    if engine.rootless:
        raise RequirementError(
            "server.launcher docker needs a Docker engine with root: in rootless mode the network "
            "of a container is never the machine's, so that its server cannot be reached",
            "use the engine of the system (DOCKER_HOST, docker context use), or start the server "
            "yourself and use server.launcher remote",
        )
    refuse_newer_fields(needs.fields, content_of(host.image, image.environment).triton)
    if missing := _missing_in(engine, host.image, needs.packages, slot):
        raise RequirementError(
            f"the image {host.image} lacks {', '.join(missing)}: build one from it that has "
            "them, such as FROM that image, and RUN pip install what is missing"
        )
    return f"{host.image} ({image.id})"


def _missing_in(
    engine: ContainerEngine, image: str, packages: Iterable[str], slot: Slot
) -> list[str]:
    """Return which of a server and these Python packages an image lacks."""
    container = engine.start(
        ContainerTask(
            image, ("-c", _IMPORTS, *packages), entrypoint=("python3",), gpu_uuids=slot.gpu_uuids
        )
    )
    try:
        code = container.wait(_IMPORT_SECONDS)
        lines = list(container.lines())
    finally:
        container.stop(0)
    if code != 0:
        last = lines[-1] if lines else f"exit code {code}"
        raise RequirementError(f"the image {image} cannot run python3: {last}")
    return [line.removeprefix(_MISSING) for line in lines if line.startswith(_MISSING)]


def _docker(
    host: ContainerHost, directory: StudyDirectory, cache: Path, pick_ports: PickPorts
) -> ServerLauncher:
    with storage_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
    engine, log = ContainerEngine.connect(), directory.server_log
    return DockerLauncher(engine, host, directory.repository, [cache], log, pick_ports)


# Remote


def _require_remote(host: RemoteHost, needs: Needs, slot: Slot) -> str:
    try:
        server = RemoteLauncher(host, _CONNECT_SECONDS).start(ServerOptions(), slot)
        version = server.control.version()
        server.stop()
    except ServerFailure as error:
        raise RequirementError(str(error)) from error
    refuse_newer_fields(needs.fields, version)
    _claim(host.repository, needs.models)
    return f"{host.grpc}, Triton {version}"


def _claim(repository: Path, models: Sequence[str]) -> None:
    """Refuse to replace models of others; claim the names of these."""
    if not repository.is_dir():
        raise RequirementError(f"server.repository: {repository} is no folder on this machine")
    claim = repository / _CLAIM
    claimed = set(claim.read_text().split()) if claim.exists() else set()
    for model in models:
        if (repository / model).exists() and model not in claimed:
            raise RequirementError(
                f"{repository / model} exists already and would be replaced: give the server a "
                "repository of its own, or the model another name"
            )
    with storage_errors(claim):
        claim.write_text("".join(f"{name}\n" for name in sorted(claimed | set(models))))


def _remote(host: RemoteHost, _: StudyDirectory, __: Path, ___: PickPorts) -> ServerLauncher:
    return RemoteLauncher(host)


def _shared_repository(host: RemoteHost, _: StudyDirectory) -> ModelRepository:
    # The target of a link may not be visible to its server.
    return _repository(host.repository, shutil.copyfile)


_KINDS: Mapping[type[Host], _Kind] = {
    EmbeddedHost: _Kind(_require_embedded, _embedded, _own_repository),
    ContainerHost: _Kind(_require_container, _docker, _own_repository),
    RemoteHost: _Kind(_require_remote, _remote, _shared_repository),
}
