"""How much load a configuration serves within its limits.

Saturate with a closed loop; check with independent arrivals at the load where latency is thought to
cross the limit, at most just below saturation; go on so until the crossing is known closely enough
or the load budget is spent. Closed-loop users overstate what independent arrivals can be served, so
saturation alone is never a capacity. Pure control: levels are run by a callable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from optimizer.load.knee import Knee, find_knee
from optimizer.load.level_plan import ClosedLoop, LevelPlan, OpenLoop, StoppingRule
from optimizer.load.stopping import LateFraction, RateSettled
from optimizer.load.verdicts import (
    limit_overshoot,
    longest_lag_ms,
    met_with_ease,
    point,
    refuse_if_all_failed,
    refuse_void,
    share_by_service_time,
    valid_open_loop,
    what_was_void,
    why_missed,
    why_void,
)
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.level import (
    HIGHEST_SHARE,
    LoadLevel,
    Measurement,
    floor_per_second,
)
from optimizer.measurement.trial_record import Outcome
from optimizer.workload.streams import Workload

RunLevel = Callable[[LevelPlan], LoadLevel]
"""Runs one level. Whoever composes it adds the server's statistics to the level."""

_ABOVE_EXPECTED = 1.05
_MOST_LEVELS = 12
_MOST_VOID_LEVELS = 5
_BELOW_VOID = 0.75
"""Share of a load that the load generator could not send on time, which is tried after it."""


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


def find_capacity(
    run: RunLevel,
    workload: Workload,
    protocol: CapacityProtocol,
    concurrency: int,
    prune_below: float | None = None,
    expected_share: float | None = None,
) -> Evaluation:
    """Find the largest load factor that meets every limit.

    Args:
        run: runs one level.
        workload: the streams; its demand is load factor 1.0.
        protocol: how long levels take.
        concurrency: requests kept outstanding to saturate the server; enough to fill every
            instance's batches twice over.
        prune_below: load factor under which the configuration is not wanted, None to find its
            capacity in any case.
        expected_share: of saturation, that the capacity is likely to be, where similar
            configurations are known; the first open-loop level is near it. None to go by the
            service time that saturation shows.

    Raises:
        LoadTestFailure: when every request failed, under saturation or at the floor load.
        VoidLevelFailure: when the load generator fell behind in every level that met the limits.
    """
    search = CapacitySearch(run, workload, protocol)
    return search.find(concurrency, prune_below, expected_share)


def find_saturation(
    run: RunLevel, workload: Workload, protocol: CapacityProtocol, concurrency: int
) -> Evaluation:
    """The rate at saturation alone, which tells in seconds whether a machine kept its pace.

    Raises:
        LoadTestFailure: when every request failed.
    """
    return CapacitySearch(run, workload, protocol).find_saturation(concurrency)


class CapacitySearch:
    """The levels visited so far, what they mean, and which comes next."""

    def __init__(
        self,
        run: RunLevel,
        workload: Workload,
        protocol: CapacityProtocol,
        known: Sequence[LoadLevel] = (),
    ) -> None:
        """Begin with `known`: saturation, and open-loop levels that cost this search nothing."""
        self._run = run
        self._workload = workload
        self._demand = workload.demand_per_second
        self._protocol = protocol
        self._levels: list[LoadLevel] = [*known]
        self._free = max(0, len(known) - 1)

    def find(
        self,
        concurrency: int,
        prune_below: float | None = None,
        expected_share: float | None = None,
    ) -> Evaluation:
        """See `find_capacity`."""
        saturation, upper = self.saturate(concurrency)
        if prune_below is not None and upper < prune_below:
            return self._bounded(
                upper,
                f"saturates at no more than {upper * self._demand:.1f}/s, "
                f"and {prune_below * self._demand:.1f}/s are needed to be cheaper",
            )
        if expected_share is not None:
            # From above: levels on both sides of the limit show how steeply latency rises.
            share = _ABOVE_EXPECTED * expected_share
        else:
            share = share_by_service_time(self._levels[0], self._workload)
        return self._approach(saturation, upper, share * saturation)

    def go_on(self) -> Evaluation:
        """Find the capacity from the levels that are known, with as few more as it takes."""
        saturated = self._levels[0]
        saturation, upper = saturated.load_factor, saturated.rate[2] / self._demand
        known = self._open_loop()
        if not known:
            share = share_by_service_time(saturated, self._workload)
            return self._approach(saturation, upper, share * saturation)
        for level in sorted(known, key=lambda each: each.load_factor):
            if (result := self._settled(level, saturation, upper)) is not None:
                return result
        if (result := self._known_well(saturation, upper)) is not None:
            return result
        return self._approach(saturation, upper, self._next_load(saturation))

    def find_saturation(self, concurrency: int) -> Evaluation:
        """See `find_saturation`."""
        _, upper = self.saturate(concurrency)
        return self._bounded(upper, "saturation alone was asked for")

    def saturate(self, concurrency: int) -> tuple[float, float]:
        """Run a closed loop; returns saturation's load factor and its upper bound."""
        protocol = self._protocol
        load, timeout = ClosedLoop(concurrency), protocol.saturation_timeout_seconds
        stop = RateSettled(
            protocol.warmup_seconds, protocol.saturation_seconds / 4, protocol.resolution / 2
        )
        level = self._level(load, protocol.saturation_seconds, timeout, stop)
        refuse_if_all_failed(level)
        _, _, high_per_second = level.rate
        return level.load_factor, high_per_second / self._demand

    def _approach(self, saturation: float, upper: float, first: float) -> Evaluation:
        """Visit loads near the limit until the capacity is known or the budget is spent."""
        floor, top = self._floor(saturation), HIGHEST_SHARE * saturation
        load = max(floor, min(first, top))
        while True:
            level = self.level_at(load, self._left(saturation))
            if (result := self._settled(level, saturation, upper)) is not None:
                return result
            if (result := self._known_well(saturation, upper)) is not None:
                return result
            own = self._levels[1 + self._free :]
            void = sum(why_void(each) is not None for each in own)
            most = len(own) + 1 >= _MOST_LEVELS or void >= _MOST_VOID_LEVELS
            if (most or self._left(saturation) <= 0) and self._held():
                knee = self._knee(saturation)
                return self._estimated(knee, saturation, upper, "its load time is spent")
            if most:
                return self.infeasible(level)
            load = self._next_load(saturation)

    def _settled(self, level: LoadLevel, saturation: float, upper: float) -> Evaluation | None:
        """What one level shows by itself: met next to saturation, or missed at the floor."""
        floor, top = self._floor(saturation), HIGHEST_SHARE * saturation
        if level.load_factor >= top and met_with_ease(level):
            ended = f"met the limits at {level.offered_per_second:.1f}/s, next to saturation"
            return self.ok(top, top, upper, ended)
        missed = why_void(level) is not None or why_missed(level) is not None
        if level.load_factor <= floor and missed:
            return self.infeasible(level)
        return None

    def _known_well(self, saturation: float, upper: float) -> Evaluation | None:
        """Return the capacity, once the levels together tell it closely enough."""
        if not self._held():
            return None
        knee = self._knee(saturation)
        capacity = min(knee.share, HIGHEST_SHARE) * saturation
        certified = min(self._held()) <= capacity and not self._cut_short(capacity)
        if not certified or knee.half_width > self._protocol.resolution:
            return None
        return self._estimated(knee, saturation, upper, f"known to {knee.half_width:.1%}")

    def _floor(self, saturation: float) -> float:
        """The least load that is tried; below it a configuration is of no use."""
        return floor_per_second(saturation * self._demand) / self._demand

    def _knee(self, saturation: float) -> Knee:
        return find_knee([point(x, saturation) for x in self._open_loop()])

    def _open_loop(self) -> list[LoadLevel]:
        """Return the levels that say something of the server."""
        return [*valid_open_loop(self._levels)]

    def _least_void(self) -> float:
        """Return the least load that the load generator could not send on time."""
        void = [level.load_factor for level in self._levels if why_void(level) is not None]
        return min(void, default=math.inf)

    def _cut_short(self, capacity: float) -> bool:
        """Return whether only the load generator kept the levels below a capacity."""
        held = self._held()
        all_held = len(held) == len(self._open_loop())
        return all_held and max(held) < capacity and self._least_void() <= capacity

    def _held(self) -> list[float]:
        """Loads at which the limits were met."""
        return [x.load_factor for x in self._open_loop() if why_missed(x) is None]

    def _left(self, saturation: float) -> float:
        """Seconds of load that may still be spent."""
        protocol = self._protocol
        rate = saturation * self._demand
        own = (*self._levels[:1], *self._levels[1 + self._free :])
        spent = sum(protocol.warmup_seconds + level.seconds for level in own)
        return max(protocol.load_seconds, protocol.load_requests / rate) - spent

    def _next_load(self, saturation: float) -> float:
        """The estimate itself, kept between what is proven to be too little and too much.

        Where nothing has met the limits yet, a little less each time.
        """
        floor = self._floor(saturation)
        if not self._open_loop():
            return max(floor, _BELOW_VOID * self._least_void())
        capacity = min(self._knee(saturation).share, HIGHEST_SHARE) * saturation
        missed = [x.load_factor for x in self._open_loop() if x.verdict == "infeasible"]
        met = [x.load_factor for x in self._open_loop() if x.verdict == "feasible"]
        low, high = max(met, default=floor), min([*missed, self._least_void()])
        if not self._held():
            tried = min([x.load_factor for x in self._open_loop()] + [self._least_void()])
            return max(floor, min(capacity, 0.9 * tried))
        if low < capacity < high or math.isinf(high):
            return max(floor, capacity)
        return (max((x for x in self._held() if x < high), default=floor) + high) / 2

    def _estimated(self, knee: Knee, saturation: float, upper: float, why: str) -> Evaluation:
        """What the knee and the proven levels say together."""
        missed = [x for x in self._open_loop() if why_missed(x) is not None]
        capacity = max(min(self._held()), min(knee.share, HIGHEST_SHARE) * saturation)
        high = min(upper, max(knee.high * saturation, capacity))
        if missed:
            why += f"; at {missed[-1].offered_per_second:.1f}/s: {why_missed(missed[-1])}"
        if self._cut_short(capacity):
            capacity, high = max(self._held()), upper
            why += f"; more could not be measured: {what_was_void(self._levels)}"
        # However little the levels tell, a load that met the limits is above the floor.
        low = max(self._floor(saturation), min(knee.low, HIGHEST_SHARE) * saturation)
        return self.ok(capacity, min(low, capacity), high, why)

    def holds(self, load_factor: float, least_requests: int) -> bool:
        """Run a whole open-loop level, which only a proof that it misses the limits may end."""
        protocol = self._protocol
        seconds = self._seconds_for(least_requests, load_factor)
        stop = LateFraction(self._workload.streams, protocol.warmup_seconds, least_seconds=seconds)
        level = self._level(OpenLoop(load_factor), seconds, protocol.check_timeout_seconds, stop)
        return why_void(level) is None and why_missed(level) is None

    @property
    def levels(self) -> Sequence[LoadLevel]:
        """All that were visited, in their order."""
        return self._levels

    def whole_level(self, load_factor: float, seconds: float | None = None) -> LoadLevel:
        """Run an open-loop level to its end, for as long as a check unless `seconds` are given."""
        protocol = self._protocol
        seconds = seconds or self._seconds_for(protocol.check_requests, load_factor)
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
        limit_ms = self._workload.shortest_limit_ms
        plan = LevelPlan(
            load,
            self._protocol.warmup_seconds,
            seconds,
            timeout,
            # A saturated server's replies come when they come.
            longest_lag_ms=longest_lag_ms(limit_ms) if isinstance(load, OpenLoop) else None,
            stop=stop,
        )
        level = self._run(plan)
        self._levels.append(level)
        return level

    def ok(self, load_factor: float, low: float, high: float | None, ended: str) -> Evaluation:
        """Certify a load that is at least what some level held."""
        held = [x for x in self._open_loop() if why_missed(x) is None]
        level = max((x for x in held if x.load_factor <= load_factor), key=lambda x: x.load_factor)
        return self._evaluation("ok", (load_factor, low, high), ended, limit_overshoot(level))

    def infeasible(self, level: LoadLevel) -> Evaluation:
        """Give up where `level` did not pass.

        Raises LoadTestFailure where nothing was answered, VoidLevelFailure where it is void.
        """
        refuse_void(level)
        refuse_if_all_failed(level)
        ended = f"even at {level.offered_per_second:.1f}/s: {why_missed(level)}"
        return self._evaluation(
            "infeasible", (0.0, 0.0, level.load_factor), ended, limit_overshoot(level)
        )

    def _bounded(self, upper: float, ended: str) -> Evaluation:
        return self._evaluation("bounded", (0.0, 0.0, upper), ended, 0.0)

    def _evaluation(
        self,
        outcome: Outcome,
        load_factor: tuple[float, float, float | None],
        ended: str,
        limit_overshoot: float,
    ) -> Evaluation:
        """Return the evaluation of a load factor, given with its interval."""
        measurement = Measurement(tuple(self._levels), *load_factor, self._demand, ended)
        return Evaluation(outcome, ended, measurement, limit_overshoot)
