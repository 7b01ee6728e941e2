"""Follow a build to its end: read its output, and stop it when its time is up."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from optimizer.artifacts.build_context import no_progress
from optimizer.errors import BuildFailure, is_out_of_memory

_GRACE_SECONDS = 2.0
_KEPT_LINES = 2000
_SHOWN_LINES = 5
_KILLED = (137, -9)
"""Exit codes of a killed container and of a killed process."""


class Running(Protocol):
    """A container or a process, such as `optimizer.machine.docker_engine.RunningContainer`."""

    def lines(self) -> Iterator[str]:
        """Yield its output, line by line, until it ends."""

    def wait(self, timeout_seconds: float) -> int | None:
        """Return its exit code, None where it still runs after `timeout_seconds`."""

    def stop(self, grace_seconds: float) -> None:
        """End and remove it; no error where it has ended."""


@dataclass(frozen=True)
class FinishedBuild:
    """Exit code and last lines of a build."""

    code: int
    lines: tuple[str, ...]

    def failure(self, reason: str | None = None) -> BuildFailure:
        """Return the error of a build without an engine; by default its last lines are the reason.

        Memory may run out on the GPU, which TensorRT reports, or in the machine, where the kernel
        kills the build.
        """
        shown = reason or " | ".join(self.lines[-_SHOWN_LINES:]) or "it printed nothing"
        killed = self.code in _KILLED
        out_of_memory = killed or any(map(is_out_of_memory, (shown, *self.lines)))
        end = "was killed, as when memory runs out" if killed else f"ended with {self.code}"
        return BuildFailure(f"the engine's build {end}: {shown}", out_of_memory=out_of_memory)


def watch(
    running: Running,
    timeout_seconds: float,
    progress_in: Callable[[str], str | None] = lambda _: None,
    on_progress: Callable[[str], None] = no_progress,
) -> FinishedBuild:
    """Wait for the end of a build, and remove what is left of it.

    Args:
        progress_in: returns the progress text of a line of output, None for other lines.
        on_progress: receives progress texts, on a thread.

    Raises:
        BuildFailure: when it takes longer than `timeout_seconds`.
    """
    last: deque[str] = deque(maxlen=_KEPT_LINES)

    def read() -> None:
        for line in running.lines():
            if line.strip():
                last.append(line.strip())
                if (progress := progress_in(line.strip())) is not None:
                    on_progress(progress)

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
    return FinishedBuild(code, tuple(last))
