"""How much load a configuration serves within its limits.

Saturate with a closed loop; check with independent arrivals just below it; where that fails, visit
loads where latency is thought to cross the limit until that is known closely enough or the load
budget is spent. Closed-loop users overstate what independent arrivals can be served, so saturation
alone is never a capacity. Pure control: levels are run by a callable.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from optimizer.errors import LoadTestFailure
from optimizer.load.knee import NORMAL_QUANTILE, Knee, Point, find_knee
from optimizer.load.plan import ClosedLoop, LevelPlan, OpenLoop, StoppingRule
from optimizer.load.stopping import LateFraction, RateSettled
from optimizer.measurement import LoadLevel, Measurement, StreamLevel, rate_interval
from optimizer.workload import Workload

RunLevel = Callable[[LevelPlan], LoadLevel]
"""Runs one level. Whoever composes it adds the server's statistics to the level."""

Verdict = Literal["ok", "infeasible", "bounded"]

_HIGHEST_SHARE = 0.95
"""Of saturation: above, a queue takes longer to settle than a level lasts."""

_FLOOR_SHARE = 0.05
_FLOOR_PER_SECOND = 1.0
_MOST_LEVELS = 12
_LEAST_SD = 0.01
_FAILING = math.log(1.5)
"""Log latency over the limit that stands for a level that fails by errors, backlog or lag."""

_LONGEST_LAG = 0.05
_LAG_FLOOR_MS = 2.0
"""A level is void where the client's p99 lag is above 5 % of the shortest limit, and above this."""


@dataclass(frozen=True)
class CapacityProtocol:
    """How long levels take and how closely the capacity is located.

    Attributes:
        saturation_seconds: at most; it ends when the rate is known closely enough.
        check_seconds: of an open-loop level, at most, unless it must be stretched for its requests.
        saturation_timeout_seconds: how long a request may take while the server is saturated.
        check_timeout_seconds: how long it may take otherwise. Some times the latency limit is
            enough: what is later than that has missed it, and waiting for it only takes time.
        check_requests: an open-loop level lasts until so many are due, if that is affordable.
        load_seconds, load_requests: the search ends when it has spent so much time under load, or
            so many requests at the rate of saturation, whichever takes longer.
        resolution: it ends before when the interval's half width is this share of the capacity.
    """

    saturation_seconds: float = 8.0
    check_seconds: float = 8.0
    warmup_seconds: float = 1.0
    saturation_timeout_seconds: float = 30.0
    check_timeout_seconds: float = 10.0
    check_requests: int = 200
    load_seconds: float = 19.0
    load_requests: int = 950
    resolution: float = 0.03


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
        self._workload = workload
        self._demand = workload.demand_per_second
        self._protocol = protocol
        self._levels: list[LoadLevel] = []

    def find(self, concurrency: int, worse_below: float | None) -> CapacityResult:
        """See `find_capacity`."""
        saturation, upper = self._saturate(concurrency)
        if worse_below is not None and upper < worse_below:
            return self._bounded(upper, worse_below)
        top = _HIGHEST_SHARE * saturation
        if _met_with_ease(self.level_at(top)):
            ended = f"met the limits at {top * self._demand:.1f}/s, next to saturation"
            return self.ok(top, top, upper, ended)
        return self._approach(saturation, upper)

    def _saturate(self, concurrency: int) -> tuple[float, float]:
        """Saturation's load factor and its upper bound."""
        protocol = self._protocol
        load, timeout = ClosedLoop(concurrency), protocol.saturation_timeout_seconds
        stop = RateSettled(
            protocol.warmup_seconds, protocol.saturation_seconds / 4, protocol.resolution / 2
        )
        level = self._level(load, protocol.saturation_seconds, timeout, stop)
        _refuse_if_all_failed(level)
        counts = [part.completed for part in level.slices]
        _, _, high_per_second = rate_interval(counts, level.seconds / len(counts))
        return level.load_factor, high_per_second / self._demand

    def _approach(self, saturation: float, upper: float) -> CapacityResult:
        """Visit loads near the limit until the capacity is known or the budget is spent."""
        floor = self._floor(saturation)
        while True:
            knee = self._knee(saturation)
            capacity = min(knee.share, _HIGHEST_SHARE) * saturation
            most = len(self._levels) >= _MOST_LEVELS
            spent = most or self._left(saturation) <= 0
            if self._certified(capacity) and knee.half_width <= self._protocol.resolution:
                return self._estimated(knee, saturation, upper, f"known to {knee.half_width:.1%}")
            if spent and self._held():
                return self._estimated(knee, saturation, upper, "its load time is spent")
            if most:
                return self.infeasible(self._levels[-1].load_factor)
            load = max(floor, self._next_load(capacity, floor))
            level = self.level_at(load, self._left(saturation))
            if load <= floor and why_missed(level) is not None:
                return self.infeasible(floor)

    def _floor(self, saturation: float) -> float:
        """The least load that is tried; below it a configuration is of no use."""
        return max(_FLOOR_SHARE * saturation, _FLOOR_PER_SECOND / self._demand)

    def _knee(self, saturation: float) -> Knee:
        return find_knee([_point(x, saturation) for x in self._open_loop()])

    def _open_loop(self) -> list[LoadLevel]:
        return [level for level in self._levels if level.kind == "open_loop"]

    def _held(self) -> list[float]:
        """Loads at which the limits were met."""
        return [x.load_factor for x in self._open_loop() if why_missed(x) is None]

    def _certified(self, capacity: float) -> bool:
        """Whether the limits were met at no more than this load."""
        return min(self._held(), default=math.inf) <= capacity

    def _left(self, saturation: float) -> float:
        """Seconds of load that may still be spent."""
        protocol = self._protocol
        rate = saturation * self._demand
        spent = sum(protocol.warmup_seconds + level.seconds for level in self._levels)
        return max(protocol.load_seconds, protocol.load_requests / rate) - spent

    def _next_load(self, capacity: float, floor: float) -> float:
        """The estimate itself, kept between what is proven to be too little and too much.

        Where nothing has met the limits yet, a little less each time.
        """
        missed = [x.load_factor for x in self._open_loop() if x.verdict == "infeasible"]
        met = [x.load_factor for x in self._open_loop() if x.verdict == "feasible"]
        low, high = max(met, default=floor), min(missed, default=math.inf)
        if not self._held():
            tried = min(x.load_factor for x in self._open_loop())
            return min(capacity, 0.9 * tried)
        if low < capacity < high:
            return capacity
        return (low + high) / 2 if math.isfinite(high) and low < high else capacity

    def _estimated(self, knee: Knee, saturation: float, upper: float, why: str) -> CapacityResult:
        """What the knee and the proven levels say together."""
        missed = [x for x in self._open_loop() if why_missed(x) is not None]
        capacity = max(min(self._held()), min(knee.share, _HIGHEST_SHARE) * saturation)
        # However little the levels tell, a load that met the limits is above the floor.
        low = max(self._floor(saturation), min(knee.low, _HIGHEST_SHARE) * saturation)
        high = min(upper, max(knee.high * saturation, capacity))
        if missed:
            why += f"; at {missed[-1].load_factor * self._demand:.1f}/s: {why_missed(missed[-1])}"
        return self.ok(capacity, low, high, why)

    def holds(self, load_factor: float, least_requests: int) -> bool:
        """Run a whole open-loop level, which only a proof that it misses the limits may end."""
        protocol = self._protocol
        seconds = self._seconds_for(least_requests, load_factor)
        stop = LateFraction(self._workload.streams, protocol.warmup_seconds, least_seconds=seconds)
        level = self._level(OpenLoop(load_factor), seconds, protocol.check_timeout_seconds, stop)
        return why_missed(level) is None

    def whole_level(self, load_factor: float) -> LoadLevel:
        """Run an open-loop level to its end, whatever it shows."""
        protocol = self._protocol
        seconds = self._seconds_for(protocol.check_requests, load_factor)
        return self._level(OpenLoop(load_factor), seconds, protocol.check_timeout_seconds, None)

    def _seconds_for(self, requests: int, load_factor: float) -> float:
        """Length of a level that is to see so many requests."""
        return max(self._protocol.check_seconds, requests / (load_factor * self._demand))

    def level_at(self, load_factor: float, left_seconds: float = math.inf) -> LoadLevel:
        """Run an open-loop level until it is decided or its time, or what is left, is up."""
        protocol = self._protocol
        longest = self._seconds_for(protocol.check_requests, load_factor)
        seconds = max(min(longest, left_seconds - protocol.warmup_seconds), longest / 4)
        stop = LateFraction(
            self._workload.streams, protocol.warmup_seconds, protocol.check_seconds / 2
        )
        return self._level(OpenLoop(load_factor), seconds, protocol.check_timeout_seconds, stop)

    def _level(
        self, load: ClosedLoop | OpenLoop, seconds: float, timeout: float, stop: StoppingRule | None
    ) -> LoadLevel:
        plan = LevelPlan(
            load,
            self._protocol.warmup_seconds,
            seconds,
            timeout,
            # A saturated server's replies come when they come.
            longest_lag_ms=longest_lag_ms(self._workload) if isinstance(load, OpenLoop) else None,
            stop=stop,
        )
        level = self._run(plan)
        self._levels.append(level)
        return level

    def ok(self, load_factor: float, low: float, high: float | None, ended: str) -> CapacityResult:
        """Certify a load that is at least what some level held."""
        held = [x for x in self._open_loop() if why_missed(x) is None]
        level = max((x for x in held if x.load_factor <= load_factor), key=lambda x: x.load_factor)
        return CapacityResult(
            "ok", self._measurement(load_factor, low, high, ended), _excess(level)
        )

    def infeasible(self, floor: float) -> CapacityResult:
        """Give up after the last level, at the load factor `floor`, did not pass.

        Raises:
            LoadTestFailure: when nothing at all was answered at that load.
        """
        level = self._levels[-1]
        _refuse_if_all_failed(level)
        ended = f"even at {floor * self._demand:.1f}/s: {why_missed(level)}"
        return CapacityResult(
            "infeasible", self._measurement(0.0, 0.0, floor, ended), _excess(level)
        )

    def _bounded(self, upper: float, worse_below: float) -> CapacityResult:
        ended = (
            f"saturates at no more than {upper * self._demand:.1f}/s, "
            f"and {worse_below * self._demand:.1f}/s are needed to be cheaper"
        )
        return CapacityResult("bounded", self._measurement(0.0, 0.0, upper, ended), None)

    def _measurement(
        self, load_factor: float, low: float, high: float | None, ended: str
    ) -> Measurement:
        return Measurement(
            levels=tuple(self._levels),
            load_factor=load_factor,
            load_factor_low=low,
            load_factor_high=high,
            demand_per_second=self._demand,
            ended=ended,
        )


def longest_lag_ms(workload: Workload) -> float:
    """The client's lag above which a level says more of the client than of the server."""
    shortest = min(stream.limit.latency_ms for stream in workload.streams)
    return max(_LAG_FLOOR_MS, _LONGEST_LAG * shortest)


def _point(level: LoadLevel, saturation: float) -> Point:
    """A level as the knee sees it."""
    worst = max(level.streams, key=lambda stream: stream.excess)
    log_excess = math.log1p(worst.excess)
    if level.errors or _backlog_grew(level) or not level.client.kept_up:
        log_excess = max(log_excess, _FAILING)
    return Point(level.load_factor / saturation, log_excess, _sd(worst), worst.sent)


def _sd(stream: StreamLevel) -> float:
    """Standard error of the log of the latency at the limit's percentile, from its interval."""
    found = stream.latency(stream.limit_percentile)
    below = math.log(found.value_ms / found.low_ms) if found.low_ms > 0 else 1.0
    above = math.log(found.high_ms / found.value_ms) if found.high_ms is not None else 1.0
    return max(_LEAST_SD, (below + above) / 2 / NORMAL_QUANTILE)


def _refuse_if_all_failed(level: LoadLevel) -> None:
    if level.errors == _sent(level):
        raise LoadTestFailure(f"every request failed: {_first_error(level)}")


def why_missed(level: LoadLevel) -> str | None:
    """Why an open-loop level is more than the server can take, None where it is not."""
    if not level.client.kept_up:
        return _void(level)
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


def _void(level: LoadLevel) -> str:
    client = level.client
    remedy = "give it free cores"
    if not client.realtime:
        remedy += ", or permit real-time priority (ulimit -r 1)"
    return (
        f"void, the load client lagged by {client.lag_ms:.1f} ms (p99), over "
        f"{client.longest_lag_ms:.1f} ms, with {client.processes} processes; {remedy}"
    )


def _met_with_ease(level: LoadLevel) -> bool:
    """Whether the limits are proven to be met, or the 99th percentiles are below half of them.

    So near saturation waiting times have an exponential tail: one so far from its limit passes it
    almost never, long before a few seconds of correlated waits can prove it.
    """
    if why_missed(level) is not None:
        return False
    far = all(
        2 * max(s.latency_ms(99), s.latency_ms(s.limit_percentile)) <= s.limit_ms
        for s in level.streams
    )
    return far or level.verdict == "feasible"


def _excess(level: LoadLevel) -> float:
    """Above 0 exactly where `why_missed` has a reason."""
    failed = level.errors / _sent(level)
    waiting = _backlog_growth(level) / _sent(level) if _backlog_grew(level) else 0.0
    client = level.client
    lag = 0.0 if client.kept_up else client.lag_ms / (client.longest_lag_ms or 1.0) - 1
    return max(level.excess, failed or -1.0, waiting or -1.0, lag or -1.0)


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
