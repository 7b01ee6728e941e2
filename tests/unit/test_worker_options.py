"""The options for trials at the same time: what goes together, and what is told about them."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from optimizer.commands import worker
from optimizer.commands.run_context import RunContext, artifact_cache
from optimizer.commands.worker import (
    OpenServedWorker,
    chosen_slots,
    idle_gpus_note,
    require_space_of_slot,
)
from optimizer.configuration.hardware import Gpu, Hardware
from optimizer.configuration.hosting import RemoteHost
from optimizer.errors import UsageError
from optimizer.machine import slots as machine_slots
from optimizer.machine.slots import MachineSlots, Slot
from optimizer.space_file.reader import Space
from optimizer.study.directory import StudyDirectory
from tests.unit.commands import Commands
from tests.unit.fake_nvml import Card, install
from tests.unit.studies import HARDWARE, MACHINE, SETTING
from tests.unit.test_wiring import SPACE

GPU = Gpu("GPU-1", "NVIDIA T4", (7, 5), 15360)
SLOTS = MachineSlots((Slot((0,), (0,), (), "slot-0"), Slot((1,), (1,), (), "slot-1")), HARDWARE)
GPU_SLOTS = replace(SLOTS, hardware=replace(HARDWARE, gpus=(GPU,)))


def space_of(hardware: Hardware) -> Space:
    return replace(SPACE, search_space=replace(SPACE.search_space, hardware=hardware))


def test_without_an_option_or_with_one_slot_the_machine_is_one() -> None:
    assert chosen_slots(None, None) is None
    assert chosen_slots(None, 1) is None


def test_slots_are_chosen_by_one_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_slots, "usable_cores", lambda: (0, 1, 2, 3))
    chosen = chosen_slots(None, 2)
    assert chosen is not None
    assert len(chosen.slots) == 2
    install(monkeypatch, {"GPU-1": Card(), "GPU-2": Card()})
    chosen = chosen_slots("all", None)
    assert chosen is not None
    assert [slot.gpu_uuids for slot in chosen.slots] == [("GPU-1",), ("GPU-2",)]
    with pytest.raises(UsageError, match="--slots: must be left out with --gpus"):
        chosen_slots("all", 2)


def test_a_space_must_be_that_of_a_slot() -> None:
    require_space_of_slot(space_of(HARDWARE), SLOTS)
    require_space_of_slot(space_of(GPU_SLOTS.hardware), GPU_SLOTS)
    with pytest.raises(UsageError, match="--slots: must be left out where trials run on GPUs"):
        require_space_of_slot(space_of(GPU_SLOTS.hardware), SLOTS)
    with pytest.raises(UsageError, match=r"--gpus: must be left out with server\.gpus none"):
        require_space_of_slot(space_of(HARDWARE), GPU_SLOTS)
    with pytest.raises(UsageError, match="read for 8 server cores, as a slot has 2: give the path"):
        require_space_of_slot(space_of(replace(HARDWARE, cores=8)), SLOTS)
    remote = RemoteHost("there:8001", "there:8000", "there:8002", Path("/models"))
    with pytest.raises(UsageError, match="a server of its own; got the server at there:8001"):
        require_space_of_slot(replace(space_of(HARDWARE), host=remote), SLOTS)


def test_gpus_like_the_only_one_in_use_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [GPU, replace(GPU, uuid="GPU-2"), replace(GPU, uuid="GPU-3", name="NVIDIA A10G")]
    monkeypatch.setattr(worker, "present_gpus", lambda: tuple(others))
    note = idle_gpus_note(space_of(GPU_SLOTS.hardware))
    assert note is not None
    assert note.text.startswith("this machine has 2 x NVIDIA T4, of which one is used: run --gpus")
    assert idle_gpus_note(space_of(HARDWARE)) is None, "a study on the CPU"
    both = replace(HARDWARE, gpus=tuple(others[:2]))
    assert idle_gpus_note(space_of(both)) is None, "both are used"
    monkeypatch.setattr(worker, "present_gpus", lambda: (GPU,))
    assert idle_gpus_note(space_of(GPU_SLOTS.hardware)) is None


@pytest.mark.parametrize("location", ["cache", "memory://shared"])
def test_what_opens_a_worker_can_be_sent_to_another_process(tmp_path: Path, location: str) -> None:
    cache = artifact_cache(str(tmp_path / location) if "://" not in location else location)
    run = RunContext(SPACE, StudyDirectory(tmp_path), cache, SETTING.slot, MACHINE, slots=SLOTS)
    opened = pickle.loads(pickle.dumps(OpenServedWorker(run, {})))
    assert opened.run.space == SPACE
    assert opened.run.slots == SLOTS
    assert opened.run.directory.of_worker("slot-1").server_log == (
        tmp_path / "logs" / "server.slot-1.log"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--slots", "0"), "0 is not in the range x>=1"),
        (("--slots", "9999"), "--slots: must be at most"),
        (("--slots", "2", "--gpus", "all"), "--slots: must be left out with --gpus"),
        (("--max-disturbance", "10%"), "--max-disturbance: needs trials at the same time"),
        (("--slots", "2", "--max-disturbance", "101%"), "101.0 is not in the range 0<x<=100"),
        (("--slots", "2", "--max-disturbance", "ten"), "is not a valid"),
    ],
)
def test_a_mistake_in_the_options_is_one_of_usage(
    optimizer: Commands, options: tuple[str, ...], said: str
) -> None:
    ran = optimizer("run", *options)
    assert ran.code == 2
    assert said in ran.err


def test_gpus_without_a_driver_lack_something(optimizer: Commands) -> None:
    ran = optimizer("run", "--gpus", "all")
    assert ran.code == 3
    assert "no NVIDIA driver answers" in ran.err
