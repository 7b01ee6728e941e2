"""The few calls of Docker's SDK that `ContainerEngine` makes, answered from memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from docker.errors import APIError, ImageNotFound, NotFound
from requests import Response


def refusal(status: int, said: str) -> APIError:
    """What the SDK raises when the engine answers with an error."""
    response = Response()
    response.status_code = status
    kind = {404: NotFound}.get(status, APIError)
    return kind("refused", response=response, explanation=said)


@dataclass
class FakeContainer:
    """A container that does as it is told by a test.

    Attributes:
        chunks: its output as it is streamed.
        last_chunks: what the stream leaves out.
    """

    engine: FakeDocker
    name: str = "made"
    labels: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    chunks: Sequence[bytes] = ()
    last_chunks: Sequence[bytes] = ()
    statistics: dict[str, Any] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    def start(self) -> None:
        if self.engine.refuses_to_start:
            raise self.engine.refuses_to_start.pop(0)
        self.attrs["State"] = {"Status": "running", "ExitCode": 0, "Pid": 7, "OOMKilled": False}

    def reload(self) -> None:
        if self not in self.engine.made:
            raise refusal(404, "No such container")

    def logs(self, *, stream: bool = False, follow: bool = False) -> Iterator[bytes] | bytes:
        if not stream:
            return b"".join([*self.chunks, *self.last_chunks])
        assert follow
        return iter(self.chunks)

    def stats(self, *, stream: bool, one_shot: bool) -> dict[str, Any]:
        assert one_shot
        assert not stream
        return self.statistics

    def stop(self, timeout: int) -> None:
        self.reload()
        self.calls.append(f"stop {timeout}")

    def remove(self, *, force: bool, v: bool) -> None:
        self.reload()
        assert force
        assert v
        self.engine.made.remove(self)
        self.engine.freed()


class FakeDocker:
    """A client of an engine with some images. It is its own collection of images and containers.

    Attributes:
        environments: what each image sets, by the image's name.
        refuses_to_start: raised one after the other in place of starting containers.
        runtimes: that containers may run by.
        nameless: images without a name that it has beside them.
        security_options: as `docker info` tells them.
        freed: called when a container is removed, as the kernel ends its processes.
    """

    def __init__(self, **environments: list[str] | None) -> None:
        self.environments = environments
        self.made: list[FakeContainer] = []
        self.refuses_to_start: list[APIError] = []
        self.runtimes = ["runc"]
        self.nameless: list[dict[str, Any]] = []
        self.security_options: list[str] = []
        self.freed: Callable[[], None] = lambda: None
        self.images = self.containers = self
        self.api = SimpleNamespace(images=self._names)
        self.id = "sha256:1234"
        self.attrs: dict[str, Any] = {}

    def info(self) -> dict[str, Any]:
        return {
            "ServerVersion": "28.5.1",
            "Runtimes": {name: {} for name in self.runtimes},
            "SecurityOptions": self.security_options,
        }

    def _names(self) -> Sequence[dict[str, Any]]:
        return [*({"RepoTags": [name]} for name in self.environments), *self.nameless]

    def get(self, name: str) -> FakeDocker:
        if name not in self.environments:
            raise ImageNotFound("refused", response=Response(), explanation="No such image")
        self.attrs = {"Config": {"Env": self.environments[name]}}
        return self

    def create(
        self, image: str, command: list[str], *, name: str, labels: dict[str, str], **settings: Any
    ) -> FakeContainer:
        self.get(image)
        container = FakeContainer(self, name, labels, {"command": command, **settings})
        self.made.append(container)
        return container

    def list(self, *, filters: dict[str, list[str]], **how: bool) -> list[FakeContainer]:
        assert how == {"all": True, "ignore_removed": True}
        wanted = [label.split("=", 1) for label in filters["label"]]
        return [c for c in self.made if all_of(c.labels, wanted)]


def all_of(labels: dict[str, str], wanted: Sequence[Sequence[str]]) -> bool:
    return all(labels.get(key) == value for key, value in wanted)
