"""Wait until other processes leave the cores and GPUs of a measurement alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import psutil

from optimizer.machine.gpus import foreign_processes
from optimizer.machine.process_names import process_text
from optimizer.machine.slots import Slot
from optimizer.machine.utilisation import CONTENDED_SHARE, busy_seconds

_SAMPLE_SECONDS = 2.0
_NAMED = 5
"""Processes that a message names."""

_NAMED_CORES = 0.05
"""Cores that a process must use to be named."""


@dataclass(frozen=True)
class ForeignUse:
    """What other processes use of a slot.

    Attributes:
        cores: number of the slot's cores that they keep busy.
        slot_cores: number of the slot's cores.
        processes: the busiest ones, such as "python (process 41), 1.9 cores".
        gpu_processes: such as "python (process 41) on NVIDIA T4 (GPU-1)".
    """

    cores: float
    slot_cores: int
    processes: tuple[str, ...] = ()
    gpu_processes: tuple[str, ...] = ()

    @property
    def is_quiet(self) -> bool:
        """Whether it is too little to matter."""
        return self.cores < CONTENDED_SHARE * self.slot_cores and not self.gpu_processes

    def __str__(self) -> str:
        parts = list(self.gpu_processes)
        if self.cores >= CONTENDED_SHARE * self.slot_cores:
            names = ", ".join(self.processes) or "none that this process can see"
            parts.append(f"{self.cores:.1f} of {self.slot_cores} cores are in use ({names})")
        return "; ".join(parts)


def wait_for_quiet(
    slot: Slot,
    seconds: float,
    tell: Callable[[str], None],
    look: Callable[[Slot], ForeignUse] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Wait until a slot is quiet, and tell what keeps it busy; give up after a time.

    Args:
        tell: receives the messages.
        look: returns the use of the slot after some time; `foreign_use` by default.
        clock: returns seconds.
    """
    look = look or foreign_use
    started = clock()
    told = ""
    while not (use := look(slot)).is_quiet:
        waited = clock() - started
        if waited >= seconds:
            tell(f"still busy after {waited:.0f} s: {use}: expect less capacity and more noise")
            return
        if not told:
            told = f"the machine is busy: {use}; waiting up to {seconds:.0f} s for quiet"
            tell(told)
    if told:
        tell(f"the machine is quiet after {clock() - started:.0f} s")


def foreign_use(slot: Slot) -> ForeignUse:
    """Return what other processes use of a slot; takes the seconds of a sample."""
    cores = slot.all_cores
    started, busy, before = time.monotonic(), busy_seconds(cores), _cpu_seconds()
    time.sleep(_SAMPLE_SECONDS)
    seconds, now = time.monotonic() - started, _cpu_seconds()
    spent = {pid: (used - before.get(pid, 0.0)) / seconds for pid, used in now.items()}
    own = {os.getpid(), *(each.pid for each in psutil.Process().children(recursive=True))}
    total = (busy_seconds(cores) - busy) / seconds - sum(spent.pop(pid, 0.0) for pid in own)
    busiest = sorted(spent, key=lambda pid: -spent[pid])[:_NAMED]
    return ForeignUse(
        cores=max(0.0, total),
        slot_cores=len(cores),
        processes=tuple(
            f"{process_text(pid)}, {spent[pid]:.1f} cores"
            for pid in busiest
            if spent[pid] >= _NAMED_CORES
        ),
        gpu_processes=tuple(
            f"{process_text(pid)} on {gpu}"
            for gpu, pids in foreign_processes(slot.gpu_uuids).items()
            for pid in pids
        ),
    )


def _cpu_seconds() -> Mapping[int, float]:
    """Return the CPU time so far of every process that this one can see, by its id."""
    seconds = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            times = process.cpu_times()
            seconds[process.pid] = times.user + times.system
    return seconds
