"""Docker: the engine, its access to GPUs, and the images of servers and of TensorRT."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from optimizer.commands.doctor.checks import CheckResult, NotChecked
from optimizer.configuration.releases import ImageContent, content_of, tensorrt_image, triton_image
from optimizer.machine.docker_engine import ContainerEngine
from optimizer.machine.docker_errors import HOW_TO_HAND_OUT_GPUS

_ENGINE, _RUNTIME = "Docker engine", "NVIDIA runtime"
_SERVER, _TENSORRT = "tritonserver", "tensorrt"
_CLIENTS = "-sdk"
"""End of the tags of NVIDIA's images that have clients and no server."""

_REGISTRY = "nvcr.io/nvidia/"
_HOOK = "nvidia-container-runtime-hook"


@dataclass(frozen=True)
class LocalImage:
    """A local image."""

    name: str
    content: ImageContent


@dataclass(frozen=True)
class Docker:
    """A Docker engine that answers.

    Attributes:
        hands_out_gpus: whether it has NVIDIA's container runtime.
        toolkit: whether NVIDIA's container toolkit is installed on this machine.
        servers: images of tritonserver, by their names.
        tensorrt: images of TensorRT without a server, by their names.
    """

    version: str
    hands_out_gpus: bool
    toolkit: bool
    servers: tuple[LocalImage, ...]
    tensorrt: tuple[LocalImage, ...]

    def has(self, name: str) -> bool:
        """Return whether an image is local, by its full name."""
        return any(image.name == name for image in (*self.servers, *self.tensorrt))


def docker() -> Docker:
    """Ask the engine. Raises RequirementError or ContainerFailure."""
    connection = ContainerEngine.connect()
    content = connection.content()
    return Docker(
        version=content.version,
        hands_out_gpus="nvidia" in content.runtimes,
        toolkit=shutil.which(_HOOK) is not None,
        servers=_local_images(connection, content.images, _SERVER),
        tensorrt=_local_images(connection, content.images, _TENSORRT),
    )


def results(engine: Docker | NotChecked, *, with_gpus: bool) -> tuple[CheckResult, ...]:
    """Return the results of the engine and its images.

    Args:
        engine: the engine, or why there is none.
        with_gpus: whether the machine has a GPU that containers could use.
    """
    if isinstance(engine, NotChecked):
        return (engine.result(_ENGINE), *_wanted_images(None, with_gpus=with_gpus))
    return (
        CheckResult(_ENGINE, "ok", engine.version),
        *([_runtime(engine)] if with_gpus else []),
        *(CheckResult(_short(image.name), "ok", _server(image)) for image in engine.servers),
        *(CheckResult(_short(image.name), "ok", _tensorrt(image)) for image in engine.tensorrt),
        *_wanted_images(engine, with_gpus=with_gpus),
    )


def _local_images(
    engine: ContainerEngine, names: tuple[str, ...], kind: str
) -> tuple[LocalImage, ...]:
    return tuple(
        LocalImage(name, content_of(name, engine.image(name).environment))
        for name in names
        if name.rpartition("/")[2].startswith(kind) and not name.endswith(_CLIENTS)
    )


def _runtime(engine: Docker) -> CheckResult:
    if engine.hands_out_gpus:
        return CheckResult(_RUNTIME, "ok", "the engine knows it")
    if engine.toolkit:
        detail = "installed, but the engine does not list it"
        remedy = "nvidia-ctk runtime configure --runtime=docker && systemctl restart docker"
        return CheckResult(_RUNTIME, "unknown", detail, f"{remedy} (as root)")
    return CheckResult(_RUNTIME, "missing", "the engine does not list it", HOW_TO_HAND_OUT_GPUS)


def _wanted_images(engine: Docker | None, *, with_gpus: bool) -> list[CheckResult]:
    """Return the images of the default release that are not local."""
    wanted = [(triton_image(), "launcher docker")]
    if with_gpus:
        wanted.append((tensorrt_image(), "engines.build_in: container"))
    return [
        CheckResult(
            _short(name),
            "missing" if engine is not None else "unknown",
            f"{'not here' if engine is not None else 'no engine to ask'}; {needed_by} needs it",
            f"docker pull {name}",
        )
        for name, needed_by in wanted
        if engine is None or not engine.has(name)
    ]


def _short(image: str) -> str:
    """Return the name of an image without NVIDIA's registry."""
    return image.removeprefix(_REGISTRY)


def _server(image: LocalImage) -> str:
    return f"Triton {image.content.triton or 'of unknown version'}, {_tensorrt(image)}"


def _tensorrt(image: LocalImage) -> str:
    return f"TensorRT {image.content.tensorrt or 'of unknown version'}"
