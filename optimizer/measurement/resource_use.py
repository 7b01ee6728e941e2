"""Resources that the load generator, the machine and its GPUs used during a load level."""

from __future__ import annotations

from dataclasses import dataclass

_LEAST_CORES_LEFT = 0.5
"""Cores that server and client are taken to have had, however much other processes used."""


@dataclass(frozen=True, slots=True)
class ClientUse:
    """Resources and lag of the load generator over a level.

    Attributes:
        processes: number of client processes.
        cpu_seconds, memory_mib: process-CPU time, warm-up included, and resident memory of all.
        lag_ms: 99th percentile of the delay between due time and sending.
        longest_lag_ms: lag above which the level is void; None where lag does not matter.
        realtime: whether the processes had real-time priority.
    """

    processes: int
    cpu_seconds: float
    memory_mib: float
    lag_ms: float
    longest_lag_ms: float | None = None
    realtime: bool = False

    @property
    def kept_up(self) -> bool:
        """Whether the lag is short enough for the level to be valid."""
        return self.longest_lag_ms is None or self.lag_ms <= self.longest_lag_ms


@dataclass(frozen=True, slots=True)
class GpuUse:
    """One GPU over a level: means, unless the name says otherwise; None where NVML has no value.

    Attributes:
        throttled: reasons for which the clock was reduced in 5 % of the samples or more, and in
            more than one, by NVML's names.
        ecc_uncorrected: memory errors since the driver was loaded.
        mig, mps: whether the card is divided, or shared by processes.
    """

    uuid: str
    name: str
    utilization_percent: float | None
    memory_mib: float | None
    power_watts: float | None
    sm_clock_mhz: float | None
    temperature_celsius_max: float | None
    throttled: tuple[str, ...] = ()
    ecc_uncorrected: int | None = None
    mig: bool | None = None
    mps: bool | None = None

    @property
    def overheated(self) -> bool:
        """Whether the card reduced its clock because of its temperature."""
        return any("Thermal" in reason for reason in self.throttled)


@dataclass(frozen=True, slots=True)
class MachineUse:
    """State of the machine during a level, warm-up included.

    Attributes:
        cores: number of cores of the slot, for server and client.
        server_cpu_seconds: process-CPU time of the server and its models, None if unknown.
        server_memory_mib: memory of the server and its models at the end, None if unknown.
        foreign_cores: mean number of the slot's cores that other processes or the hypervisor
            (steal) used; None where the server's own use is unknown.
        gpus, no_gpu: the slot's GPUs, or why there are no figures of them.
        triton: gauges of the server's own metrics endpoint by name, summed over devices.
        throttled_seconds: time for which a CPU quota withheld cores; None without a quota.
    """

    seconds: float
    cores: int
    server_cpu_seconds: float | None
    server_memory_mib: float | None
    foreign_cores: float | None
    gpus: tuple[GpuUse, ...] = ()
    no_gpu: str | None = None
    triton: tuple[tuple[str, float], ...] = ()
    throttled_seconds: float | None = None

    @property
    def slowdown(self) -> float:
        """Factor by which other processes may have slowed server and client down, 1 if by nothing.

        It is the real one where all cores were needed; where some were idle, it is less.
        """
        if self.foreign_cores is None:
            return 1.0
        left = max(_LEAST_CORES_LEFT, self.cores - self.foreign_cores)
        return max(1.0, self.cores / left)
