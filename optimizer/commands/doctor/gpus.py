"""NVIDIA's GPUs: the driver, what each card can do, and what keeps trials from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from optimizer.commands.doctor.checks import Unseen
from optimizer.commands.doctor.examination import CheckResult
from optimizer.configuration.hardware import LEAST_COMPUTE_CAPABILITY as LEAST_OF_EACH
from optimizer.configuration.releases import LEAST_COMPUTE_CAPABILITY, LEAST_DRIVER
from optimizer.machine.gpus import GpuState, driver_version, gpu_states

_PCI_DEVICES = Path("/sys/bus/pci/devices")
_NVIDIA = "0x10de"
_DISPLAY = "0x03"
"""Class of graphics cards, those without an outlet among them."""

_DRIVER = "NVIDIA driver"
_INSTALL = f"install NVIDIA's driver {LEAST_DRIVER} or later, then restart the machine"


@dataclass(frozen=True)
class Graphics:
    """What the driver tells.

    Attributes:
        driver: version, such as "580.82.07".
        cards: in the driver's order.
    """

    driver: str
    cards: tuple[GpuState, ...]

    @property
    def usable(self) -> tuple[GpuState, ...]:
        """Cards that trials can run on as they are."""
        return tuple(card for card in self.cards if _hindrance(card) is None)

    @property
    def driver_is_recent(self) -> bool:
        """Whether it is one that every image needs; some do with less."""
        branch = self.driver.partition(".")[0]
        return branch.isdigit() and int(branch) >= LEAST_DRIVER


def graphics() -> Graphics:
    """What the driver tells. Raises RequirementError where none answers."""
    cards = gpu_states()
    return Graphics(driver_version() or "", cards)


def cards_on_bus() -> int:
    """How many NVIDIA cards are on the PCI bus: without a driver nothing else tells."""
    devices = _PCI_DEVICES.iterdir() if _PCI_DEVICES.is_dir() else ()
    return sum(
        _says(device / "vendor", _NVIDIA) and _says(device / "class", _DISPLAY)
        for device in devices
    )


def can_have_gpus(seen: Graphics | Unseen, on_bus: int | Unseen) -> bool:
    """Whether the machine has a card that trials could run on once all else is there."""
    if isinstance(seen, Unseen):
        return not isinstance(on_bus, Unseen) and on_bus > 0
    return any(card.gpu.compute_capability >= LEAST_COMPUTE_CAPABILITY for card in seen.cards)


def findings(seen: Graphics | Unseen, on_bus: int | Unseen) -> tuple[CheckResult, ...]:
    """What was found of the driver and of every card."""
    if isinstance(seen, Unseen):
        return (_without_driver(seen, on_bus),)
    return (_driver(seen), *map(_card, range(len(seen.cards)), seen.cards))


def _without_driver(seen: Unseen, on_bus: int | Unseen) -> CheckResult:
    if seen.state == "unknown" or isinstance(on_bus, Unseen):
        return seen.finding(_DRIVER)
    if on_bus == 0:
        return CheckResult(_DRIVER, "missing", "this machine has no NVIDIA GPU")
    cards = f"{on_bus} NVIDIA card{'s' if on_bus != 1 else ''}"
    return CheckResult(_DRIVER, "missing", f"{cards} on the PCI bus, but {seen.why}", _INSTALL)


def _driver(seen: Graphics) -> CheckResult:
    if not seen.cards:
        return CheckResult(_DRIVER, "missing", f"{seen.driver}, but it has no card")
    if seen.driver_is_recent:
        return CheckResult(_DRIVER, "ok", seen.driver)
    found = (
        f"{seen.driver}; the images need {LEAST_DRIVER}, though a data-centre GPU may do with less"
    )
    return CheckResult(_DRIVER, "unknown", found, _INSTALL)


def _card(number: int, card: GpuState) -> CheckResult:
    gpu = card.gpu
    capability = gpu.compute_capability
    lacking = [
        f", no {name} (from {_version(least)} on)"
        for name, least in LEAST_OF_EACH.items()
        if capability < least
    ]
    found = f"{gpu.name}, {gpu.memory_mib} MiB, compute capability {_version(capability)}"
    found += "".join(lacking)
    part, hindrance = f"GPU {number}", _hindrance(card)
    if hindrance is None:
        return CheckResult(part, "ok", found)
    why, remedy = hindrance
    return CheckResult(part, "missing", f"{found}; {why}", remedy)


def _hindrance(card: GpuState) -> tuple[str, str | None] | None:
    """Why no trial can run on a card, and what to do about it; None where one can."""
    if card.gpu.compute_capability < LEAST_COMPUTE_CAPABILITY:
        return f"the images need {_version(LEAST_COMPUTE_CAPABILITY)}", None
    if card.mig:
        return "divided by MIG", f"nvidia-smi -i {card.gpu.uuid} -mig 0 (as root)"
    if card.pids:
        pids = ", ".join(map(str, card.pids))
        return (
            f"in use by processes {pids}",
            f"end processes {pids}, or leave it out of server.gpus",
        )
    return None


def _version(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


def _says(file: Path, beginning: str) -> bool:
    return file.read_text().startswith(beginning)
