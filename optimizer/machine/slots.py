"""Slots: the cores and GPUs that a trial runs on."""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.configuration.hardware import Hardware
from optimizer.machine.cores import total_memory_bytes, usable_cores
from optimizer.machine.gpus import present_gpus

_MIN_CORES_TO_SEPARATE = 4
"""With fewer cores, a separate core for the load client would cost the server too much."""


@dataclass(frozen=True)
class Slot:
    """Cores and GPUs of a trial. GPU indices in a ServingConfig are positions in `gpu_uuids`.

    Attributes:
        cores: CPU cores of the server.
        client_cores: CPU cores of the load client; the server's own where there are too few.
    """

    cores: tuple[int, ...]
    client_cores: tuple[int, ...]
    gpu_uuids: tuple[str, ...] = ()

    @property
    def separated(self) -> bool:
        """Whether server and client have separate cores."""
        return not set(self.cores) & set(self.client_cores)


def local_slot(gpu_uuids: tuple[str, ...] = ()) -> Slot:
    """Return the whole machine as one slot, with separate client cores if there are enough."""
    cores = usable_cores()
    if len(cores) < _MIN_CORES_TO_SEPARATE:
        return Slot(cores, cores, gpu_uuids)
    client = max(1, len(cores) // 8)
    return Slot(cores[:-client], cores[-client:], gpu_uuids)


def local_hardware() -> Hardware:
    """Return what trials may use of this machine."""
    memory_mib = total_memory_bytes() // 2**20
    return Hardware(len(local_slot().cores), memory_mib, present_gpus())
