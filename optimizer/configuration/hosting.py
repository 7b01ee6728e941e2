"""Where the server runs and where engines are built, as the space file says. Pure values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from optimizer.configuration.hardware import Gpu


@dataclass(frozen=True)
class EmbeddedHost:
    """The tritonserver of the nvidia-pytriton package, on this machine's CPU."""


@dataclass(frozen=True)
class ContainerHost:
    """A container on this machine, started through its Docker engine.

    Attributes:
        image: that holds tritonserver, with its tag.
        shared_memory_bytes: size of the container's /dev/shm, through which Python models talk.
    """

    image: str
    shared_memory_bytes: int


@dataclass(frozen=True)
class RemoteHost:
    """A server that runs already, in explicit model-control mode; addresses are host:port.

    Attributes:
        repository: folder on this machine that is the server's model repository.
    """

    grpc: str
    http: str
    metrics: str
    repository: Path


Host = EmbeddedHost | ContainerHost | RemoteHost

BuildPlace = Literal["local", "container", "trtexec"]
"""The tensorrt package of this Python; NVIDIA's tensorrt container of the server's tag; or trtexec
inside the server's own container."""


@dataclass(frozen=True)
class EngineSettings:
    """How TensorRT engines are built.

    Attributes:
        image: of the container that builds; empty where `place` is "local".
        gpu: on which they are built, and for whose exact model.
        workspace_mib: scratch memory that a kernel may use; None leaves all of the GPU's.
        optimization_level: the builder's, 0 to 5; higher builds longer and tries more kernels.
        timeout_seconds: longest time of one build.
    """

    place: BuildPlace
    image: str
    gpu: Gpu
    workspace_mib: int | None = None
    optimization_level: int = 3
    timeout_seconds: float = 3600.0
