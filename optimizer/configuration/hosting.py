"""Where the server runs and where engines are built. Pure values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from optimizer.configuration.hardware import Gpu


@dataclass(frozen=True)
class EmbeddedHost:
    """The tritonserver of the nvidia-pytriton package, which has the Python backend alone."""


@dataclass(frozen=True)
class ContainerHost:
    """A container on this machine, started by its Docker engine.

    Attributes:
        image: name of an image that holds tritonserver, with its tag.
        shared_memory_bytes: size of the container's /dev/shm, which Python models use.
    """

    image: str
    shared_memory_bytes: int


@dataclass(frozen=True)
class RemoteHost:
    """A running server in explicit model-control mode; addresses are host:port.

    Attributes:
        repository: folder on this machine that is the server's model repository.
    """

    grpc: str
    http: str
    metrics: str
    repository: Path


Host = EmbeddedHost | ContainerHost | RemoteHost

BuildLocationName = Literal["local", "container", "trtexec"]
"""The tensorrt package of this Python, NVIDIA's tensorrt container of the server's release, or
trtexec in the server's container."""


@dataclass(frozen=True)
class EngineSettings:
    """How TensorRT engines are built.

    Attributes:
        image: image of the container that builds; empty if built locally.
        gpu: GPU on which, and for whose exact model, engines are built.
        workspace_mib: scratch memory of a kernel; None allows all of the GPU's memory.
        optimization_level: level of TensorRT's builder, 0 to 5; a higher one builds longer and
            tries more kernels.
        timeout_seconds: longest time of one build.
    """

    build_in: BuildLocationName
    image: str
    gpu: Gpu
    workspace_mib: int | None = None
    optimization_level: int = 3
    timeout_seconds: float = 3600.0
