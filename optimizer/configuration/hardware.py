"""The cores, memory and GPUs that trials may use, and what these support. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from optimizer.configuration.runtimes import RUNTIMES, Runtime
from optimizer.configuration.runtimes.spec import VNNI, Precision

LEAST_COMPUTE_CAPABILITY: Mapping[Runtime | Precision, tuple[int, int]] = {
    "tensorrt": (7, 5),
    "bf16": (8, 0),
}
"""Least compute capability for which TensorRT builds engines (release notes of 10.5), and which has
arithmetic in a precision; a T4 (7.5) has none in BF16."""

HARDWARE_BF16 = {"avx512_bf16", "amx_bf16", "avx_ne_convert"}
"""Extensions of x86 processors for arithmetic in BF16."""


@dataclass(frozen=True)
class Gpu:
    """One GPU, as its driver describes it.

    Attributes:
        name: exact model, such as "NVIDIA A10G"; measured costs hold for no other.
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
        cores: cores of the server, without those of the load client.
        memory_mib: memory of the machine.
        gpus: GPUs in the order of their logical indices.
        only_python_backend: whether the server has no backend but Triton's Python backend.
    """

    cores: int
    memory_mib: int
    gpus: tuple[Gpu, ...] = ()
    only_python_backend: bool = False

    @property
    def memory_for_instances_mib(self) -> float:
        """Memory that instances may take on the smallest GPU, or on a machine without GPUs."""
        if self.gpus:
            return 0.95 * min(gpu.memory_mib for gpu in self.gpus)
        return self.host_memory_for_instances_mib

    @property
    def host_memory_for_instances_mib(self) -> float:
        """Memory of the machine that instances may take, also those on its GPUs."""
        return 0.9 * self.memory_mib

    def lacks(self, *wanted: Runtime | Precision) -> str | None:
        """Return why a GPU does not support what is wanted; None if there is no such GPU."""
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
        flags: flags of an x86 processor as Linux names them; None for others.
    """
    return flags is not None and not flags & VNNI


def processor_lacks(runtime: Runtime, precision: Precision, flags: Set[str] | None) -> str | None:
    """Return why a runtime does not compute in a precision on a processor; None if it does.

    Args:
        flags: flags of an x86 processor as Linux names them; None for others.
    """
    return None if flags is None else RUNTIMES[runtime].processor_lacks(precision, flags)


def counted_gpus(models: Sequence[str]) -> str:
    """Return the number of GPUs of each model, such as "2 x Tesla T4, 1 x NVIDIA A10G"."""
    return ", ".join(f"{models.count(model)} x {model}" for model in dict.fromkeys(models))


def _version(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
