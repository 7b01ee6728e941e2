"""Docker: its engine, whether that hands out GPUs, and the images of servers and of TensorRT."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from optimizer.commands.doctor.checks import Unseen
from optimizer.commands.doctor.examination import CheckResult
from optimizer.configuration.releases import ImageContent, content_of, tensorrt_image, triton_image
from optimizer.machine.docker_engine import ContainerEngine
from optimizer.machine.docker_errors import HOW_TO_HAND_OUT_GPUS

_ENGINE, _RUNTIME = "Docker engine", "NVIDIA runtime"
_SERVER, _TENSORRT = "tritonserver", "tensorrt"
_CLIENTS = "-sdk"
"""End of the tags of those of NVIDIA's images that hold clients, and no server."""

_REGISTRY = "nvcr.io/nvidia/"
_HOOK = "nvidia-container-runtime-hook"


@dataclass(frozen=True)
class HeldImage:
    """An image that the engine has."""

    name: str
    content: ImageContent


@dataclass(frozen=True)
class Docker:
    """An engine that answers.

    Attributes:
        hands_out_gpus: whether it knows NVIDIA's container runtime.
        toolkit: whether NVIDIA's container toolkit is installed on this machine.
        servers: images that hold a tritonserver, by their names.
        tensorrt: images that hold TensorRT and no server, by their names.
    """

    version: str
    hands_out_gpus: bool
    toolkit: bool
    servers: tuple[HeldImage, ...]
    tensorrt: tuple[HeldImage, ...]

    def has(self, name: str) -> bool:
        """Whether it has an image, by its full name."""
        return any(image.name == name for image in (*self.servers, *self.tensorrt))


def docker() -> Docker:
    """What the engine tells. Raises RequirementError or ContainerFailure."""
    engine = ContainerEngine.connect()
    content = engine.content()
    return Docker(
        version=content.version,
        hands_out_gpus="nvidia" in content.runtimes,
        toolkit=shutil.which(_HOOK) is not None,
        servers=_held(engine, content.images, _SERVER),
        tensorrt=_held(engine, content.images, _TENSORRT),
    )


def findings(seen: Docker | Unseen, *, with_gpus: bool) -> tuple[CheckResult, ...]:
    """What was found of the engine and its images.

    Args:
        with_gpus: whether the machine has a GPU that an engine could hand out.
    """
    if isinstance(seen, Unseen):
        return (seen.finding(_ENGINE), *_wanted_images(None, with_gpus=with_gpus))
    return (
        CheckResult(_ENGINE, "ok", seen.version),
        *([_runtime(seen)] if with_gpus else []),
        *(CheckResult(_short(image.name), "ok", _server(image)) for image in seen.servers),
        *(CheckResult(_short(image.name), "ok", _tensorrt(image)) for image in seen.tensorrt),
        *_wanted_images(seen, with_gpus=with_gpus),
    )


def _held(engine: ContainerEngine, names: tuple[str, ...], kind: str) -> tuple[HeldImage, ...]:
    return tuple(
        HeldImage(name, content_of(name, engine.image(name).environment))
        for name in names
        if name.rpartition("/")[2].startswith(kind) and not name.endswith(_CLIENTS)
    )


def _runtime(seen: Docker) -> CheckResult:
    if seen.hands_out_gpus:
        return CheckResult(_RUNTIME, "ok", "the engine knows it")
    if seen.toolkit:
        found = "installed, but the engine does not list it"
        remedy = "nvidia-ctk runtime configure --runtime=docker && systemctl restart docker"
        return CheckResult(_RUNTIME, "unknown", found, f"{remedy} (as root)")
    return CheckResult(_RUNTIME, "missing", "the engine does not list it", HOW_TO_HAND_OUT_GPUS)


def _wanted_images(seen: Docker | None, *, with_gpus: bool) -> list[CheckResult]:
    """The images of the default release, where they are not there."""
    wanted = [(triton_image(), "launcher docker")]
    if with_gpus:
        wanted.append((tensorrt_image(), "engines.build_in: container"))
    return [
        CheckResult(
            _short(name),
            "missing" if seen is not None else "unknown",
            f"{'not here' if seen is not None else 'no engine to ask'}; {needed_by} needs it",
            f"docker pull {name}",
        )
        for name, needed_by in wanted
        if seen is None or not seen.has(name)
    ]


def _short(image: str) -> str:
    """An image's name, where it is NVIDIA's without its registry."""
    return image.removeprefix(_REGISTRY)


def _server(image: HeldImage) -> str:
    return f"Triton {image.content.triton or 'of unknown version'}, {_tensorrt(image)}"


def _tensorrt(image: HeldImage) -> str:
    return f"TensorRT {image.content.tensorrt or 'of unknown version'}"
