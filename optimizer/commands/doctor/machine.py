"""The machine itself: processor, memory, Python, shared memory and disks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Set
from pathlib import Path

from optimizer.commands.doctor.checks import CheckResult
from optimizer.configuration.hardware import HARDWARE_BF16, overflows_in_int8, processor_lacks
from optimizer.machine.cores import total_memory_bytes, unused_memory_bytes
from optimizer.machine.fingerprint import cpu_flags, this_machine

SHARED_MEMORY = "/dev/shm"  # noqa: S108 - it is read, not written to
_GIB = 2**30

_LEAST_SHARED_MEMORY = _GIB
"""The default of a container; models in the Python backend communicate through it."""

_LEAST_FREE = 5 * _GIB
"""BERT-large in FP32 has 1.3 GB, and every precision and runtime has files of its own."""


def processor() -> CheckResult:
    """Return model, cores, vector extensions, and what follows for precisions on the CPU."""
    machine = this_machine("embedded")
    features = ", ".join(machine.cpu_features) or "no vector extensions"
    detail = f"{machine.cpu}, {machine.cores_text} ({features})"
    limits = "; ".join(_limits_of_precisions(cpu_flags()))
    return CheckResult("processor", "ok", f"{detail}; {limits}" if limits else detail)


def _limits_of_precisions(flags: Set[str] | None) -> Iterator[str]:
    if overflows_in_int8(flags):
        yield "no VNNI: INT8 weights have 7 bits, because sums of 8 would overflow"
    if processor_lacks("openvino", "bf16", flags) is not None:
        yield "no BF16 in OpenVINO: searches leave it out"
    elif flags is not None and not flags & HARDWARE_BF16:
        yield "no BF16 instructions: BF16 is emulated and slow"


def memory() -> CheckResult:
    """Return free and total memory within the limits of control groups."""
    free, total = unused_memory_bytes(), total_memory_bytes()
    return CheckResult("memory", "ok", f"{_gib(free)} free of {_gib(total)}")


def python() -> CheckResult:
    """Return the version of the interpreter."""
    machine = this_machine("embedded")
    return CheckResult("Python", "ok", f"{machine.python}, {machine.system}")


def shared_memory() -> CheckResult:
    """Return size and free space of /dev/shm."""
    part, usage = SHARED_MEMORY, shutil.disk_usage(SHARED_MEMORY)
    detail = f"{_gib(usage.free)} free of {_gib(usage.total)}"
    if usage.free >= _LEAST_SHARED_MEMORY:
        return CheckResult(part, "ok", detail)
    if usage.total < _LEAST_SHARED_MEMORY:
        remedy = f"mount -o remount,size=2G {part} (as root; of a container: --shm-size=2g)"
    else:
        remedy = f"remove what processes that ended have left in {part}"
    return CheckResult(part, "missing", f"{detail}: too little for many instances", remedy)


def disk(part: str, folder: Path) -> CheckResult:
    """Return the free space for a folder, which need not exist yet."""
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    if not os.access(existing, os.W_OK | os.X_OK):
        detail = f"{existing} is not writable for this user"
        return CheckResult(part, "missing", detail, f"name another folder with --{part}")
    free = shutil.disk_usage(existing).free
    detail = f"{_gib(free)} free for {folder}"
    if free >= _LEAST_FREE:
        return CheckResult(part, "ok", detail)
    detail = f"{detail}: too little for a large model's files"
    return CheckResult(part, "missing", detail, f"make room, or name another folder with --{part}")


def _gib(count: int) -> str:
    return f"{count / _GIB:.1f} GiB"
