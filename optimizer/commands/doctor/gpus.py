"""NVIDIA GPUs: the driver, the abilities of each GPU, and why trials cannot use it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from optimizer.commands.doctor.checks import CheckResult, NotChecked
from optimizer.configuration.hardware import LEAST_COMPUTE_CAPABILITY as LEAST_OF_EACH
from optimizer.configuration.hardware import Gpu, counted_gpus
from optimizer.configuration.releases import LEAST_COMPUTE_CAPABILITY, LEAST_DRIVER
from optimizer.machine.gpus import GpuState, driver_version, gpu_states

_PCI_DEVICES = Path("/sys/bus/pci/devices")
_NVIDIA = "0x10de"
_DISPLAY = "0x03"
"""PCI class of graphics cards, with or without a display output."""

_DRIVER = "NVIDIA driver"
_INSTALL = f"install NVIDIA's driver {LEAST_DRIVER} or later, then restart the machine"


@dataclass(frozen=True)
class Graphics:
    """The NVIDIA driver and its GPUs.

    Attributes:
        driver: version, such as "580.82.07".
        cards: in the driver's order.
    """

    driver: str
    cards: tuple[GpuState, ...]

    @property
    def usable(self) -> tuple[GpuState, ...]:
        """GPUs that trials can use, themselves or by their MIG instances."""
        return tuple(card for card in self.cards if _obstacle(card) is None)

    @property
    def usable_gpus(self) -> tuple[Gpu, ...]:
        """What a trial can have of these: a whole GPU, or a MIG instance."""
        return tuple(
            gpu
            for card in self.usable
            for gpu in ([each.gpu for each in card.instances] if card.instances else [card.gpu])
        )

    @property
    def driver_is_recent(self) -> bool:
        """Whether the driver suffices for every image; some need only an older one."""
        branch = self.driver.partition(".")[0]
        return branch.isdigit() and int(branch) >= LEAST_DRIVER


def graphics() -> Graphics:
    """Ask the driver. Raises RequirementError where none answers."""
    cards = gpu_states()
    return Graphics(driver_version() or "", cards)


def cards_on_bus() -> int:
    """Count the NVIDIA cards on the PCI bus, which needs no driver."""
    devices = _PCI_DEVICES.iterdir() if _PCI_DEVICES.is_dir() else ()
    return sum(
        _starts_with(device / "vendor", _NVIDIA) and _starts_with(device / "class", _DISPLAY)
        for device in devices
    )


def can_have_gpus(driver: Graphics | NotChecked, on_bus: int | NotChecked) -> bool:
    """Return whether the machine has a GPU that trials could use once all else is installed."""
    if isinstance(driver, NotChecked):
        return not isinstance(on_bus, NotChecked) and on_bus > 0
    return any(card.gpu.compute_capability >= LEAST_COMPUTE_CAPABILITY for card in driver.cards)


def results(driver: Graphics | NotChecked, on_bus: int | NotChecked) -> tuple[CheckResult, ...]:
    """Return the results of the driver and of every GPU."""
    if isinstance(driver, NotChecked):
        return (_without_driver(driver, on_bus),)
    cards = map(_card, range(len(driver.cards)), driver.cards)
    return (_driver(driver), *cards, *_trials_at_once(driver))


def _without_driver(driver: NotChecked, on_bus: int | NotChecked) -> CheckResult:
    if driver.state == "unknown" or isinstance(on_bus, NotChecked):
        return driver.result(_DRIVER)
    if on_bus == 0:
        return CheckResult(_DRIVER, "missing", "this machine has no NVIDIA GPU")
    cards = f"{on_bus} NVIDIA card{'s' if on_bus != 1 else ''}"
    return CheckResult(_DRIVER, "missing", f"{cards} on the PCI bus, but {driver.why}", _INSTALL)


def _driver(driver: Graphics) -> CheckResult:
    if not driver.cards:
        return CheckResult(_DRIVER, "missing", f"{driver.driver}, but it has no card")
    if driver.driver_is_recent:
        return CheckResult(_DRIVER, "ok", driver.driver)
    need = f"the images need {LEAST_DRIVER}, though a data-centre GPU may do with less"
    return CheckResult(_DRIVER, "unknown", f"{driver.driver}; {need}", _INSTALL)


def _card(number: int, card: GpuState) -> CheckResult:
    gpu = card.gpu
    capability = gpu.compute_capability
    lacking = [
        f", no {name} (from {_version(least)} on)"
        for name, least in LEAST_OF_EACH.items()
        if capability < least
    ]
    detail = f"{gpu.name}, {gpu.memory_mib} MiB, compute capability {_version(capability)}"
    detail += "".join(lacking)
    part, obstacle = f"GPU {number}", _obstacle(card)
    if card.instances and obstacle is None:
        named = ", ".join(f"{each.index} ({each.gpu.name})" for each in card.instances)
        indices = ",".join(each.index for each in card.instances)
        how = f"divided into MIG instances {named}: name them, as in run --gpus {indices}"
        return CheckResult(part, "ok", f"{detail}; {how}")
    if obstacle is None:
        return CheckResult(part, "ok", detail)
    why, remedy = obstacle
    return CheckResult(part, "missing", f"{detail}; {why}", remedy)


def _trials_at_once(driver: Graphics) -> Iterator[CheckResult]:
    """Yield how several GPUs of one model are used by one search."""
    models = [card.gpu.name for card in driver.usable if not card.instances]
    several = [model for model in models if models.count(model) > 1]
    if several:
        same = len(several) == len(driver.cards) and len(set(several)) == 1
        option = "--gpus all" if same else "--gpus with their numbers"
        detail = f"run {option} measures a configuration on each of {counted_gpus(several)}"
        yield CheckResult("trials at once", "ok", detail)


def _obstacle(card: GpuState) -> tuple[str, str | None] | None:
    """Return why trials cannot use a GPU, and what to do about it; None where they can."""
    if card.gpu.compute_capability < LEAST_COMPUTE_CAPABILITY:
        return f"the images need {_version(LEAST_COMPUTE_CAPABILITY)}", None
    if card.mig and not card.instances:
        remedy = f"make instances with nvidia-smi mig -cgi, or nvidia-smi -i {card.gpu.uuid} -mig 0"
        return "divided by MIG, without an instance", f"{remedy} (as root)"
    if card.pids:
        pids = ", ".join(map(str, card.pids))
        return (
            f"in use by processes {pids}",
            f"end processes {pids}, or leave it out of server.gpus",
        )
    return None


def _version(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


def _starts_with(file: Path, prefix: str) -> bool:
    return file.read_text().startswith(prefix)
