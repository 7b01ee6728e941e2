"""Which logical cores share a physical core, and which are near a GPU, from the kernel's sysfs.

A container may hide parts of sysfs; what cannot be read is taken to make no difference.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

_UNKNOWN_NODE = "-1"
"""NUMA node of a device where the firmware names none."""


@dataclass(frozen=True)
class Topology:
    """The cores and devices of this machine, as sysfs describes them."""

    sysfs: Path = Path("/sys")

    def physical_cores(self, cores: Sequence[int]) -> list[tuple[int, ...]]:
        """Group logical cores by their physical core, those of one package together."""
        groups: dict[tuple[int, int], list[int]] = {}
        for core in sorted(cores):
            siblings = self._siblings(core)
            groups.setdefault((self._package(core), min(siblings)), []).append(core)
        return [tuple(groups[key]) for key in sorted(groups)]

    def cores_near(self, pci_address: str) -> frozenset[int] | None:
        """Return the cores of the NUMA node of a device; None where the node is unknown.

        Args:
            pci_address: as sysfs names it, such as "0000:3b:00.0".
        """
        device = self.sysfs / "bus" / "pci" / "devices" / pci_address
        node, cores = _text(device / "numa_node"), _text(device / "local_cpulist")
        return frozenset(parse_cores(cores)) if cores and node != _UNKNOWN_NODE else None

    def _siblings(self, core: int) -> Set[int]:
        return parse_cores(_text(self._of_core(core) / "thread_siblings_list")) or {core}

    def _package(self, core: int) -> int:
        package = _text(self._of_core(core) / "physical_package_id")
        return int(package) if package.isdecimal() else 0

    def _of_core(self, core: int) -> Path:
        return self.sysfs / "devices" / "system" / "cpu" / f"cpu{core}" / "topology"


def parse_cores(text: str) -> set[int]:
    """Return the cores of a list such as "0-3,8"."""
    cores = set[int]()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        cores.update(range(int(first), int(last or first) + 1))
    return cores


def cores_range(cores: Sequence[int]) -> str:
    """Return cores as a list such as "0-3,8", the inverse of `parse_cores`."""
    ranges: list[list[int]] = []
    for core in sorted(cores):
        if ranges and core == ranges[-1][1] + 1:
            ranges[-1][1] = core
        else:
            ranges.append([core, core])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
