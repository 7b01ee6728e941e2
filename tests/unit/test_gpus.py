"""GPU figures: on a fake NVML here, and on a real card where there is one."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from optimizer.configuration.hardware import Gpu, counted_gpus
from optimizer.errors import RequirementError
from optimizer.machine import gpus
from optimizer.machine.gpus import (
    GpuSampler,
    clock_advice,
    gpu_states,
    present_gpus,
    refuse_foreign_processes,
)
from optimizer.measurement.resource_use import GpuUse
from tests.unit.fake_nvml import UUID, Card, install, install_none
from tests.unit.studies import MACHINE


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    only = Card()
    install(monkeypatch, {UUID: only})
    monkeypatch.setattr(gpus, "_SAMPLE_SECONDS", 0.01)
    return only


def sampled(seconds: float = 0.1) -> GpuUse:
    sampler = GpuSampler([UUID])
    time.sleep(seconds)
    [use], nothing = sampler.stop()
    assert nothing is None
    return use


def test_everything_that_a_card_tells_is_kept_in_its_unit(card: Card) -> None:
    assert sampled() == GpuUse(
        uuid=UUID,
        name="NVIDIA T4",
        utilization_percent=80.0,
        memory_mib=3072.0,
        power_watts=65.0,
        sm_clock_mhz=1350.0,
        temperature_celsius_max=71.0,
        throttled=(),
        ecc_uncorrected=0,
        mig=False,
        mps=False,
    )


def test_what_a_card_does_not_tell_is_none(card: Card) -> None:
    card.utilization = card.power = card.reasons = card.ecc = card.mig = card.mps = None
    use = sampled()
    assert (use.utilization_percent, use.power_watts, use.ecc_uncorrected) == (None, None, None)
    assert (use.mig, use.mps, use.throttled) == (None, None, ())
    assert use.sm_clock_mhz == 1350.0


def test_means_are_over_the_level_and_the_temperature_is_the_highest(card: Card) -> None:
    sampler = GpuSampler([UUID])
    time.sleep(0.1)
    card.clock, card.temperature = 600, 85
    time.sleep(0.05)
    card.temperature = 70
    time.sleep(0.05)
    [use], _ = sampler.stop()
    assert use.sm_clock_mhz is not None
    assert 600 < use.sm_clock_mhz < 1350
    assert use.temperature_celsius_max == 85


@pytest.mark.parametrize(
    ("reasons", "names", "hot"),
    [
        (0x1, (), False),  # idle
        (0x4, ("SwPowerCap",), False),
        (0x20, ("SwThermalSlowdown",), True),
        (0x48, ("HwSlowdown", "HwThermalSlowdown"), True),
    ],
)
def test_a_clock_that_is_held_down_is_named_with_its_reasons(
    card: Card, reasons: int, names: tuple[str, ...], hot: bool
) -> None:
    card.reasons = reasons
    use = sampled()
    assert use.throttled == names
    assert use.overheated == hot


def test_a_reason_that_has_passed_is_not_forgotten(card: Card) -> None:
    card.reasons = 0x40
    sampler = GpuSampler([UUID])
    time.sleep(0.05)
    card.reasons = 0
    time.sleep(0.05)
    [use], _ = sampler.stop()
    assert use.overheated


def test_one_hot_sample_voids_no_level(card: Card) -> None:
    def use(hot: int, cool: int) -> GpuUse:
        samples = gpus._GpuSamples(card, UUID, "NVIDIA T4")
        for card.reasons in [0x40] * hot + [0] * cool:
            samples.sample()
        return samples.use()

    assert not use(hot=1, cool=3).overheated
    assert not use(hot=4, cool=96).overheated
    assert use(hot=5, cool=95).overheated


def test_without_gpus_or_without_nvml_the_figures_say_why(card: Card) -> None:
    assert GpuSampler([]).stop() == ((), "the trial runs on no GPU")
    assert GpuSampler(["GPU-2"]).stop() == ((), "NVML: Not Found")


def test_every_card_is_told_with_what_may_keep_trials_from_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, {"GPU-1": Card(mig=1, pids=(9, 3)), "GPU-2": Card(mig=None, pids=None)})
    divided, plain = gpu_states()
    assert (divided.mig, divided.pids) == (True, (3, 9))
    assert (plain.mig, plain.pids) == (None, ())
    assert (divided.gpu, plain.gpu) == present_gpus()
    assert plain.gpu == Gpu("GPU-2", "NVIDIA T4", (7, 5), 15360)


def test_cards_without_a_driver_are_a_requirement(monkeypatch: pytest.MonkeyPatch) -> None:
    install_none(monkeypatch)
    with pytest.raises(RequirementError, match=r"no NVIDIA driver answers \(NVML Shared Library"):
        gpu_states()


def test_a_process_that_is_about_to_end_is_waited_for(
    card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    card.pids = (41,)
    monkeypatch.setattr("time.sleep", lambda _: setattr(card, "pids", ()))
    refuse_foreign_processes([UUID])


def test_a_process_of_someone_else_is_refused_by_its_number(
    card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "_RELEASE_SECONDS", 0.0)
    refuse_foreign_processes([UUID])
    card.pids = (41, 7)
    with pytest.raises(
        RequirementError,
        match=r"^NVIDIA T4 \(GPU-1\) must be free to be measured; on it: .*process .*process",
    ):
        refuse_foreign_processes([UUID])
    refuse_foreign_processes([UUID], own_pids=[7, 41])
    card.pids = None
    refuse_foreign_processes([UUID])


def test_clocks_are_not_changed_but_the_command_is_said(card: Card) -> None:
    assert clock_advice([UUID]) == ["nvidia-smi -i GPU-1 --lock-gpu-clocks=1590"]
    card.highest_clock = None
    assert clock_advice([UUID]) == []
    assert clock_advice([]) == []


def test_gpus_are_told_by_model_in_the_order_of_their_indices() -> None:
    models = ("Tesla T4", "NVIDIA A10G", "Tesla T4")
    assert counted_gpus(models) == "2 x Tesla T4, 1 x NVIDIA A10G"
    machine = replace(MACHINE, gpus=models, driver="580.1")
    assert machine.summary == f"{MACHINE.summary}, {counted_gpus(models)}, driver 580.1"
    assert MACHINE.summary == "Some CPU, 2 cores, 24 GiB (avx2)"
    assert machine.hardware == f"{MACHINE.hardware}, 2 x Tesla T4, 1 x NVIDIA A10G"
    assert MACHINE.hardware == "Some CPU, 2 cores"


@pytest.mark.gpu
def test_a_real_card_tells_its_figures() -> None:
    if not (cards := present_gpus()):
        pytest.skip("no NVIDIA driver answers on this machine")
    uuid = cards[0].uuid
    assert cards[0].memory_mib > 1000
    assert cards[0].compute_capability >= (5, 0)
    sampler = GpuSampler([uuid])
    time.sleep(1.0)
    [use], nothing = sampler.stop()
    assert nothing is None
    assert use.uuid == uuid
    assert use.memory_mib is not None
    assert use.memory_mib > 0
    assert use.utilization_percent is not None
    assert 0 <= use.utilization_percent <= 100
    assert use.temperature_celsius_max is not None
    assert 0 < use.temperature_celsius_max < 120
