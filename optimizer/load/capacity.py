"""How much load a configuration serves within its limits: the short protocol.

Saturate with a closed loop, check once with independent arrivals just below it, and only where
that fails look for the limit by bisection. Closed-loop users overstate what independent arrivals
can be served, so saturation alone is never a capacity. Pure control: levels are run by a callable.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from optimizer.errors import LoadTestFailure
from optimizer.load.plan import ClosedLoop, LevelPlan, OpenLoop
from optimizer.measurement import LoadLevel, Measurement, rate_interval
from optimizer.workload import Workload

RunLevel = Callable[[LevelPlan], LoadLevel]
"""Runs one level. Whoever composes it adds the server's statistics to the level."""

Verdict = Literal["ok", "infeasible", "bounded"]

_SHARES = (0.95, 0.80, 0.60, 0.40, 0.20)
"""Shares of saturation that are tried from the top until one meets the limits."""

_FLOOR_SHARE = 0.05
_FLOOR_PER_SECOND = 1.0
_LONGEST_CHECK = 3.0
"""A check is stretched to collect its requests up to this many times its usual length."""


@dataclass(frozen=True)
class CapacityProtocol:
    """How long levels take and how closely the capacity is located.

    Attributes:
        saturation_timeout_seconds: how long a request may take while the server is saturated.
        check_timeout_seconds: how long it may take otherwise. Some times the latency limit is
            enough: what is later than that has missed it, and waiting for it only takes time.
        check_requests: an open-loop level lasts until so many are due, if that is affordable.
        resolution: bisection ends when the bracket is narrower than this share of saturation.
    """

    saturation_seconds: float = 8.0
    check_seconds: float = 8.0
    warmup_seconds: float = 1.0
    saturation_timeout_seconds: float = 30.0
    check_timeout_seconds: float = 10.0
    check_requests: int = 200
    resolution: float = 0.05


@dataclass(frozen=True)
class CapacityResult:
    """What the search for the capacity found.

    Attributes:
        verdict: "ok": `measurement` certifies a load. "infeasible": not even the floor load met
            the limits. "bounded": worse than what was asked to beat, by saturation alone; nothing
            was certified, and the capacity is at most `measurement.load_factor_high`.
        excess: of the level at capacity (<= 0), or of the floor load (> 0); latency at the limit's
            percentile relative to the limit minus 1, or the share of errors if that is larger.
            None where no open-loop level was run ("bounded").
    """

    verdict: Verdict
    measurement: Measurement
    excess: float | None

    @property
    def saturation(self) -> LoadLevel:
        """The closed-loop level that every search begins with."""
        return self.measurement.levels[0]


def find_capacity(
    run: RunLevel,
    workload: Workload,
    protocol: CapacityProtocol,
    concurrency: int,
    worse_below: float | None = None,
) -> CapacityResult:
    """Find the largest load factor that meets every limit.

    Args:
        run: runs one level.
        workload: the streams; its demand is load factor 1.0.
        protocol: how long levels take.
        concurrency: requests kept outstanding to saturate the server; enough to fill every
            instance's batches twice over.
        worse_below: load factor under which the configuration is not wanted, None to find its
            capacity in any case.

    Raises:
        LoadTestFailure: when every request failed, under saturation or at the floor load.
    """
    return CapacitySearch(run, workload, protocol).find(concurrency, worse_below)


class CapacitySearch:
    """The levels visited so far, what they mean, and which comes next."""

    def __init__(self, run: RunLevel, workload: Workload, protocol: CapacityProtocol) -> None:
        """Begin with no level visited."""
        self._run = run
        self._demand = workload.demand_per_second
        self._protocol = protocol
        self._levels: list[LoadLevel] = []

    def find(self, concurrency: int, worse_below: float | None) -> CapacityResult:
        """See `find_capacity`."""
        saturation, upper = self._saturate(concurrency)
        if worse_below is not None and upper < worse_below:
            return self._bounded(upper, worse_below)
        loads = self._descending_loads(saturation)
        if self.passes(loads[0]):
            ended = f"met the limits at {loads[0] * self._demand:.1f}/s, next to saturation"
            return self.ok(loads[0], upper, ended)
        for failed, load in pairwise(loads):
            if self.passes(load):
                return self._bisect(load, failed, saturation)
        return self.infeasible(loads[-1])

    def _saturate(self, concurrency: int) -> tuple[float, float]:
        """Saturation's load factor and its upper bound."""
        protocol = self._protocol
        load, timeout = ClosedLoop(concurrency), protocol.saturation_timeout_seconds
        level = self._level(load, protocol.saturation_seconds, timeout)
        _refuse_if_all_failed(level)
        counts = level.completed_per_slice
        _, _, high_per_second = rate_interval(counts, level.seconds / len(counts))
        return level.load_factor, high_per_second / self._demand

    def _descending_loads(self, saturation: float) -> list[float]:
        """What to try from the top; the floor load comes last."""
        floor = max(_FLOOR_SHARE * saturation, _FLOOR_PER_SECOND / self._demand)
        return [*(share * saturation for share in _SHARES if share * saturation > floor), floor]

    def _bisect(self, passed: float, failed: float, saturation: float) -> CapacityResult:
        """Narrow the bracket; the highest load that passed is the capacity."""
        why = why_missed(self._levels[-2])
        while failed - passed > self._protocol.resolution * saturation:
            middle = (passed + failed) / 2
            if self.passes(middle):
                passed = middle
            else:
                failed = middle
                why = why_missed(self._levels[-1])
        return self.ok(passed, failed, f"at {failed * self._demand:.1f}/s: {why}")

    def passes(self, load_factor: float) -> bool:
        """Run an open-loop level and say whether it is held."""
        protocol = self._protocol
        wanted = protocol.check_requests / (load_factor * self._demand)
        longest = protocol.check_seconds * _LONGEST_CHECK
        seconds = max(protocol.check_seconds, min(wanted, longest))
        level = self._level(OpenLoop(load_factor), seconds, protocol.check_timeout_seconds)
        return why_missed(level) is None

    def _level(self, load: ClosedLoop | OpenLoop, seconds: float, timeout: float) -> LoadLevel:
        level = self._run(LevelPlan(load, self._protocol.warmup_seconds, seconds, timeout))
        self._levels.append(level)
        return level

    def ok(self, load_factor: float, high: float | None, ended: str) -> CapacityResult:
        """Certify a load that passed; more than `high` is too much, where that is known."""
        measurement = self._measurement(load_factor, high, ended)
        level = measurement.level_at_capacity
        assert level is not None
        return CapacityResult("ok", measurement, _excess(level))

    def infeasible(self, floor: float) -> CapacityResult:
        """Give up after the last level, at the load factor `floor`, did not pass.

        Raises:
            LoadTestFailure: when nothing at all was answered at that load.
        """
        level = self._levels[-1]
        _refuse_if_all_failed(level)
        ended = f"even at {floor * self._demand:.1f}/s: {why_missed(level)}"
        return CapacityResult("infeasible", self._measurement(0.0, floor, ended), _excess(level))

    def _bounded(self, upper: float, worse_below: float) -> CapacityResult:
        ended = (
            f"saturates at no more than {upper * self._demand:.1f}/s, "
            f"and {worse_below * self._demand:.1f}/s are needed to be cheaper"
        )
        return CapacityResult("bounded", self._measurement(0.0, upper, ended), None)

    def _measurement(self, load_factor: float, high: float | None, ended: str) -> Measurement:
        return Measurement(
            levels=tuple(self._levels),
            load_factor=load_factor,
            load_factor_low=load_factor,
            load_factor_high=high,
            demand_per_second=self._demand,
            ended=ended,
        )


def _refuse_if_all_failed(level: LoadLevel) -> None:
    if level.errors == _sent(level):
        raise LoadTestFailure(f"every request failed: {_first_error(level)}")


def why_missed(level: LoadLevel) -> str | None:
    """Why an open-loop level is more than the server can take, None where it is not."""
    if level.errors:
        return f"{level.errors} of {_sent(level)} requests failed: {_first_error(level)}"
    if not level.meets_limits:
        worst = max(level.streams, key=lambda stream: stream.excess)
        latency = worst.latency_ms(worst.limit_percentile)
        limit = f"p{worst.limit_percentile:g} of {worst.name} {latency:.1f} ms"
        return f"{limit}, over the limit of {worst.limit_ms:g} ms"
    if _backlog_grew(level):
        return f"{_backlog_growth(level):.0f} requests more were waiting after {level.seconds:g} s"
    return None


def _excess(level: LoadLevel) -> float:
    """Above 0 exactly where `why_missed` has a reason."""
    failed = level.errors / _sent(level)
    waiting = _backlog_growth(level) / _sent(level) if _backlog_grew(level) else 0.0
    return max(level.excess, failed or -1.0, waiting or -1.0)


def _backlog_growth(level: LoadLevel) -> float:
    """Requests that came into the window less good replies that left it."""
    offered = sum(stream.offered_per_second for stream in level.streams)
    return (offered - level.achieved_per_second) * level.seconds


def _backlog_grew(level: LoadLevel) -> bool:
    """Whether the backlog grew by more than the randomness of arrivals explains (two sigma).

    A lax latency limit is met by an overloaded server until its queue has grown long enough.
    """
    return _backlog_growth(level) > 2 * math.sqrt(_sent(level))


def _sent(level: LoadLevel) -> int:
    return sum(stream.sent for stream in level.streams)


def _first_error(level: LoadLevel) -> str | None:
    return next((s.first_error for s in level.streams if s.first_error is not None), None)
