"""Which servers can run, by what was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optimizer.commands.doctor.checks import Unseen
from optimizer.commands.doctor.docker import Docker
from optimizer.commands.doctor.examination import Ability, State
from optimizer.commands.doctor.gpus import Graphics
from optimizer.commands.doctor.software import Packages, servers_with
from optimizer.commands.packages import EXPORT_PACKAGES, GRAPH_PACKAGES
from optimizer.configuration.hardware import counted_gpus
from optimizer.configuration.releases import tag_of, tensorrt_image
from optimizer.runtimes import RUNTIME_PACKAGE
from optimizer.triton.embedded import EmbeddedRuntime


@dataclass(frozen=True)
class MachineFindings:
    """What servers depend on."""

    packages: Packages | Unseen
    embedded: EmbeddedRuntime | Unseen
    graphics: Graphics | Unseen
    docker: Docker | Unseen


@dataclass(frozen=True)
class _Need:
    """Something that a server needs.

    Attributes:
        condition: that it is there, in words, for where this is not known.
    """

    name: str
    state: State
    condition: str


def abilities(seen: MachineFindings) -> tuple[Ability, ...]:
    """Every kind of server, and whether it can run."""
    return (_embedded(seen), _docker_on_cpu(seen), _docker_on_gpus(seen), _remote(seen))


def _embedded(seen: MachineFindings) -> Ability:
    server = _Need("the embedded server", _state(seen.embedded), "the embedded server starts")
    needs = [server, *_for_graphs(seen)]
    installed = _names(seen.packages)
    runtimes = [name for name, package in RUNTIME_PACKAGE.items() if package in installed]
    return _ability("embedded, CPU", needs, f"{', '.join(runtimes)}{_from_onnx_alone(seen)}")


def _docker_on_cpu(seen: MachineFindings) -> Ability:
    # Only a container of the image would tell, and none is started.
    has = "the image's Python has numpy, and onnxruntime, openvino or torch"
    hosted = _Need("Python packages in the image", "unknown", has)
    needs = [*_for_containers(seen), hosted]
    return _ability("docker, CPU", needs, f"{_servers(seen)}{_from_onnx_alone(seen)}")


def _docker_on_gpus(seen: MachineFindings) -> Ability:
    needs = [*_for_containers(seen), *_for_gpus(seen)]
    how = (
        f"TensorRT and ONNX Runtime on {_cards(seen)}, in {_servers(seen)}; "
        f"engines.build_in: {_build_places(seen)}{_from_onnx_alone(seen)}"
    )
    return _ability("docker, GPU", needs, how)


def _remote(seen: MachineFindings) -> Ability:
    running = _Need("a Triton that runs already", "unknown", "a Triton runs already")
    how = "the space file names its addresses and the folder of its repository"
    return _ability("remote", [*_for_graphs(seen), running], how)


def _ability(server: str, needs: Sequence[_Need], how: str) -> Ability:
    """It can where all needs are met; what is missing weighs more than what is not known."""
    missing = [need.name for need in needs if need.state == "missing"]
    unknown = [need.condition for need in needs if need.state == "unknown"]
    if missing:
        return Ability(server, "missing", f"needs {', '.join(missing)}")
    if unknown:
        return Ability(server, "unknown", f"if {' and '.join(unknown)}: {how}")
    return Ability(server, "ok", how)


def _for_graphs(seen: MachineFindings) -> list[_Need]:
    """What makes the files of every model, whatever serves them."""
    if isinstance(seen.packages, Unseen):
        there = f"{' and '.join(sorted(GRAPH_PACKAGES))} are installed"
        return [_Need("packages", seen.packages.state, there)]
    missing = sorted(GRAPH_PACKAGES - set(seen.packages))
    return [_Need(name, "missing", f"{name} is installed") for name in missing]


def _for_containers(seen: MachineFindings) -> list[_Need]:
    needs = [_Need("Docker", _state(seen.docker), "Docker answers")]
    if not isinstance(seen.docker, Unseen) and not seen.docker.servers:
        needs.append(_Need("an image of tritonserver", "missing", "there is one"))
    return [*needs, *_for_graphs(seen)]


def _for_gpus(seen: MachineFindings) -> list[_Need]:
    if isinstance(seen.graphics, Unseen):
        answers = "NVIDIA's driver answers"
        return [_Need("an NVIDIA GPU and its driver", seen.graphics.state, answers)]
    card: State = "ok" if seen.graphics.usable else "missing"
    driver: State = "ok" if seen.graphics.driver_is_recent else "unknown"
    needs = [
        _Need("a GPU that trials can use", card, "a GPU is free"),
        _Need("a newer driver", driver, "the driver is new enough"),
    ]
    if not isinstance(seen.docker, Unseen) and not seen.docker.hands_out_gpus:
        runtime: State = "unknown" if seen.docker.toolkit else "missing"
        needs.append(_Need("NVIDIA's container runtime", runtime, "Docker hands out GPUs"))
    return needs


def _from_onnx_alone(seen: MachineFindings) -> str:
    """What is left out where models of transformers cannot be exported."""
    lacking = sorted(EXPORT_PACKAGES - _names(seen.packages))
    return f"; ONNX files alone without {', '.join(lacking)}" if lacking else ""


def _servers(seen: MachineFindings) -> str:
    if isinstance(seen.docker, Unseen):
        return "an image of tritonserver"
    return ", ".join(image.name for image in seen.docker.servers)


def _cards(seen: MachineFindings) -> str:
    if isinstance(seen.graphics, Unseen):
        return "NVIDIA GPUs"
    return counted_gpus([card.gpu.name for card in seen.graphics.usable])


def _build_places(seen: MachineFindings) -> str:
    """Where engines can be built that the servers load, by the keys of the space file."""
    places = ["trtexec"]
    if isinstance(seen.docker, Unseen):
        return places[0]
    docker = seen.docker
    if any(docker.has(tensorrt_image(tag_of(image.name))) for image in docker.servers):
        places.append("container")
    own = None if isinstance(seen.packages, Unseen) else seen.packages.get("tensorrt")
    if own is not None and servers_with(own, docker):
        places.append("local")
    return ", ".join(places)


def _state(seen: object) -> State:
    return seen.state if isinstance(seen, Unseen) else "ok"


def _names(packages: Packages | Unseen) -> set[str]:
    return set() if isinstance(packages, Unseen) else set(packages)
