"""What NVIDIA's management library tells of the slot's GPUs. Nothing here changes a setting."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pynvml

from optimizer.configuration.hardware import Gpu
from optimizer.errors import RequirementError
from optimizer.measurement.level import GpuUse

_SAMPLE_SECONDS = 0.2
_MIB = 2**20

_THROTTLE_REASONS = {
    "SwPowerCap": 0x4,
    "HwSlowdown": 0x8,
    "SwThermalSlowdown": 0x20,
    "HwThermalSlowdown": 0x40,
    "HwPowerBrakeSlowdown": 0x80,
}
"""NVML's nvmlClocksThrottleReason bits that hold a clock down, less those that are asked for."""


@dataclass
class _Seen:
    """Samples of one GPU."""

    handle: Any
    uuid: str
    name: str
    utilization: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    power: list[float] = field(default_factory=list)
    clock: list[float] = field(default_factory=list)
    temperature: list[float] = field(default_factory=list)
    throttle: int = 0

    def sample(self) -> None:
        handle = self.handle
        pairs: Sequence[tuple[list[float], Callable[[], float]]] = (
            (self.utilization, lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu),
            (self.memory, lambda: pynvml.nvmlDeviceGetMemoryInfo(handle).used / _MIB),
            (self.power, lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000),
            (self.clock, lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)),
            (
                self.temperature,
                lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
            ),
        )
        for samples, read in pairs:
            value = _or_none(read)
            if value is not None:
                samples.append(float(value))
        reasons = _or_none(lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
        self.throttle |= reasons or 0

    def use(self) -> GpuUse:
        mig = _or_none(lambda: pynvml.nvmlDeviceGetMigMode(self.handle)[0])
        mps = _or_none(lambda: pynvml.nvmlDeviceGetMPSComputeRunningProcesses(self.handle))
        ecc = _or_none(
            lambda: pynvml.nvmlDeviceGetTotalEccErrors(
                self.handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
            )
        )
        return GpuUse(
            uuid=self.uuid,
            name=self.name,
            utilization_percent=_mean(self.utilization),
            memory_mib=_mean(self.memory),
            power_watts=_mean(self.power),
            sm_clock_mhz=_mean(self.clock),
            temperature_celsius_max=max(self.temperature, default=None),
            throttled=tuple(n for n, bit in _THROTTLE_REASONS.items() if self.throttle & bit),
            ecc_uncorrected=ecc,
            mig=None if mig is None else bool(mig),
            mps=None if mps is None else bool(mps),
        )


class GpuSampler:
    """Samples GPUs several times a second, on a thread, from its making to `end`."""

    def __init__(self, uuids: Sequence[str]) -> None:
        self._seen, self._none = _seen(uuids)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        if self._seen:
            self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(_SAMPLE_SECONDS):
            for gpu in self._seen:
                gpu.sample()

    def end(self) -> tuple[tuple[GpuUse, ...], str | None]:
        """What was seen, and why there is nothing to see, None where there is."""
        self._over.set()
        if self._seen:
            self._thread.join()
        return tuple(gpu.use() for gpu in self._seen), self._none


def _seen(uuids: Sequence[str]) -> tuple[list[_Seen], str | None]:
    if not uuids:
        return [], "the trial runs on no GPU"
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
        names = [str(pynvml.nvmlDeviceGetName(handle)) for handle in handles]
    except pynvml.NVMLError as error:
        return [], f"NVML: {error}"
    return [_Seen(*gpu) for gpu in zip(handles, uuids, names, strict=True)], None


def present_gpus() -> tuple[Gpu, ...]:
    """The machine's GPUs in the driver's order; none where no driver answers."""
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
        return tuple(map(_gpu, handles))
    except pynvml.NVMLError:
        return ()


@dataclass(frozen=True)
class Card:
    """A GPU, and what may keep trials from it.

    Attributes:
        mig: whether it is divided into instances; None where it does not tell.
        pids: of the processes that compute on it.
    """

    gpu: Gpu
    mig: bool | None
    pids: tuple[int, ...]


def present_cards() -> tuple[Card, ...]:
    """The machine's cards in the driver's order. Raises RequirementError where none answers."""
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
        return tuple(map(_card, handles))
    except pynvml.NVMLError as error:
        raise RequirementError(f"no NVIDIA driver answers ({error})") from error


def _card(handle: Any) -> Card:
    mig = _or_none(lambda: pynvml.nvmlDeviceGetMigMode(handle)[0])
    running = _or_none(lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(handle))
    return Card(
        gpu=_gpu(handle),
        mig=None if mig is None else bool(mig),
        pids=tuple(sorted(process.pid for process in running or ())),
    )


def driver_version() -> str | None:
    """NVIDIA's driver, such as "580.82.07"; None where none answers."""
    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return None


def _gpu(handle: Any) -> Gpu:
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Gpu(
        uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
        name=str(pynvml.nvmlDeviceGetName(handle)),
        compute_capability=(major, minor),
        memory_mib=pynvml.nvmlDeviceGetMemoryInfo(handle).total // _MIB,
    )


def memory_in_use_mib(uuids: Sequence[str]) -> float | None:
    """Memory in use on the GPU that has most in use; None where no driver answers."""
    used = [
        _or_none(lambda gpu=gpu: pynvml.nvmlDeviceGetMemoryInfo(gpu.handle).used / _MIB)  # type: ignore[misc]
        for gpu in _seen(uuids)[0]
    ]
    return max((mib for mib in used if mib is not None), default=None)


def refuse_foreign_processes(uuids: Sequence[str], own_pids: Sequence[int] = ()) -> None:
    """Raise RequirementError where a process other than `own_pids` computes on one of the GPUs."""
    seen, _ = _seen(uuids)
    for gpu in seen:
        running = _or_none(
            lambda gpu=gpu: pynvml.nvmlDeviceGetComputeRunningProcesses(gpu.handle)  # type: ignore[misc]
        )
        foreign = sorted(p.pid for p in running or () if p.pid not in own_pids)
        if foreign:
            pids = ", ".join(map(str, foreign))
            raise RequirementError(
                f"{gpu.name} ({gpu.uuid}) must be free to be measured; processes on it: {pids}"
            )


def clock_advice(uuids: Sequence[str]) -> list[str]:
    """The commands that would lock each GPU's clock at its highest, for a person to run."""
    advice = []
    for gpu in _seen(uuids)[0]:
        highest = _or_none(
            lambda gpu=gpu: pynvml.nvmlDeviceGetMaxClockInfo(gpu.handle, pynvml.NVML_CLOCK_SM)  # type: ignore[misc]
        )
        if highest is not None:
            advice.append(f"nvidia-smi -i {gpu.uuid} --lock-gpu-clocks={highest}")
    return advice


def _mean(samples: list[float]) -> float | None:
    return sum(samples) / len(samples) if samples else None


def _or_none(read: Callable[[], Any]) -> Any:
    """What a card does not tell is None: every figure of NVML is missing on some card."""
    try:
        return read()
    except pynvml.NVMLError:
        return None
