"""The schema of where the server runs and where engines are built."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from optimizer.configuration.hardware import Gpu
from optimizer.configuration.hosting import (
    BuildLocationName,
    ContainerHost,
    EmbeddedHost,
    EngineSettings,
    Host,
    RemoteHost,
)
from optimizer.configuration.releases import tag_of, tensorrt_image, triton_image
from optimizer.space_file.section import Count, Duration, Section, raise_all, wrong

_Address = Annotated[str, Field(pattern=r"^[^:/\s]+:\d{1,5}$")]
_MIB = 2**20


class ServerSection(Section):
    """The Triton server and the GPUs that it may use."""

    launcher: Literal["embedded", "docker", "remote"] = Field(
        "embedded",
        description="embedded (the server of nvidia-pytriton), docker (a container), or "
        "remote (a server that is running)",
    )
    gpus: (
        Literal["none", "all"] | list[Annotated[int, Field(ge=0, le=10**6, strict=True)] | str]
    ) = Field(
        "none", description="none, all, or a list of numbers or UUIDs, as nvidia-smi lists them"
    )
    image: str | None = Field(
        None, description=f"docker: image with its tag; by default {triton_image()}"
    )
    shared_memory_mib: Count = Field(1024, description="docker: size of the container's /dev/shm")
    grpc: _Address | None = Field(None, description="remote: host:port, as are http and metrics")
    http: _Address | None = Field(None, description="remote: host:port")
    metrics: _Address | None = Field(None, description="remote: host:port")
    repository: str | None = Field(
        None, description="remote: folder on this machine that is the server's model repository"
    )

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        mistakes = []
        remote = {key: getattr(self, key) for key in ("grpc", "http", "metrics", "repository")}
        for key, value in remote.items():
            if (value is not None) != (self.launcher == "remote"):
                rule = "is needed with launcher remote, and with no other"
                mistakes.append(wrong(key, rule, value))
        if self.image is not None and self.launcher != "docker":
            mistakes.append(wrong("image", "needs launcher docker", self.image))
        raise_all(type(self), mistakes)
        return self

    def to_value(self, folder: Path) -> Host:
        """Return the host, with paths resolved against the file's folder."""
        if self.launcher == "docker":
            return ContainerHost(self.image or triton_image(), self.shared_memory_mib * _MIB)
        if self.launcher == "remote":
            repository = (folder / (self.repository or "")).resolve()
            return RemoteHost(self.grpc or "", self.http or "", self.metrics or "", repository)
        return EmbeddedHost()


class EnginesSection(Section):
    """How TensorRT engines are built."""

    build_in: BuildLocationName | None = Field(
        None,
        description="trtexec in the server's container, container for NVIDIA's tensorrt container, "
        "local for the tensorrt package; by default trtexec with launcher docker, else local",
    )
    image: str | None = Field(
        None,
        description="image of the container that builds; by default the server's with trtexec, "
        "NVIDIA's tensorrt image of the same release with container",
    )
    workspace_mib: Count | None = Field(
        None, description="scratch memory of a kernel; by default all"
    )
    optimization_level: Annotated[int, Field(ge=0, le=5, strict=True)] = Field(
        3, description="level of TensorRT's builder; a higher one builds longer"
    )
    timeout: Duration = Field(3600.0, description="longest time of one build")

    def to_value(self, host: Host, gpu: Gpu) -> EngineSettings:
        """Return the settings for a host whose engines are built on `gpu`."""
        server = host.image if isinstance(host, ContainerHost) else triton_image()
        build_in = self.build_in or ("trtexec" if isinstance(host, ContainerHost) else "local")
        own = {"trtexec": server, "container": tensorrt_image(tag_of(server)), "local": ""}
        return EngineSettings(
            build_in=build_in,
            image=self.image or own[build_in],
            gpu=gpu,
            workspace_mib=self.workspace_mib,
            optimization_level=self.optimization_level,
            timeout_seconds=self.timeout,
        )
