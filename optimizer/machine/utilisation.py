"""CPU and GPU utilisation of the machine during a load level."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence

import psutil

from optimizer.machine.cgroups import throttling
from optimizer.machine.gpus import GpuSampler
from optimizer.machine.slots import Slot
from optimizer.measurement.resource_use import MachineUse

CONTENDED_SHARE = 0.1
"""Share of the slot's cores used by other processes from which a level has a warning."""

_THROTTLED_SHARE = 0.01
"""Share of a level's time with CPU throttling from which a level has a warning."""

_MIB = 2**20


class MachineWatch:
    """Watches the slot from its creation to `stop`.

    Args:
        server_cpu_seconds: returns the CPU time so far of each of the server's processes by its
            id, None where unknown.
    """

    def __init__(
        self, slot: Slot, server_cpu_seconds: Callable[[], Mapping[int, float] | None]
    ) -> None:
        self._cores = slot.all_cores
        self._server_cpu_seconds = server_cpu_seconds
        self._gpus = GpuSampler(slot.gpu_uuids)
        self._began = time.monotonic()
        self._busy_before = busy_seconds(self._cores)
        self._own_before = _own_seconds()
        self._server_before = server_cpu_seconds()
        self._throttling_before = throttling()

    def stop(
        self,
        client_cpu_seconds: float,
        server_memory_bytes: int | None,
        triton: tuple[tuple[str, float], ...],
    ) -> MachineUse:
        """Return the use since the creation; `triton` holds the gauges of the server itself."""
        seconds = time.monotonic() - self._began
        server = _increase(self._server_before, self._server_cpu_seconds())
        gpus, no_gpu = self._gpus.stop()
        throttled = throttling()
        if throttled is not None and self._throttling_before is not None:
            throttled = throttled.since(self._throttling_before)
        own = client_cpu_seconds + (server or 0.0) + _own_seconds() - self._own_before
        foreign = (busy_seconds(self._cores) - self._busy_before - own) / seconds
        return MachineUse(
            seconds=seconds,
            cores=len(self._cores),
            server_cpu_seconds=server,
            server_memory_mib=server_memory_bytes / _MIB if server_memory_bytes else None,
            foreign_cores=max(0.0, foreign) if server is not None else None,
            gpus=gpus,
            no_gpu=no_gpu,
            triton=triton,
            throttled_seconds=throttled.seconds if throttled is not None else None,
        )


def busy_seconds(cores: Sequence[int]) -> float:
    """Return the busy time of some cores so far, summed, including steal time."""
    all_cores = psutil.cpu_times(percpu=True)
    chosen = [all_cores[core] for core in cores if core < len(all_cores)]
    return float(sum(sum(times[:8]) - times.idle - times.iowait for times in chosen))


def _increase(before: Mapping[int, float] | None, now: Mapping[int, float] | None) -> float | None:
    """Return the CPU time between two readings, None where either is unknown.

    A process that has ended meanwhile counts as idle: it is one of a model that was unloaded.
    """
    if before is None or now is None:
        return None
    return sum(seconds - before.get(pid, 0.0) for pid, seconds in now.items())


def _own_seconds() -> float:
    own = os.times()
    return own.user + own.system


def withheld_time(use: MachineUse) -> str | None:
    """Return a warning where a CPU quota throttled a level, else None."""
    throttled = use.throttled_seconds
    if throttled is None or throttled < _THROTTLED_SHARE * use.seconds:
        return None
    return (
        f"the CPU quota withheld cores for {throttled:.1f} s in {use.seconds:.1f} s: "
        "these are the figures of this quota, not of whole cores"
    )


def contention(use: MachineUse) -> str | None:
    """Return a warning where other processes used the slot's cores in a level, else None."""
    if use.foreign_cores is None or use.foreign_cores < CONTENDED_SHARE * use.cores:
        return None
    return (
        f"other processes took {use.foreign_cores:.1f} of {use.cores} cores: "
        "end them, or expect less capacity and more noise"
    )
