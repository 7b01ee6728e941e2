"""A fake engine of containers: each container says given lines and ends with a given code."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from optimizer.machine.docker_engine import ContainerTask, Image


@dataclass
class FakeContainer:
    """One that ran; with code None it runs until it is stopped."""

    told: list[str]
    code: int | None
    stopped: threading.Event = field(default_factory=threading.Event)

    def lines(self) -> Iterator[str]:
        yield from self.told
        if self.code is None:
            self.stopped.wait()

    def wait(self, timeout_seconds: float) -> int | None:
        if self.code is None:
            self.stopped.wait(timeout_seconds)
        return self.code

    def stop(self, grace_seconds: float) -> None:
        self.stopped.set()


Run = Callable[[ContainerTask], FakeContainer]


@dataclass
class FakeContainers:
    """Knows one image. `run` says what becomes of a task."""

    run: Run
    image_id: str = "sha256:0a1b"
    tasks: list[ContainerTask] = field(default_factory=list)
    containers: list[FakeContainer] = field(default_factory=list)

    def image(self, name: str) -> Image:
        return Image(self.image_id, {})

    def start(self, task: ContainerTask) -> FakeContainer:
        self.tasks.append(task)
        self.containers.append(self.run(task))
        return self.containers[-1]
