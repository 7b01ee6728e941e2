"""The servers that can run on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optimizer.commands.doctor.checks import Ability, NotChecked, State
from optimizer.commands.doctor.docker import Docker
from optimizer.commands.doctor.gpus import Graphics
from optimizer.commands.doctor.software import Packages, servers_with
from optimizer.commands.packages import EXPORT_PACKAGES, GRAPH_PACKAGES
from optimizer.configuration.hardware import counted_gpus
from optimizer.configuration.releases import tag_of, tensorrt_image
from optimizer.configuration.runtimes import RUNTIME_PACKAGE
from optimizer.triton.embedded import EmbeddedRuntime


@dataclass(frozen=True)
class MachineFindings:
    """The parts of the machine that servers depend on."""

    packages: Packages | NotChecked
    embedded: EmbeddedRuntime | NotChecked
    graphics: Graphics | NotChecked
    docker: Docker | NotChecked


@dataclass(frozen=True)
class _Need:
    """A requirement of a server.

    Attributes:
        condition: a sentence that says that it is met, for where that is unknown.
    """

    name: str
    state: State
    condition: str


def abilities(machine: MachineFindings) -> tuple[Ability, ...]:
    """Return whether each kind of server can run."""
    return (
        _embedded_on_cpu(machine),
        _embedded_on_gpus(machine),
        _docker_on_cpu(machine),
        _docker_on_gpus(machine),
        _remote(machine),
    )


def _embedded_on_cpu(machine: MachineFindings) -> Ability:
    needs = _for_embedded(machine)
    installed = _names(machine.packages)
    runtimes = [name for name, package in RUNTIME_PACKAGE.items() if package in installed]
    return _ability("embedded, CPU", needs, f"{', '.join(runtimes)}{_from_onnx_alone(machine)}")


def _embedded_on_gpus(machine: MachineFindings) -> Ability:
    # Only importing them could tell, which takes memory of a GPU.
    built = "PyTorch or ONNX Runtime is a build for CUDA"
    needs = [*_for_embedded(machine), _a_gpu(machine), _Need("builds for CUDA", "unknown", built)]
    how = f"PyTorch and ONNX Runtime on {_cards(machine)}{_from_onnx_alone(machine)}"
    return _ability("embedded, GPU", needs, how)


def _docker_on_cpu(machine: MachineFindings) -> Ability:
    # Only a container of the image could tell, and no container is started.
    *others, last = RUNTIME_PACKAGE.values()
    has = f"the image's Python has numpy, and {', '.join(others)} or {last}"
    hosted = _Need("Python packages in the image", "unknown", has)
    needs = [*_for_containers(machine), hosted]
    return _ability("docker, CPU", needs, f"{_servers(machine)}{_from_onnx_alone(machine)}")


def _docker_on_gpus(machine: MachineFindings) -> Ability:
    needs = [*_for_containers(machine), *_for_gpus_in_containers(machine)]
    how = (
        f"TensorRT and ONNX Runtime on {_cards(machine)}, in {_servers(machine)}; "
        f"engines.build_in: {_build_locations(machine)}{_from_onnx_alone(machine)}"
    )
    return _ability("docker, GPU", needs, how)


def _remote(machine: MachineFindings) -> Ability:
    running = _Need("a running Triton server", "unknown", "a Triton server is running")
    how = "the space file names its addresses and the folder of its repository"
    return _ability("remote", [*_for_graphs(machine), running], how)


def _ability(server: str, needs: Sequence[_Need], how: str) -> Ability:
    """Return an ability; one missing requirement decides, whatever else is unknown."""
    missing = [need.name for need in needs if need.state == "missing"]
    unknown = [need.condition for need in needs if need.state == "unknown"]
    if missing:
        return Ability(server, "missing", f"needs {', '.join(missing)}")
    if unknown:
        return Ability(server, "unknown", f"if {' and '.join(unknown)}: {how}")
    return Ability(server, "ok", how)


def _for_graphs(machine: MachineFindings) -> list[_Need]:
    """Return the missing packages that make the files of every model."""
    if isinstance(machine.packages, NotChecked):
        condition = f"{' and '.join(sorted(GRAPH_PACKAGES))} are installed"
        return [_Need("packages", machine.packages.state, condition)]
    missing = sorted(GRAPH_PACKAGES - set(machine.packages))
    return [_Need(name, "missing", f"{name} is installed") for name in missing]


def _for_embedded(machine: MachineFindings) -> list[_Need]:
    server = _Need("the embedded server", _state(machine.embedded), "the embedded server starts")
    return [server, *_for_graphs(machine)]


def _for_containers(machine: MachineFindings) -> list[_Need]:
    needs = [_Need("Docker", _state(machine.docker), "Docker answers")]
    if not isinstance(machine.docker, NotChecked) and not machine.docker.servers:
        needs.append(_Need("an image of tritonserver", "missing", "there is one"))
    return [*needs, *_for_graphs(machine)]


def _a_gpu(machine: MachineFindings) -> _Need:
    if isinstance(machine.graphics, NotChecked):
        answers = "NVIDIA's driver answers"
        return _Need("an NVIDIA GPU and its driver", machine.graphics.state, answers)
    card: State = "ok" if machine.graphics.usable else "missing"
    return _Need("a GPU that trials can use", card, "a GPU is free")


def _for_gpus_in_containers(machine: MachineFindings) -> list[_Need]:
    needs = [_a_gpu(machine)]
    if isinstance(machine.graphics, NotChecked):
        return needs
    driver: State = "ok" if machine.graphics.driver_is_recent else "unknown"
    needs.append(_Need("a newer driver", driver, "the driver is new enough"))
    if not isinstance(machine.docker, NotChecked) and not machine.docker.hands_out_gpus:
        runtime: State = "unknown" if machine.docker.toolkit else "missing"
        needs.append(_Need("NVIDIA's container runtime", runtime, "Docker hands out GPUs"))
    return needs


def _from_onnx_alone(machine: MachineFindings) -> str:
    """Return the restriction where models of transformers cannot be exported."""
    lacking = sorted(EXPORT_PACKAGES - _names(machine.packages))
    return f"; ONNX files alone without {', '.join(lacking)}" if lacking else ""


def _servers(machine: MachineFindings) -> str:
    if isinstance(machine.docker, NotChecked):
        return "an image of tritonserver"
    return ", ".join(image.name for image in machine.docker.servers)


def _cards(machine: MachineFindings) -> str:
    if isinstance(machine.graphics, NotChecked):
        return "NVIDIA GPUs"
    return counted_gpus([gpu.name for gpu in machine.graphics.usable_gpus])


def _build_locations(machine: MachineFindings) -> str:
    """Return where engines for these servers can be built, by the keys of the space file."""
    places = ["trtexec"]
    if isinstance(machine.docker, NotChecked):
        return places[0]
    docker = machine.docker
    if any(docker.has(tensorrt_image(tag_of(image.name))) for image in docker.servers):
        places.append("container")
    own = None if isinstance(machine.packages, NotChecked) else machine.packages.get("tensorrt")
    if own is not None and servers_with(own, docker):
        places.append("local")
    return ", ".join(places)


def _state(machine: object) -> State:
    return machine.state if isinstance(machine, NotChecked) else "ok"


def _names(packages: Packages | NotChecked) -> set[str]:
    return set() if isinstance(packages, NotChecked) else set(packages)
