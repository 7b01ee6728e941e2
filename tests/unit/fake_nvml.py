"""A fake NVML: cards that tell what a test says. No machine of ours has a card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

UUID = "GPU-1"


@dataclass
class Card:
    """One card; a figure that is None is not supported by it."""

    name: str = "NVIDIA T4"
    capability: tuple[int, int] = (7, 5)
    total_mib: int = 15360
    utilization: int | None = 80
    memory: int | None = 3 * 2**30
    power: int | None = 65_000
    clock: int | None = 1350
    highest_clock: int | None = 1590
    temperature: int | None = 71
    reasons: int | None = 0
    ecc: int | None = 0
    mig: int | None = 0
    mps: tuple[int, ...] | None = ()
    pids: tuple[int, ...] | None = ()
    instances: Sequence[str] = ()  # UUIDs of its MIG devices


def install_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a driver."""

    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)


class _Devices:
    """The cards, and the MIG devices of those that are divided; a handle is the card itself."""

    def __init__(self, cards: dict[str, Card]) -> None:
        self._cards = cards
        self._divided = {
            uuid: replace(card, name=f"{card.name} MIG 1g.5gb", total_mib=4864, mig=None)
            for card in cards.values()
            for uuid in card.instances
        }

    def uuid_of(self, card: Card) -> str:
        every = {**self._cards, **self._divided}
        return next(uuid for uuid, own in every.items() if own is card)

    def bus_id_of(self, card: Card) -> str:
        number = next(n for n, own in enumerate(self._cards.values()) if own is card)
        return f"00000000:{number + 16:02X}:00.0"

    def mig_device(self, card: Card, number: int) -> Card:
        if number >= len(card.instances):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return self._divided[card.instances[number]]


def install(
    monkeypatch: pytest.MonkeyPatch, cards: dict[str, Card], driver: str = "580.82.07"
) -> None:
    """Answer NVML's calls from `cards`, by UUID."""

    def told(value: Any) -> Any:
        if value is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return value

    def by_uuid(uuid: str) -> Card:
        if uuid not in cards:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return cards[uuid]

    devices = _Devices(cards)

    def running(pids: tuple[int, ...] | None) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid) for pid in told(pids)]

    calls: dict[str, Callable[..., Any]] = {
        "nvmlInit": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: driver,
        "nvmlDeviceGetCount": lambda: len(cards),
        "nvmlDeviceGetHandleByIndex": lambda number: list(cards.values())[number],
        "nvmlDeviceGetHandleByUUID": by_uuid,
        "nvmlDeviceGetUUID": devices.uuid_of,
        "nvmlDeviceGetPciInfo": lambda card: SimpleNamespace(busId=devices.bus_id_of(card)),
        "nvmlDeviceGetMaxMigDeviceCount": lambda card: 7,
        "nvmlDeviceGetMigDeviceHandleByIndex": devices.mig_device,
        "nvmlDeviceGetCudaComputeCapability": lambda card: card.capability,
        "nvmlDeviceGetName": lambda card: card.name,
        "nvmlDeviceGetUtilizationRates": lambda c: SimpleNamespace(gpu=told(c.utilization)),
        "nvmlDeviceGetMemoryInfo": lambda c: SimpleNamespace(
            used=told(c.memory), total=c.total_mib * 2**20
        ),
        "nvmlDeviceGetPowerUsage": lambda c: told(c.power),
        "nvmlDeviceGetClockInfo": lambda c, _: told(c.clock),
        "nvmlDeviceGetMaxClockInfo": lambda c, _: told(c.highest_clock),
        "nvmlDeviceGetTemperature": lambda c, _: told(c.temperature),
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda c: told(c.reasons),
        "nvmlDeviceGetTotalEccErrors": lambda c, _, __: told(c.ecc),
        "nvmlDeviceGetMigMode": lambda c: [told(c.mig), 0],
        "nvmlDeviceGetMPSComputeRunningProcesses": lambda c: running(c.mps),
        "nvmlDeviceGetComputeRunningProcesses": lambda c: running(c.pids),
    }
    for name, call in calls.items():
        monkeypatch.setattr(pynvml, name, call)
