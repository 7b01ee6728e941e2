"""Read NVIDIA's management library (NVML). Nothing here changes a setting of a GPU."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pynvml

from optimizer.configuration.hardware import Gpu
from optimizer.errors import RequirementError
from optimizer.machine.process_names import process_text
from optimizer.measurement.resource_use import GpuUse

_SAMPLE_SECONDS = 0.2
_THROTTLED_SHARE = 0.05
_RELEASE_SECONDS = 5.0
"""A process that was killed keeps its GPU until the driver has freed its memory."""

_MIB = 2**20

_THROTTLE_REASONS = {
    "SwPowerCap": 0x4,
    "HwSlowdown": 0x8,
    "SwThermalSlowdown": 0x20,
    "HwThermalSlowdown": 0x40,
    "HwPowerBrakeSlowdown": 0x80,
}
"""NVML's nvmlClocksThrottleReason bits that reduce a clock, without those of user settings."""


@dataclass
class _GpuSamples:
    """Samples of one GPU."""

    handle: Any
    uuid: str
    name: str
    utilization: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    power: list[float] = field(default_factory=list)
    clock: list[float] = field(default_factory=list)
    temperature: list[float] = field(default_factory=list)
    throttle: list[int] = field(default_factory=list)

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
        reasons = _or_none(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
        self.throttle.append(reasons or 0)

    def use(self) -> GpuUse:
        mps = _or_none(pynvml.nvmlDeviceGetMPSComputeRunningProcesses, self.handle)
        return GpuUse(
            uuid=self.uuid,
            name=self.name,
            utilization_percent=_mean(self.utilization),
            memory_mib=_mean(self.memory),
            power_watts=_mean(self.power),
            sm_clock_mhz=_mean(self.clock),
            temperature_celsius_max=max(self.temperature, default=None),
            throttled=tuple(n for n, bit in _THROTTLE_REASONS.items() if self._throttled_by(bit)),
            ecc_uncorrected=_or_none(
                pynvml.nvmlDeviceGetTotalEccErrors,
                self.handle,
                pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
                pynvml.NVML_VOLATILE_ECC,
            ),
            mig=_mig(self.handle),
            mps=None if mps is None else bool(mps),
        )

    def _throttled_by(self, bit: int) -> bool:
        """Return whether a reason held for a share of the time, and not for one moment."""
        samples = sum(bool(reasons & bit) for reasons in self.throttle)
        return samples > 1 and samples >= _THROTTLED_SHARE * len(self.throttle)


class GpuSampler:
    """Samples GPUs several times a second, on a thread, from its creation to `stop`."""

    def __init__(self, uuids: Sequence[str]) -> None:
        self._gpus, self._no_gpu_reason = _open(uuids)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        if self._gpus:
            self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(_SAMPLE_SECONDS):
            for gpu in self._gpus:
                gpu.sample()

    def stop(self) -> tuple[tuple[GpuUse, ...], str | None]:
        """Return the use of each GPU, and why there are none, None where there are."""
        self._stopped.set()
        if self._gpus:
            self._thread.join()
        return tuple(gpu.use() for gpu in self._gpus), self._no_gpu_reason


def _open(uuids: Sequence[str]) -> tuple[list[_GpuSamples], str | None]:
    """Return the GPUs, and the reason where there are none."""
    if not uuids:
        return [], "the trial runs on no GPU"
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
        names = [str(pynvml.nvmlDeviceGetName(handle)) for handle in handles]
    except pynvml.NVMLError as error:
        return [], f"NVML: {error}"
    return [_GpuSamples(*gpu) for gpu in zip(handles, uuids, names, strict=True)], None


def _handles() -> list[Any]:
    """Return the handles of the machine's GPUs in the driver's order. Raises NVMLError."""
    pynvml.nvmlInit()
    return [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]


def present_gpus() -> tuple[Gpu, ...]:
    """Return the machine's GPUs in the driver's order; none without a driver."""
    try:
        return tuple(map(_gpu, _handles()))
    except pynvml.NVMLError:
        return ()


@dataclass(frozen=True)
class GpuDevice:
    """A GPU that a server can have for itself: a whole one, or a MIG instance.

    Attributes:
        index: as nvidia-smi lists it, such as "0"; "0:1" for MIG device 1 of GPU 0.
        pci_address: as sysfs names it, such as "0000:3b:00.0".
    """

    gpu: Gpu
    index: str
    pci_address: str


def gpu_devices() -> tuple[GpuDevice, ...]:
    """Return the GPUs in the driver's order, and the MIG instances of those that are divided.

    Raises:
        RequirementError: without a driver.
    """
    try:
        return tuple(
            device
            for number, handle in enumerate(_handles())
            for device in _devices(number, handle)
        )
    except pynvml.NVMLError as error:
        raise RequirementError(f"no NVIDIA driver answers ({error})") from error


def _devices(number: int, handle: Any) -> Iterator[GpuDevice]:
    domain, _, address = pynvml.nvmlDeviceGetPciInfo(handle).busId.lower().partition(":")
    pci_address = f"{int(domain, 16):04x}:{address}"
    whole = _gpu(handle)
    if not _mig(handle):
        yield GpuDevice(whole, str(number), pci_address)
        return
    for place in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        instance = _or_none(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, place)
        if instance is not None:
            gpu = replace(
                whole,
                uuid=str(pynvml.nvmlDeviceGetUUID(instance)),
                name=str(pynvml.nvmlDeviceGetName(instance)),
                memory_mib=pynvml.nvmlDeviceGetMemoryInfo(instance).total // _MIB,
            )
            yield GpuDevice(gpu, f"{number}:{place}", pci_address)


@dataclass(frozen=True)
class GpuState:
    """A GPU, and what may keep trials from using it.

    Attributes:
        mig: whether it is divided into MIG instances; None where it does not tell.
        pids: processes that compute on it.
        instances: its MIG instances.
    """

    gpu: Gpu
    mig: bool | None
    pids: tuple[int, ...]
    instances: tuple[GpuDevice, ...] = ()


def gpu_states() -> tuple[GpuState, ...]:
    """Return the machine's GPUs in the driver's order. Raises RequirementError without a driver."""
    try:
        return tuple(
            GpuState(
                _gpu(handle),
                _mig(handle),
                tuple(sorted(_compute_pids(handle))),
                tuple(_devices(number, handle)) if _mig(handle) else (),
            )
            for number, handle in enumerate(_handles())
        )
    except pynvml.NVMLError as error:
        raise RequirementError(f"no NVIDIA driver answers ({error})") from error


def driver_version() -> str | None:
    """Return the version of NVIDIA's driver, such as "580.82.07"; None without a driver."""
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
    """Return the memory in use on the fullest of the GPUs; None without a driver."""
    infos = [_or_none(pynvml.nvmlDeviceGetMemoryInfo, gpu.handle) for gpu in _open(uuids)[0]]
    return max((info.used / _MIB for info in infos if info is not None), default=None)


def foreign_processes(
    uuids: Sequence[str], own_pids: Sequence[int] = ()
) -> Mapping[str, tuple[int, ...]]:
    """Return the processes other than `own_pids` that compute on GPUs, by "NAME (UUID)"."""
    foreign = {
        f"{gpu.name} ({gpu.uuid})": tuple(sorted({*_compute_pids(gpu.handle)} - {*own_pids}))
        for gpu in _open(uuids)[0]
    }
    return {gpu: pids for gpu, pids in foreign.items() if pids}


def refuse_foreign_processes(uuids: Sequence[str], own_pids: Sequence[int] = ()) -> None:
    """Raise RequirementError where a process other than `own_pids` computes on one of the GPUs.

    One that is about to end, such as that of a run that was killed, is waited for.
    """
    end = time.monotonic() + _RELEASE_SECONDS
    while (foreign := foreign_processes(uuids, own_pids)) and time.monotonic() < end:
        time.sleep(_SAMPLE_SECONDS)
    for gpu, pids in foreign.items():
        names = ", ".join(map(process_text, pids))
        raise RequirementError(f"{gpu} must be free to be measured; on it: {names}")


def clock_advice(uuids: Sequence[str]) -> list[str]:
    """Return the commands that lock each GPU's clock at its maximum, for a person to run."""
    advice = []
    for gpu in _open(uuids)[0]:
        highest = _or_none(pynvml.nvmlDeviceGetMaxClockInfo, gpu.handle, pynvml.NVML_CLOCK_SM)
        if highest is not None:
            advice.append(f"nvidia-smi -i {gpu.uuid} --lock-gpu-clocks={highest}")
    return advice


def _compute_pids(handle: Any) -> list[int]:
    processes = _or_none(pynvml.nvmlDeviceGetComputeRunningProcesses, handle)
    return [process.pid for process in processes or ()]


def _mig(handle: Any) -> bool | None:
    modes = _or_none(pynvml.nvmlDeviceGetMigMode, handle)
    return None if modes is None else bool(modes[0])


def _mean(samples: list[float]) -> float | None:
    return sum(samples) / len(samples) if samples else None


def _or_none(read: Callable[..., Any], *arguments: object) -> Any:
    """Return what NVML tells; every figure is missing on some GPU, which gives None."""
    try:
        return read(*arguments)
    except pynvml.NVMLError:
        return None
