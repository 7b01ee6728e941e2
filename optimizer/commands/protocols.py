"""How long load levels take, by the settings of a space and its latency limits."""

from __future__ import annotations

from dataclasses import replace

from optimizer.errors import UsageError
from optimizer.load.capacity import CapacityProtocol
from optimizer.machine.slots import Slot
from optimizer.search.evaluator import Protocols
from optimizer.space_file.reader import MeasurementSettings, Space
from optimizer.workload.arrivals import Bursts
from optimizer.workload.streams import Workload

_TIMEOUT_LIMITS = 5
_SHORTEST_TIMEOUT_SECONDS = 2.0
"""A request times out after this many latency limits, and not before this many seconds."""

_FIRST_CHECK = 0.6
"""The load budget suffices for a first level of this share of `check_seconds`: where a machine
needs long levels, there is time for one."""

_LEVELS_OF_PERIODS = 3
"""Levels of whole periods of bursts for which the load budget suffices."""

_CONFIRM_SECONDS = 20.0
_GPU_CONFIRM_SECONDS = 300.0
"""In each of two rounds: short levels flatter a GPU that has not warmed up."""


def protocol_of(
    settings: MeasurementSettings, workload: Workload, extra_limits_ms: tuple[float, ...] = ()
) -> CapacityProtocol:
    """Return the protocol of a capacity search within a workload's limits and further ones."""
    limits_ms = [stream.limit.latency_ms for stream in workload.streams]
    longest_seconds = max([*limits_ms, *extra_limits_ms]) / 1000
    protocol = CapacityProtocol(
        saturation_seconds=settings.saturation_seconds,
        check_seconds=settings.check_seconds,
        warmup_seconds=settings.warmup_seconds,
        check_timeout_seconds=max(_SHORTEST_TIMEOUT_SECONDS, _TIMEOUT_LIMITS * longest_seconds),
    )
    levels = protocol.shortest_saturation_seconds, _FIRST_CHECK * protocol.check_seconds
    least = sum(protocol.warmup_seconds + seconds for seconds in levels)
    protocol = replace(protocol, load_seconds=max(protocol.load_seconds, least))
    return protocol if workload.bursts is None else _with_bursts(protocol, workload.bursts)


def _with_bursts(protocol: CapacityProtocol, bursts: Bursts) -> CapacityProtocol:
    """Return the protocol with levels of whole periods, and a warm-up that a burst fits into."""
    protocol = replace(
        protocol,
        period_seconds=bursts.period_seconds,
        warmup_seconds=max(protocol.warmup_seconds, bursts.burst_seconds),
    )
    levels = (
        protocol.shortest_saturation_seconds,
        *[protocol.whole_periods(protocol.check_seconds)] * _LEVELS_OF_PERIODS,
    )
    load_seconds = sum(protocol.warmup_seconds + seconds for seconds in levels)
    return replace(protocol, load_seconds=max(protocol.load_seconds, load_seconds))


def search_protocol(space: Space, extra_limits_ms: tuple[float, ...] = ()) -> CapacityProtocol:
    """Return the protocol of the search phase."""
    return protocol_of(space.measurement, space.workload, extra_limits_ms)


def protocols(space: Space, slot: Slot, extra_limits_ms: tuple[float, ...] = ()) -> Protocols:
    """Return the protocols of the search and the confirm phase."""
    search = search_protocol(space, extra_limits_ms)
    default = _GPU_CONFIRM_SECONDS if slot.gpu_uuids else _CONFIRM_SECONDS
    confirm_seconds = space.measurement.confirm_seconds or default
    return Protocols(search, replace(search, check_seconds=confirm_seconds))


def require_one_limit(workload: Workload, option: str) -> None:
    """Check that all streams share one latency limit, which `option` replaces by others.

    Raises:
        UsageError: naming `option`, where they do not.
    """
    if len({stream.limit.latency_ms for stream in workload.streams}) > 1:
        limits = ", ".join(f"{each.name} {each.limit.latency_ms:g} ms" for each in workload.streams)
        raise UsageError(
            f"{option}: must be left out where streams have limits of their own; got {limits}"
        )
