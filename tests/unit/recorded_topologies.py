"""Machines with several GPUs as others have published them: sysfs and NVML, rebuilt from that.

No machine of ours has more than one GPU. Cores and NUMA nodes of the GPUs are those that
`nvidia-smi topo -m` printed; which logical cores are siblings follows from the same lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from optimizer.machine import slots
from optimizer.machine.topology import Topology, parse_cores
from tests.unit import fake_nvml
from tests.unit.fake_nvml import Card


@dataclass(frozen=True)
class RecordedMachine:
    """A machine as `nvidia-smi topo -m` shows it.

    Attributes:
        affinities: CPU affinity and NUMA affinity of each GPU in the driver's order.
        siblings: what is added to a core's number for that of its sibling; 0 without siblings.
        cores: of the whole machine.
    """

    name: str
    affinities: Sequence[tuple[str, int]]
    cores: int
    siblings: int

    def sysfs(self, root: Path) -> Topology:
        """The files of sysfs that tell the same."""
        packages = {core: node for text, node in self.affinities for core in parse_cores(text)}
        for core in range(self.cores):
            first = core % self.siblings if self.siblings else core
            both = f"{first},{first + self.siblings}" if self.siblings else f"{core}"
            _write(root / f"devices/system/cpu/cpu{core}/topology/thread_siblings_list", both)
            package = str(max(0, packages.get(core, 0)))
            _write(root / f"devices/system/cpu/cpu{core}/topology/physical_package_id", package)
        for number, (affinity, node) in enumerate(self.affinities):
            device = root / "bus/pci/devices" / f"0000:{number + 16:02x}:00.0"
            _write(device / "numa_node", str(node))
            _write(device / "local_cpulist", affinity)
        return Topology(root)

    def install(
        self, monkeypatch: pytest.MonkeyPatch, *cards: Card, cores_allowed: str | None = None
    ) -> None:
        """Be the machine of this process; `cards` replaces the first GPUs."""
        allowed = cores_allowed or f"0-{self.cores - 1}"
        present = [*cards, *(Card() for _ in self.affinities[len(cards) :])]
        fake_nvml.install(monkeypatch, {f"GPU-{n}abc": card for n, card in enumerate(present)})
        monkeypatch.setattr(slots, "usable_cores", lambda: tuple(sorted(parse_cores(allowed))))
        monkeypatch.setattr(slots, "total_memory_bytes", lambda: 512 * 2**30)


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


EIGHT_RTX_4090 = RecordedMachine(
    "eight RTX 4090 on two sockets (github.com/NVIDIA/go-gpuallocator, issue 17)",
    [("0-55,112-167", 0)] * 4 + [("56-111,168-223", 1)] * 4,
    cores=224,
    siblings=112,
)
FIVE_UNEVENLY = RecordedMachine(
    "one GPU on node 1, four on node 0 (github.com/noonghunna/club-3090, issue 46)",
    [("8-15,24-31", 1)] + [("0-7,16-23", 0)] * 4,
    cores=32,
    siblings=16,
)
TWO_ON_ONE_NODE = RecordedMachine(
    "two GPUs on one node (github.com/noonghunna/club-3090, issue 1229)",
    [("0-63", 0)] * 2,
    cores=64,
    siblings=32,
)
