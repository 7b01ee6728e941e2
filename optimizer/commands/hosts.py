"""Which launcher and repository each kind of host has, and what must be there before they start."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.configuration.hosting import ContainerHost, EmbeddedHost, Host, RemoteHost
from optimizer.configuration.serving_config import ServerOptions
from optimizer.errors import RequirementError, ServerFailure, storage_errors
from optimizer.files.shipped import shipped
from optimizer.machine.docker_engine import ContainerEngine, ContainerTask
from optimizer.machine.slots import Slot
from optimizer.runtimes import RUNTIME_PACKAGE, Runtime
from optimizer.space_file.reader import Space
from optimizer.study.directory import StudyDirectory
from optimizer.triton.docker_launcher import DockerLauncher
from optimizer.triton.embedded import find_embedded_runtime
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
_FOUND_SECONDS = 5.0

_CLAIM = ".triton-cost-optimizer"
"""File in a shared repository that lists the models that are this program's to replace."""


@dataclass(frozen=True)
class Needs:
    """What is to be served: names of the models, and the runtimes that Python hosts for them."""

    models: tuple[str, ...]
    runtimes: tuple[Runtime, ...]

    @property
    def packages(self) -> list[str]:
        """Python packages of the server's interpreter."""
        own = {RUNTIME_PACKAGE[runtime] for runtime in self.runtimes}
        return sorted({"numpy", *own} if own else ())


def require_host(space: Space, slot: Slot) -> str:
    """See that the space's host can serve it; nothing is left running.

    Returns:
        What serves, as measurements depend on it.

    Raises:
        RequirementError: the machine, the image or the server lacks something.
    """
    _require_what_builds_engines(space)
    hosted = [spec.runtime for spec in space.search_space.artifacts if spec.backend == "python"]
    needs = Needs(tuple(model.name for model in space.models), tuple(hosted))
    return require_server(space.host, needs, slot)


def require_server(host: Host, needs: Needs, slot: Slot) -> str:
    """As `require_host`, for anything that is to be served."""
    return _kind(host).require(host, needs, slot)


def _require_what_builds_engines(space: Space) -> None:
    engines = space.engines
    if engines is None or not any(s.runtime == "tensorrt" for s in space.search_space.artifacts):
        return
    if engines.place != "local":
        ContainerEngine.connect().image(engines.image)
    elif importlib.util.find_spec("tensorrt") is None:
        raise RequirementError(
            "engines.build_in is local, and tensorrt is not installed here: "
            "pip install 'triton-cost-optimizer[tensorrt]', in the server's own version"
        )


def launch_with(
    host: Host, directory: StudyDirectory, cache: Path, pick_ports: PickPorts = free_ports
) -> tuple[ServerLauncher, ModelRepository]:
    """What starts servers for a study, and where their models are put.

    Args:
        cache: folder of the artefact cache.
        pick_ports: gives the ports of a server that is started.

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


def _repository(root: Path, place: PlaceFile) -> ModelRepository:
    return ModelRepository(root, shipped("model_repository_templates"), place)


# Embedded


def _require_embedded(_: EmbeddedHost, __: Needs, ___: Slot) -> str:
    find_embedded_runtime()
    return "embedded"


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
    if missing := _missing_in(engine, host.image, needs.packages, slot):
        raise RequirementError(
            f"the image {host.image} lacks {', '.join(missing)}: build one from it that has "
            "them, such as FROM that image, and RUN pip install what is missing"
        )
    return f"{host.image} ({image.id})"


def _missing_in(
    engine: ContainerEngine, image: str, packages: Iterable[str], slot: Slot
) -> list[str]:
    """What of a server and these Python packages an image does not have."""
    container = engine.start(
        ContainerTask(
            image, ("-c", _IMPORTS, *packages), entrypoint=("python3",), gpu_uuids=slot.gpu_uuids
        )
    )
    try:
        code = container.wait(_IMPORT_SECONDS)
        said = list(container.lines())
    finally:
        container.stop(0)
    if code != 0:
        last = said[-1] if said else f"exit code {code}"
        raise RequirementError(f"the image {image} cannot run python3: {last}")
    return [line.removeprefix(_MISSING) for line in said if line.startswith(_MISSING)]


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
        server = RemoteLauncher(host, _FOUND_SECONDS).start(ServerOptions(), slot)
        version = server.control.version()
        server.stop()
    except ServerFailure as error:
        raise RequirementError(str(error)) from error
    _claim(host.repository, needs.models)
    return f"{host.grpc}, Triton {version}"


def _claim(repository: Path, models: Sequence[str]) -> None:
    """Keep a model that somebody else has put there from being replaced."""
    if not repository.is_dir():
        raise RequirementError(f"server.repository: {repository} is no folder of this machine")
    claim = repository / _CLAIM
    ours = set(claim.read_text().split()) if claim.exists() else set()
    for model in models:
        if (repository / model).exists() and model not in ours:
            raise RequirementError(
                f"{repository / model} is there already and would be replaced: give the server a "
                "repository of its own, or the model another name"
            )
    with storage_errors(claim):
        claim.write_text("".join(f"{name}\n" for name in sorted(ours | set(models))))


def _remote(host: RemoteHost, _: StudyDirectory, __: Path, ___: PickPorts) -> ServerLauncher:
    return RemoteLauncher(host)


def _shared_repository(host: RemoteHost, _: StudyDirectory) -> ModelRepository:
    # Its server may not see where a link leads to.
    return _repository(host.repository, shutil.copyfile)


_KINDS: Mapping[type[Host], _Kind] = {
    EmbeddedHost: _Kind(_require_embedded, _embedded, _own_repository),
    ContainerHost: _Kind(_require_container, _docker, _own_repository),
    RemoteHost: _Kind(_require_remote, _remote, _shared_repository),
}
