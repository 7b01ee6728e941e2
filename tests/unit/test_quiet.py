"""A busy machine is waited for, and what keeps it busy is named."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from optimizer.machine import quiet
from optimizer.machine.cores import usable_cores
from optimizer.machine.quiet import ForeignUse, foreign_use, wait_for_quiet
from optimizer.machine.slots import Slot
from tests.unit import fake_nvml
from tests.unit.fake_nvml import UUID, Card

QUIET = ForeignUse(0.1, 4)
BUSY = ForeignUse(1.94, 4, ("python (process 41), 1.9 cores",))
ON_GPU = ForeignUse(0.0, 4, (), ("python (process 41) on NVIDIA T4 (GPU-1)",))


@dataclass
class Looks:
    """What is seen, one after the other, every two seconds."""

    uses: list[ForeignUse]
    seconds: float = 0.0
    told: list[str] = field(default_factory=list)

    def look(self, _: Slot) -> ForeignUse:
        self.seconds += 2.0
        return self.uses.pop(0) if len(self.uses) > 1 else self.uses[0]

    def wait(self, seconds: float) -> list[str]:
        slot = Slot((0, 1, 2, 3), (0, 1, 2, 3))
        wait_for_quiet(slot, seconds, self.told.append, self.look, lambda: self.seconds)
        return self.told


def test_a_quiet_machine_is_not_waited_for() -> None:
    looks = Looks([QUIET])
    assert looks.wait(600.0) == []
    assert looks.seconds == 2.0


@pytest.mark.parametrize("use", [BUSY, ON_GPU])
def test_it_waits_until_the_machine_is_quiet(use: ForeignUse) -> None:
    looks = Looks([use, use, QUIET])
    assert looks.wait(600.0) == [
        f"the machine is busy: {use}; waiting up to 600 s for quiet",
        "the machine is quiet after 6 s",
    ]


def test_it_gives_up_after_the_time_and_says_so() -> None:
    looks = Looks([BUSY])
    assert looks.wait(10.0)[1:] == [
        "still busy after 10 s: 1.9 of 4 cores are in use (python (process 41), 1.9 cores): "
        "expect less capacity and more noise"
    ]


def test_a_busy_process_is_named_and_its_own_children_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quiet, "_SAMPLE_SECONDS", 0.5)
    monkeypatch.setattr(quiet, "_NAMED", 100)
    spin = [sys.executable, "-c", "while True: pass"]
    cores = usable_cores()
    with subprocess.Popen(spin) as child:
        # Its parent is this process; that of the other one ends at once.
        code = "import subprocess as s, sys; print(s.Popen(sys.argv[1:], stdout=s.DEVNULL).pid)"
        started = subprocess.run(
            [sys.executable, "-c", code, *spin], stdout=subprocess.PIPE, text=True, check=True
        )
        foreign = int(started.stdout)
        try:
            use = foreign_use(Slot(cores, cores))
        finally:
            os.kill(foreign, 9)
            child.kill()
    assert any(f"(process {foreign})" in each for each in use.processes), use
    assert not any(f"(process {child.pid})" in each for each in use.processes)
    assert use.cores > 0.05
    assert use.slot_cores == len(cores)


def test_a_process_on_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet, "_SAMPLE_SECONDS", 0.01)
    fake_nvml.install(monkeypatch, {UUID: Card(pids=(os.getpid(),))})
    use = foreign_use(Slot((0,), (0,), (UUID,)))
    assert not use.is_quiet
    [text] = use.gpu_processes
    assert text.endswith(f"(process {os.getpid()}) on NVIDIA T4 ({UUID})")
    assert str(use).startswith(text)
