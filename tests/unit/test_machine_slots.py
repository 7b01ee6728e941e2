"""A machine is divided into equal slots: by GPU with the cores near it, or by cores alone."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from optimizer.errors import RequirementError, UsageError
from optimizer.machine import slots as machine_slots
from optimizer.machine.cores import keep_to
from optimizer.machine.fingerprint import this_machine
from optimizer.machine.gpus import gpu_devices
from optimizer.machine.slots import MachineSlots, Slot, core_slots, gpu_slots, local_slot
from optimizer.machine.topology import Topology, cores_range, parse_cores
from tests.unit.fake_nvml import Card, install, install_none
from tests.unit.recorded_topologies import (
    EIGHT_RTX_4090,
    FIVE_UNEVENLY,
    TWO_ON_ONE_NODE,
    RecordedMachine,
)


def ranges(slots: MachineSlots) -> list[str]:
    return [cores_range(slot.all_cores) for slot in slots.slots]


def assert_equal_and_apart(slots: MachineSlots) -> None:
    first = slots.first
    every = [core for slot in slots.slots for core in slot.all_cores]
    assert len(every) == len(set(every)), "no core is in two slots"
    assert not set(every) & set(slots.unused_cores)
    for slot in slots.slots:
        assert (len(slot.cores), len(slot.client_cores)) == (
            len(first.cores),
            len(first.client_cores),
        )
        assert slot.separated == first.separated
    assert slots.hardware.cores == len(first.cores)
    assert len({slot.name for slot in slots.slots}) == len(slots.slots)


@pytest.mark.parametrize(
    "machine", [EIGHT_RTX_4090, FIVE_UNEVENLY, TWO_ON_ONE_NODE], ids=lambda each: each.name
)
def test_each_gpu_has_an_equal_part_of_the_cores_of_its_node(
    machine: RecordedMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.install(monkeypatch)
    slots = gpu_slots("all", machine.sysfs(tmp_path))
    assert_equal_and_apart(slots)
    assert [slot.gpu_uuids for slot in slots.slots] == [
        (f"GPU-{n}abc",) for n in range(len(machine.affinities))
    ]
    for slot, (affinity, _) in zip(slots.slots, machine.affinities, strict=True):
        assert parse_cores(affinity) >= set(slot.all_cores)
        for core in slot.all_cores:
            sibling = (core + machine.siblings) % (2 * machine.siblings)
            assert sibling in slot.all_cores, "whole physical cores"
    assert [gpu.uuid for gpu in slots.hardware.gpus] == ["GPU-0abc"]
    assert slots.hardware.memory_mib == 512 * 1024 // len(machine.affinities)


def test_the_cores_of_a_node_are_divided_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    EIGHT_RTX_4090.install(monkeypatch)
    slots = gpu_slots("all", EIGHT_RTX_4090.sysfs(tmp_path))
    assert ranges(slots)[:2] == ["0-12,112-124", "13-25,125-137"]
    assert ranges(slots)[4] == "56-68,168-180"
    assert slots.slots[5].name == "gpu-5"
    assert slots.slots[5].location == "GPU-5abc, cores 69-81,181-193"
    # Three of 26 cores are the load client's.
    assert (len(slots.first.cores), len(slots.first.client_cores)) == (23, 3)


def test_a_process_keeps_to_some_cores_for_a_while_with_all_of_its_threads() -> None:
    before, over = os.sched_getaffinity(0), threading.Event()
    other = threading.Thread(target=over.wait)
    other.start()
    assert other.native_id is not None
    own = {min(before)}
    try:
        with keep_to(tuple(own)):
            assert os.sched_getaffinity(0) == os.sched_getaffinity(other.native_id) == own
        with keep_to(()):
            assert os.sched_getaffinity(0) == before
        assert os.sched_getaffinity(other.native_id) == before
    finally:
        over.set()
        other.join()


def test_gpus_that_have_many_cores_leave_some_to_the_coordinator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    EIGHT_RTX_4090.install(monkeypatch)
    slots = gpu_slots("all", EIGHT_RTX_4090.sysfs(tmp_path))
    own = "cores 52-55,108-111,164-167,220-223"
    assert slots.summary == f"8 slots of 1 x NVIDIA T4, 26 cores; the coordinator has {own}"
    # Two GPUs of one node leave it the cores of the other.
    assert len(gpu_slots("1,3", EIGHT_RTX_4090.sysfs(tmp_path)).first.all_cores) == 56


def test_cores_that_would_make_slots_unequal_are_left_unused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FIVE_UNEVENLY.install(monkeypatch)
    slots = gpu_slots("all", FIVE_UNEVENLY.sysfs(tmp_path))
    assert ranges(slots) == ["8-9,24-25", "0-1,16-17", "2-3,18-19", "4-5,20-21", "6-7,22-23"]
    assert slots.summary == (
        "5 slots of 1 x NVIDIA T4, 4 cores; the coordinator has cores 10-15,26-31"
    )
    alone = gpu_slots("0,1", FIVE_UNEVENLY.sysfs(tmp_path))
    assert ranges(alone) == ["8-14,24-30", "0-6,16-22"]


@pytest.mark.parametrize("choice", ["1,3", "GPU-1abc,GPU-3abc", "3, GPU-1", "GPU-3,1,1"])
def test_gpus_are_chosen_by_index_uuid_or_its_beginning(
    choice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    EIGHT_RTX_4090.install(monkeypatch)
    slots = gpu_slots(choice, EIGHT_RTX_4090.sysfs(tmp_path))
    assert [slot.gpu_uuids for slot in slots.slots] == [("GPU-1abc",), ("GPU-3abc",)]
    assert [slot.name for slot in slots.slots] == ["gpu-1", "gpu-3"]


@pytest.mark.parametrize("choice", ["0,7", "GPU-9", "GPU-", "", "T4", "all,0"])
def test_an_unknown_gpu_is_refused_naming_those_present(
    choice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TWO_ON_ONE_NODE.install(monkeypatch)
    present = r"0 \(NVIDIA T4, GPU-0abc\), 1 \(NVIDIA T4, GPU-1abc\); got '"
    with pytest.raises(UsageError, match=present):
        gpu_slots(choice, TWO_ON_ONE_NODE.sysfs(tmp_path))


def test_gpus_of_several_models_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    EIGHT_RTX_4090.install(monkeypatch, Card(name="NVIDIA A10G"))
    topology = EIGHT_RTX_4090.sysfs(tmp_path)
    with pytest.raises(UsageError, match="got 1 x NVIDIA A10G, 7 x NVIDIA T4: name those of one"):
        gpu_slots("all", topology)
    assert len(gpu_slots("1,2,3", topology).slots) == 3


def test_gpus_without_a_driver_are_a_requirement(monkeypatch: pytest.MonkeyPatch) -> None:
    install_none(monkeypatch)
    with pytest.raises(RequirementError, match="no NVIDIA driver answers"):
        gpu_slots("all")


def test_a_mig_device_is_a_slot_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    divided = Card("NVIDIA A100", (8, 0), 40_960, mig=1, instances=("MIG-aa", "MIG-bb"))
    TWO_ON_ONE_NODE.install(monkeypatch, divided)
    topology = TWO_ON_ONE_NODE.sysfs(tmp_path)
    names = [(device.index, device.gpu.name, device.gpu.memory_mib) for device in gpu_devices()]
    instance = "NVIDIA A100 MIG 1g.5gb", 4864
    assert names == [("0:0", *instance), ("0:1", *instance), ("1", "NVIDIA T4", 15360)]
    for choice in ("MIG-aa,MIG-bb", "0:0,0:1"):
        slots = gpu_slots(choice, topology)
        assert [slot.gpu_uuids for slot in slots.slots] == [("MIG-aa",), ("MIG-bb",)]
        assert slots.slots[1].name == "gpu-0.1"
        assert_equal_and_apart(slots)
    with pytest.raises(UsageError, match="got '0'"):
        gpu_slots("0", topology)


def test_a_node_without_usable_cores_makes_no_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that may use the cores of one socket only."""
    EIGHT_RTX_4090.install(monkeypatch, cores_allowed="0-7,112-119")
    slots = gpu_slots("all", EIGHT_RTX_4090.sysfs(tmp_path))
    assert_equal_and_apart(slots)
    assert ranges(slots)[7] == "7,119"
    EIGHT_RTX_4090.install(monkeypatch, cores_allowed="0-3,112-115")
    topology = EIGHT_RTX_4090.sysfs(tmp_path)
    with pytest.raises(UsageError, match="8 of them share the 4 of cores 0-3,112-115: name fewer"):
        gpu_slots("all", topology)


def test_without_sysfs_all_cores_are_near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    TWO_ON_ONE_NODE.install(monkeypatch, cores_allowed="0-7")
    slots = gpu_slots("all", Topology(tmp_path / "hidden"))
    assert ranges(slots) == ["0-3", "4-7"]


def test_a_physical_core_of_which_half_may_be_used_is_left_unused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TWO_ON_ONE_NODE.install(monkeypatch, cores_allowed="0-4,32-35")
    slots = core_slots(2, TWO_ON_ONE_NODE.sysfs(tmp_path))
    assert ranges(slots) == ["0-1,32-33", "2-3,34-35"]
    assert slots.unused_cores == (4,)
    assert_equal_and_apart(slots)


def test_cores_are_divided_into_whole_physical_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TWO_ON_ONE_NODE.install(monkeypatch)
    topology = TWO_ON_ONE_NODE.sysfs(tmp_path)
    slots = core_slots(5, topology)
    assert_equal_and_apart(slots)
    assert ranges(slots)[:2] == ["0-5,32-37", "6-11,38-43"]
    assert slots.summary == "5 slots of 12 cores; the coordinator has cores 30-31,62-63"
    assert slots.slots[1].name == "slot-1"
    with pytest.raises(UsageError, match=r"at most 32, the number of .* \(cores 0-63\); got 33"):
        core_slots(33, topology)


def test_two_cores_are_two_slots_of_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine_slots, "usable_cores", lambda: (0, 1))
    slots = core_slots(2, Topology(tmp_path))
    assert slots.slots == (Slot((0,), (0,), (), "slot-0"), Slot((1,), (1,), (), "slot-1"))
    assert slots.summary == "2 slots of 1 core; the coordinator shares their cores"


def test_a_machine_as_a_whole_has_no_name() -> None:
    assert local_slot().name == ""


def test_the_fingerprint_of_a_slot_is_that_of_a_machine_of_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    EIGHT_RTX_4090.install(monkeypatch)
    slots = gpu_slots("all", EIGHT_RTX_4090.sysfs(tmp_path))
    machine = this_machine("embedded", slots.hardware.gpus, slots=slots)
    assert (machine.cores, machine.memory_gib, machine.gpus) == (26, 64, ("NVIDIA T4",))


def test_lists_of_cores_are_written_as_they_are_read() -> None:
    for text in ("", "0", "0-3", "0-3,8", "1,3,5-7"):
        assert cores_range(sorted(parse_cores(text))) == text


def test_this_machines_own_cores_are_grouped() -> None:
    own = local_slot().all_cores
    grouped = Topology().physical_cores(own)
    assert sorted(core for siblings in grouped for core in siblings) == list(own)


def test_gpus_of_a_driver_without_cards_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {})
    with pytest.raises(UsageError, match="GPUs: none; got 'all'"):
        gpu_slots("all")
