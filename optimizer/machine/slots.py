"""Slots: the cores and GPUs that a trial runs on, and how a machine is divided into equal ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from optimizer.configuration.hardware import Gpu, Hardware, counted_gpus
from optimizer.errors import UsageError
from optimizer.machine.cores import total_memory_bytes, usable_cores
from optimizer.machine.gpus import GpuDevice, gpu_devices, present_gpus
from optimizer.machine.topology import Topology, cores_range

_MIN_CORES_TO_SEPARATE = 4
"""With fewer cores, a separate core for the load client would cost the server too much."""

_MIN_CORES_TO_LEAVE_ONE = 8
"""With fewer physical cores for each GPU, one less would be missed. Slots without GPUs are what is
measured, and keep all cores."""

_MIB = 2**20
_ALL = "all"


@dataclass(frozen=True)
class Slot:
    """Cores and GPUs of a trial. GPU indices in a ServingConfig are positions in `gpu_uuids`.

    Attributes:
        cores: CPU cores of the server.
        client_cores: CPU cores of the load client; the server's own where there are too few.
        name: unique among the slots of a machine; empty for the whole machine.
    """

    cores: tuple[int, ...]
    client_cores: tuple[int, ...]
    gpu_uuids: tuple[str, ...] = ()
    name: str = ""

    @property
    def separated(self) -> bool:
        """Whether server and client have separate cores."""
        return not set(self.cores) & set(self.client_cores)

    @property
    def all_cores(self) -> tuple[int, ...]:
        """The cores of server and client, ascending."""
        return tuple(sorted({*self.cores, *self.client_cores}))

    @property
    def location(self) -> str:
        """GPUs and cores in words, such as "GPU-1f2e, cores 0-7"."""
        return ", ".join([*self.gpu_uuids, f"cores {cores_range(self.all_cores)}"])


@dataclass(frozen=True)
class MachineSlots:
    """Slots of equal size, each for one trial at a time.

    Attributes:
        hardware: what each slot has, so that one search space holds for all of them.
        unused_cores: left over, because all slots have the same number of whole physical cores, or
            left to the coordinator.
    """

    slots: tuple[Slot, ...]
    hardware: Hardware
    unused_cores: tuple[int, ...] = ()

    @property
    def first(self) -> Slot:
        """The slot of everything that runs alone."""
        return self.slots[0]

    @property
    def summary(self) -> str:
        """One line for people."""
        size, gpus = len(self.first.all_cores), [gpu.name for gpu in self.hardware.gpus]
        each = ", ".join([*([counted_gpus(gpus)] if gpus else []), _cores(size)])
        text = f"{len(self.slots)} slot{'s' if len(self.slots) > 1 else ''} of {each}"
        if self.unused_cores:
            return f"{text}; the coordinator has cores {cores_range(self.unused_cores)}"
        return f"{text}; the coordinator shares their cores"


def local_slot(gpu_uuids: tuple[str, ...] = ()) -> Slot:
    """Return the whole machine as one slot, with separate client cores if there are enough."""
    return _slot(usable_cores(), gpu_uuids)


def local_hardware() -> Hardware:
    """Return what trials may use of this machine."""
    return Hardware(len(local_slot().cores), total_memory_bytes() // _MIB, present_gpus())


def core_slots(count: int, topology: Topology | None = None) -> MachineSlots:
    """Divide the usable cores into slots without GPUs.

    Raises:
        UsageError: where there are fewer physical cores than slots.
    """
    cores = usable_cores()
    physical = _whole(cores, topology or Topology())
    each = len(physical) // count
    if each == 0:
        raise UsageError(
            f"--slots: must be at most {len(physical)}, the number of physical cores that this "
            f"process may use (cores {cores_range(cores)}); got {count}"
        )
    parts = [physical[n * each : (n + 1) * each] for n in range(count)]
    slots = [_slot(_logical(part), (), f"slot-{n}") for n, part in enumerate(parts)]
    return _equal_slots(slots, ())


def gpu_slots(choice: str, topology: Topology | None = None) -> MachineSlots:
    """Return one slot for each chosen GPU, with an equal part of the cores of its NUMA node.

    Args:
        choice: "all", or a comma-separated list of indices, UUIDs, or beginnings of UUIDs.

    Raises:
        UsageError: for an unknown GPU, GPUs of several models, or more GPUs than physical cores.
        RequirementError: without a driver.
    """
    devices = _chosen(choice, gpu_devices())
    models = [device.gpu.name for device in devices]
    if len(set(models)) > 1:
        raise UsageError(
            "--gpus: must be GPUs of one model, since the trials of a study are compared; got "
            f"{counted_gpus(models)}: name those of one model"
        )
    topology, cores = topology or Topology(), usable_cores()
    whole, nodes = _whole(cores, topology), _nodes(devices, cores, topology)
    physical = {node: [core for core in whole if node.issuperset(core)] for node in nodes}
    sharing = Counter(nodes)
    each = min(len(physical[node]) // count for node, count in sharing.items())
    if each == 0:
        raise UsageError(f"--gpus: {_too_few_cores(physical, sharing)}")
    if each >= _MIN_CORES_TO_LEAVE_ONE and each * len(devices) == len(whole):
        each -= 1
    free = {node: iter(own) for node, own in physical.items()}
    slots = []
    for device, node in zip(devices, nodes, strict=True):
        part = [next(free[node]) for _ in range(each)]
        name = f"gpu-{device.index.replace(':', '.')}"
        slots.append(_slot(_logical(part), (device.gpu.uuid,), name))
    return _equal_slots(slots, (devices[0].gpu,))


def _chosen(choice: str, devices: Sequence[GpuDevice]) -> list[GpuDevice]:
    """Return the chosen GPUs in the driver's order."""
    if choice == _ALL and devices:
        return [*devices]
    wanted = [name.strip() for name in choice.split(",")]
    matching = {name: [each for each in devices if _is_named(each, name)] for name in wanted}
    if wrong := [name for name, own in matching.items() if len(own) != 1]:
        present = ", ".join(f"{d.index} ({d.gpu.name}, {d.gpu.uuid})" for d in devices) or "none"
        rule = "must be all, or indices, UUIDs or unique beginnings of UUIDs of this machine's GPUs"
        raise UsageError(f"--gpus: {rule}: {present}; got {', '.join(map(repr, wrong))}")
    return [each for each in devices if [each] in matching.values()]


def _is_named(device: GpuDevice, name: str) -> bool:
    begins = name.startswith(("GPU-", "MIG-")) and device.gpu.uuid.startswith(name)
    return name == device.index or begins


def _nodes(
    devices: Sequence[GpuDevice], usable: Sequence[int], topology: Topology
) -> list[frozenset[int]]:
    """Return the usable cores near each GPU; all of them where the nodes do not tell them apart."""
    near = [topology.cores_near(device.pci_address) for device in devices]
    nodes = [frozenset(usable) & node for node in near if node]
    apart = sum(map(len, set(nodes))) == len(frozenset[int]().union(*nodes))
    if len(nodes) < len(devices) or not all(nodes) or not apart:
        return [frozenset(usable)] * len(devices)
    return nodes


def _too_few_cores(
    physical: Mapping[frozenset[int], Collection[object]], sharing: Counter[frozenset[int]]
) -> str:
    node = next(node for node, count in sharing.items() if len(physical[node]) < count)
    return (
        f"each GPU needs a physical core, and {sharing[node]} of them share the "
        f"{len(physical[node])} of cores {cores_range(sorted(node))}: name fewer GPUs"
    )


def _whole(cores: Sequence[int], topology: Topology) -> list[tuple[int, ...]]:
    """Return the physical cores that have all of their logical cores, as most of them do."""
    physical = topology.physical_cores(cores)
    most = max(map(len, physical))
    return [core for core in physical if len(core) == most]


def _logical(physical: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(core for siblings in physical for core in siblings)


def _slot(cores: tuple[int, ...], gpu_uuids: tuple[str, ...], name: str = "") -> Slot:
    if len(cores) < _MIN_CORES_TO_SEPARATE:
        return Slot(cores, cores, gpu_uuids, name)
    client = max(1, len(cores) // 8)
    return Slot(cores[:-client], cores[-client:], gpu_uuids, name)


def _equal_slots(slots: Sequence[Slot], gpus: tuple[Gpu, ...]) -> MachineSlots:
    """Return the slots with the hardware of each: an equal part of the machine's memory."""
    used = {core for slot in slots for core in slot.all_cores}
    memory_mib = total_memory_bytes() // _MIB // len(slots)
    hardware = Hardware(len(slots[0].cores), memory_mib, gpus)
    return MachineSlots(tuple(slots), hardware, tuple(sorted({*usable_cores()} - used)))


def _cores(count: int) -> str:
    return f"{count} core{'s' if count != 1 else ''}"
