"""The fingerprint of the machine that trials run on."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from optimizer.configuration.hardware import Gpu, counted_gpus
from optimizer.configuration.runtimes import RUNTIME_PACKAGE, RUNTIMES
from optimizer.machine.cores import binding_quota, cores_text, total_memory_bytes, usable_cores
from optimizer.machine.gpus import driver_version
from optimizer.machine.slots import MachineSlots

_CPU_FEATURES = (
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "avx_vnni",
    "amx_bf16",
    "amx_int8",
)
_PACKAGES = (
    *("nvidia-pytriton", *RUNTIME_PACKAGE.values(), "tritonclient", "numpy"),
    *(spec.package_on_gpus for spec in RUNTIMES.values() if spec.package_on_gpus is not None),
)


@dataclass(frozen=True)
class Machine:
    """What measurements depend on. Machines that differ here are never mixed in a study.

    Attributes:
        server: "embedded", an image with its digest, or a running server's version.
        gpus: models of the GPUs in use, in the order of their logical indices.
        driver: version of NVIDIA's driver, None without a GPU.
        cpu_quota: in cores, None where it does not limit the cores.
    """

    cpu: str
    cores: int
    memory_gib: int
    cpu_features: tuple[str, ...]
    packages: tuple[tuple[str, str], ...]
    python: str
    system: str
    server: str = "embedded"
    gpus: tuple[str, ...] = ()
    driver: str | None = None
    cpu_quota: float | None = None

    @cached_property
    def digest(self) -> str:
        """12 hex digits that identify the machine in records."""
        text = json.dumps(self._content(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def hardware(self) -> str:
        """Processor, cores and GPUs, such as "AMD EPYC 7R13, 4 cores"."""
        cards = [counted_gpus(self.gpus)] if self.gpus else []
        return ", ".join([self.cpu, self.cores_text, *cards])

    @property
    def cores_text(self) -> str:
        """The cores in words, with the CPU quota where there is one."""
        return cores_text(self.cores, self.cpu_quota)

    @property
    def summary(self) -> str:
        """One line for people."""
        features = ", ".join(self.cpu_features) or "no vector extensions"
        machine = f"{self.cpu}, {self.cores_text}, {self.memory_gib} GiB ({features})"
        cards = [counted_gpus(self.gpus)] if self.gpus else []
        driver = [f"driver {self.driver}"] if self.driver is not None else []
        return ", ".join([machine, *cards, *driver])

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        lists = {"cpu_features": list(self.cpu_features), "gpus": list(self.gpus)}
        return {**self._content(), **lists, "packages": dict(self.packages)}

    def _content(self) -> dict[str, Any]:
        """Return all fields, without a missing quota, which earlier versions did not write."""
        content = asdict(self)
        if self.cpu_quota is None:
            del content["cpu_quota"]
        return content

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Machine:
        """Return the machine that `to_json` wrote. Raises TypeError for other values."""
        lists = {key: tuple(data[key]) for key in ("cpu_features", "gpus")}
        return cls(**{**data, **lists, "packages": tuple(data["packages"].items())})


def this_machine(
    server: str,
    gpus: Sequence[Gpu] = (),
    more_packages: Sequence[str] = (),
    slots: MachineSlots | None = None,
) -> Machine:
    """Return the fingerprint of this machine with a server and the GPUs in use.

    Args:
        more_packages: that measurements depend on, besides those of the runtimes of models.
        slots: of which a trial has one, whose cores and memory are then the machine's.
    """
    cpu, flags = _cpu()
    names = dict.fromkeys((*_PACKAGES, *more_packages))
    return Machine(
        cpu=cpu,
        cores=len(usable_cores()) if slots is None else len(slots.first.all_cores),
        memory_gib=round(
            total_memory_bytes() / 2**30 if slots is None else slots.hardware.memory_mib / 2**10
        ),
        cpu_features=tuple(f for f in _CPU_FEATURES if f in flags),
        packages=tuple((name, v) for name in names if (v := _version(name))),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        server=server,
        gpus=tuple(gpu.name for gpu in gpus),
        driver=driver_version() if gpus else None,
        cpu_quota=binding_quota() if slots is None else None,
    )


def cpu_flags() -> Set[str] | None:
    """Return the kernel's feature flags of an x86 processor; None on other processors."""
    return _cpu()[1] if platform.machine() == "x86_64" else None


def _cpu() -> tuple[str, set[str]]:
    """Return model name and feature flags, from /proc/cpuinfo if it exists."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine(), set()
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    fields = {key.strip(): value.strip() for key, value in pairs}
    return fields.get("model name", platform.machine()), set(fields.get("flags", "").split())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
