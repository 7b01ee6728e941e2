"""A build under way, wherever it runs: its lines are read, and it is ended when its time is up."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from optimizer.errors import BuildFailure, tells_of_memory

_GRACE_SECONDS = 2.0
_LAST_LINES = 2000
_TOLD_LINES = 5
_KILLED = (137, -9)
"""Exit codes of what the kernel killed, as a container and as a process have it."""


class Running(Protocol):
    """A container or a process; `optimizer.machine.docker_engine.RunningContainer` is one."""

    def lines(self) -> Iterator[str]:
        """Its output, line by line, until it ends."""

    def wait(self, timeout_seconds: float) -> int | None:
        """Its exit code, None where it still runs after `timeout_seconds`."""

    def stop(self, grace_seconds: float) -> None:
        """End it and leave nothing of it; no error where it has ended."""


@dataclass(frozen=True)
class BuildTimedOut:
    """A build that came to its end. `lines` are its last ones."""

    code: int
    lines: tuple[str, ...]

    def failure(self, reason: str | None = None) -> BuildFailure:
        """What to raise when there is no engine; its last lines are the reason unless one is given.

        Memory may run out on the GPU, which TensorRT says, or in the machine, which kills.
        """
        told = reason or " | ".join(self.lines[-_TOLD_LINES:]) or "it said nothing"
        killed = self.code in _KILLED
        out = killed or any(map(tells_of_memory, (told, *self.lines)))
        how = "was killed, as when memory runs out" if killed else f"ended with {self.code}"
        return BuildFailure(f"the engine's build {how}: {told}", out_of_memory=out)


def watch(
    running: Running, on_line: Callable[[str], None], timeout_seconds: float
) -> BuildTimedOut:
    """Wait for the end of a build; nothing of it is left then.

    Args:
        on_line: called with each line of output, on a thread.

    Raises:
        BuildFailure: when it takes longer than `timeout_seconds`.
    """
    last: deque[str] = deque(maxlen=_LAST_LINES)

    def read() -> None:
        for line in running.lines():
            if line.strip():
                last.append(line.strip())
                on_line(line.strip())

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        code = running.wait(timeout_seconds)
        if code is not None:
            reader.join(_GRACE_SECONDS)
    finally:
        running.stop(_GRACE_SECONDS)
    reader.join(_GRACE_SECONDS)
    if code is None:
        raise BuildFailure(f"the engine was not built after {timeout_seconds:g} s")
    return BuildTimedOut(code, tuple(last))
