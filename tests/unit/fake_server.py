"""A fake server with a GPU, of which no machine of ours has one: models take and keep its memory.

What loading and unloading do on a real server is tested in tests/e2e.
"""

from __future__ import annotations

from typing import Any, cast

from optimizer.configuration.serving_config import ServerOptions
from optimizer.machine.slots import Slot
from optimizer.triton.control import Endpoint, ServerControl
from optimizer.triton.launcher import RunningServer

EMPTY_MIB = 400.0
"""What the CUDA context of a server takes."""


HOST_MIB = 4000
"""What a process with PyTorch takes of the machine's memory."""


class FakeGpuServer:
    """Both ends: the launcher that starts it, and what it does."""

    pid: int | None = None
    tensorrt: str | None = None
    loading_seconds = 0.0

    def __init__(self, instance_mib: float, kept_mib: float = 0.0) -> None:
        self._instance_mib = instance_mib
        self._kept_mib = kept_mib
        self._lost = 0.0
        self.starts: list[ServerOptions] = []
        self.loaded: tuple[str, ...] = ()
        self.load_timeouts: list[float] = []
        self.endpoint = Endpoint("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")

    def start(
        self, options: ServerOptions, slot: Slot, *, completes: bool = False
    ) -> RunningServer:
        self.starts.append(options)
        self._lost = 0.0
        return cast(RunningServer, self)

    def memory_in_use_mib(self, uuids: Any) -> float:
        """In place of NVML's figure."""
        return EMPTY_MIB + self._lost + self._instance_mib * len(self.loaded)

    @property
    def control(self) -> ServerControl:
        return cast(ServerControl, self)

    def version(self) -> str:
        return "2.69.0"

    def load(self, model: str, _: object, timeout_seconds: float, **__: object) -> None:
        self.loaded = (*self.loaded, model)
        self.load_timeouts.append(timeout_seconds)

    def unload(self, model: str, *_: object) -> None:
        self.loaded = tuple(name for name in self.loaded if name != model)
        self._lost += self._kept_mib

    def unload_all(self, _: float) -> None:
        for model in reversed(self.loaded):
            self.unload(model)

    def exit_reason(self) -> str | None:
        return None

    def log_since_start(self) -> str:
        return ""

    def model_processes(self) -> dict[int, str]:
        return {}

    def memory_bytes(self) -> int:
        return 2**20

    def memory_with_models_bytes(self) -> int:
        return 2**20 + HOST_MIB * 2**20 * len(self.loaded)

    def stop(self) -> None:
        self.loaded = ()
