"""What a machine offers to a trial: cores, memory, GPUs and what these can do. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from optimizer.runtimes import RUNTIMES, Runtime
from optimizer.runtimes.spec import Precision

LEAST_COMPUTE_CAPABILITY: Mapping[Runtime | Precision, tuple[int, int]] = {
    "tensorrt": (7, 5),
    "bf16": (8, 0),
}
"""NVIDIA's compute capability from which TensorRT builds engines (release notes of 10.5), and from
which a precision has arithmetic of its own; a T4 (7.5) has no BF16."""

_VNNI = {"avx512_vnni", "avx_vnni"}
HARDWARE_BF16 = {"avx512_bf16", "amx_bf16", "avx_ne_convert"}
"""Extensions of x86 processors for arithmetic in BF16."""


@dataclass(frozen=True)
class Gpu:
    """One GPU, as the driver tells it.

    Attributes:
        name: exact model, such as "NVIDIA A10G": speeds, and so costs, hold for it alone.
        compute_capability: (major, minor).
    """

    uuid: str
    name: str
    compute_capability: tuple[int, int]
    memory_mib: int


@dataclass(frozen=True)
class Hardware:
    """What trials may use.

    Attributes:
        cores: of the server; the load client's own are not among them.
        memory_mib: of the machine.
        gpus: in the order of their logical indices.
    """

    cores: int
    memory_mib: int
    gpus: tuple[Gpu, ...] = ()

    @property
    def memory_for_instances_mib(self) -> float:
        """What instances may take: of the smallest GPU, or of the machine where there is none."""
        if self.gpus:
            return 0.95 * min(gpu.memory_mib for gpu in self.gpus)
        return 0.9 * self.memory_mib

    def lacks(self, *wanted: Runtime | Precision) -> str | None:
        """Why its GPUs cannot do what is wanted; None where they can, or where there is none."""
        for gpu, name in itertools.product(self.gpus, wanted):
            least = LEAST_COMPUTE_CAPABILITY.get(name)
            if least is not None and gpu.compute_capability < least:
                return (
                    f"{name} needs compute capability {_version(least)},"
                    f" {gpu.name} has {_version(gpu.compute_capability)}"
                )
        return None


def overflows_in_int8(flags: Set[str] | None) -> bool:
    """Return whether a processor adds two products of 8 bits in 16 bits, which may overflow.

    Args:
        flags: see `processor_lacks`.
    """
    return flags is not None and not flags & _VNNI


def processor_lacks(runtime: Runtime, precision: Precision, flags: Set[str] | None) -> str | None:
    """Return why a runtime does not compute in a precision on a processor; None where it does.

    Args:
        flags: of an x86 processor, in the kernel's words; None for another or an unknown one.
    """
    return None if flags is None else RUNTIMES[runtime].processor_lacks(precision, flags)


def counted_gpus(models: Sequence[str]) -> str:
    """How many of each model, for people: "2 x Tesla T4, 1 x NVIDIA A10G"; empty without any."""
    return ", ".join(f"{models.count(model)} x {model}" for model in dict.fromkeys(models))


def _version(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
