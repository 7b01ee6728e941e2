"""Search for the largest load that a configuration serves within its limits.

Saturate with a closed loop; then run open-loop levels near the load where latency should cross the
limit, at most just below saturation, until the crossing is known closely enough or the load budget
is spent. Closed-loop users overstate what independent arrivals can be served, so saturation alone
is never a capacity. Levels are run by a callable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from optimizer.load.level_plan import ClosedLoop, LevelPlan, OpenLoop, StoppingRule
from optimizer.load.levels import refuse_if_all_failed, refuse_void
from optimizer.load.stopping import LateFraction, RateConverged
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.knee import (
    Knee,
    bracket_knee,
    find_knee,
    knee_point,
    served_alone,
    share_by_service_time,
)
from optimizer.measurement.level import (
    HIGHEST_SHARE,
    LoadLevel,
    Measurement,
    floor_per_second,
    mean_slowdown,
)
from optimizer.measurement.level_checks import (
    describe_void,
    limit_overshoot,
    longest_lag_ms,
    met_with_ease,
    valid_open_loop,
    why_missed,
    why_void,
)
from optimizer.measurement.trial_record import Outcome
from optimizer.workload.streams import Workload

RunLevel = Callable[[LevelPlan], LoadLevel]
"""Runs one level and adds the server's statistics to it."""

_ABOVE_EXPECTED = 1.05
_BELOW_EXPECTED = 0.9
"""First load, relative to the expected capacity: where that is enough, levels on both sides of the
limit show how steeply latency rises; where it is not, one level that meets the limits shows it."""

_MOST_LEVELS = 12
_MOST_VOID_LEVELS = 5
_BELOW_VOID = 0.75
"""Next load, as a share of one that the load generator could not send on time."""


@dataclass(frozen=True)
class CapacityProtocol:
    """How long levels take and how closely the capacity is located.

    Attributes:
        saturation_seconds: longest closed-loop level; it ends once the rate is known closely.
        check_seconds: longest open-loop level, unless `check_requests` takes longer.
        saturation_timeout_seconds: how long a request may take while the server is saturated.
        check_timeout_seconds: how long it may take otherwise; a few times the latency limit is
            enough, since a later reply has missed it anyway.
        check_requests: an open-loop level lasts until so many are due, if the budget permits.
        load_seconds, load_requests: budget of the search: so much time under load, or the time of
            so many requests at the rate of saturation, whichever is longer.
        resolution: half width of the capacity's interval, relative to it, that ends the search.
        period_seconds: of bursts, of which open-loop levels have whole periods; 0 without bursts.
    """

    saturation_seconds: float = 8.0
    check_seconds: float = 6.0
    warmup_seconds: float = 1.0
    saturation_timeout_seconds: float = 30.0
    check_timeout_seconds: float = 10.0
    check_requests: int = 100
    load_seconds: float = 10.0
    load_requests: int = 500
    resolution: float = 0.03
    period_seconds: float = 0.0

    @property
    def shortest_saturation_seconds(self) -> float:
        """Duration of a saturated level whose rate is known at once."""
        return self.saturation_seconds / 4

    def level_seconds(self, requests: int, per_second: float) -> float:
        """Return the length of an open-loop level with at least so many requests at a rate."""
        return self.whole_periods(max(self.check_seconds, requests / per_second))

    def whole_periods(self, seconds: float) -> float:
        """Return the length of a level that has whole periods, at least so long."""
        if not self.period_seconds:
            return seconds
        return math.ceil(seconds / self.period_seconds) * self.period_seconds


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
        concurrency: requests kept outstanding to saturate the server; enough to fill every
            instance's batches twice over.
        prune_below: load factor that the configuration must be able to reach; the search ends once
            it is certain not to. None to find its capacity in any case.
        expected_share: likely capacity as a share of saturation, from similar configurations; the
            first open-loop level is near it. None to use the service time that saturation shows.

    Raises:
        LoadTestFailure: when every request failed, under saturation or at the floor load.
        VoidLevelFailure: when the load generator fell behind in every level that met the limits.
    """
    search = CapacitySearch(run, workload, protocol)
    return search.find(concurrency, prune_below, expected_share)


class CapacitySearch:
    """A capacity search: the levels so far, what they tell, and which comes next."""

    def __init__(
        self,
        run: RunLevel,
        workload: Workload,
        protocol: CapacityProtocol,
        earlier: Sequence[LoadLevel] = (),
    ) -> None:
        """Begin with earlier levels, saturation first; they do not count towards the budget."""
        self._run = run
        self._workload = workload
        self._demand = workload.demand_per_second
        self._protocol = protocol
        self._levels: list[LoadLevel] = [*earlier]
        self._earlier = max(0, len(earlier) - 1)

    @property
    def levels(self) -> Sequence[LoadLevel]:
        """All levels in their order."""
        return self._levels

    @property
    def open_loop_seconds(self) -> float:
        """Time of the levels after saturation, with their warm-up."""
        return sum(self._protocol.warmup_seconds + level.seconds for level in self._levels[1:])

    def find(
        self,
        concurrency: int,
        prune_below: float | None = None,
        expected_share: float | None = None,
    ) -> Evaluation:
        """Saturate, then find the capacity; the arguments are those of `find_capacity`."""
        self.saturate(concurrency)
        if prune_below is not None and self._upper < prune_below:
            return self._bounded(
                f"saturates at no more than {self._upper * self._demand:.1f}/s, "
                f"and {prune_below * self._demand:.1f}/s are needed to be cheaper"
            )
        if expected_share is None:
            return self._approach(self._by_service_time(), prune_below)
        expected = expected_share * self._saturation
        enough = prune_below is None or expected >= prune_below
        first = (_ABOVE_EXPECTED if enough else _BELOW_EXPECTED) * expected
        return self._approach(first, prune_below)

    def resume(self) -> Evaluation:
        """Find the capacity from the earlier levels, with as few new ones as possible."""
        if not (open_loop := self._open_loop()):
            return self._approach(self._by_service_time())
        for level in sorted(open_loop, key=lambda each: each.load_factor):
            if (result := self._decided_by(level)) is not None:
                return result
        return self._located() or self._approach(self._next_load())

    def find_saturation(self, concurrency: int) -> Evaluation:
        """Measure saturation alone, which shows in seconds whether the machine has drifted.

        Raises:
            LoadTestFailure: when every request failed.
        """
        self.saturate(concurrency)
        return self._bounded("only saturation was measured")

    def saturate(self, concurrency: int) -> None:
        """Run the closed loop that a search begins with."""
        protocol = self._protocol
        least = protocol.shortest_saturation_seconds
        stop = RateConverged(protocol.warmup_seconds, least, protocol.resolution / 2)
        timeout = protocol.saturation_timeout_seconds
        level = self._level(ClosedLoop(concurrency), protocol.saturation_seconds, timeout, stop)
        refuse_if_all_failed(level)

    def meets_limits(self, load_factor: float, least_seconds: float, seconds: float) -> bool:
        """Run an open-loop level until its verdict is proven.

        Args:
            least_seconds: before which only a proof that it misses the limits ends it.
            seconds: after which it ends without any proof.
        """
        protocol = self._protocol
        stop = LateFraction(self._workload.streams, protocol.warmup_seconds, least_seconds)
        level = self._level(OpenLoop(load_factor), seconds, protocol.check_timeout_seconds, stop)
        return why_void(level) is None and why_missed(level) is None

    def whole_level(self, load_factor: float, seconds: float | None = None) -> LoadLevel:
        """Run an open-loop level to its end, for as long as a check unless `seconds` are given."""
        protocol = self._protocol
        seconds = seconds or self._seconds_for(protocol.check_requests, load_factor)
        return self._level(OpenLoop(load_factor), seconds, protocol.check_timeout_seconds, None)

    def certify(self, load_factor: float, low: float, high: float | None, ended: str) -> Evaluation:
        """Return "ok" with a load that is at least that of some level that met the limits."""
        met = [x for x in self._open_loop() if why_missed(x) is None]
        level = max((x for x in met if x.load_factor <= load_factor), key=lambda x: x.load_factor)
        return self._evaluation("ok", (load_factor, low, high), ended, limit_overshoot(level))

    def infeasible(self, level: LoadLevel) -> Evaluation:
        """Return an infeasible evaluation, with `level` as the level that missed the limits.

        Raises:
            LoadTestFailure: when every request of the level failed.
            VoidLevelFailure: when the level is void.
        """
        refuse_void(level)
        refuse_if_all_failed(level)
        ended = f"even at {level.offered_per_second:.1f}/s: {why_missed(level)}"
        bounds = 0.0, 0.0, level.load_factor
        return self._evaluation("infeasible", bounds, ended, limit_overshoot(level))

    @property
    def _saturation(self) -> float:
        return self._levels[0].load_factor

    @property
    def _upper(self) -> float:
        """Upper bound of the load factor under saturation, had no other process run."""
        _, _, high_per_second = self._levels[0].rate
        return self._levels[0].slowdown * high_per_second / self._demand

    @property
    def _floor(self) -> float:
        return floor_per_second(self._saturation * self._demand) / self._demand

    @property
    def _rate_of_queue(self) -> float | None:
        """Rate under saturation; None where it is not known, or where batches even bursts out."""
        saturated = self._levels[0] if self._levels else None
        if saturated is None or not all(
            served_alone(saturated, stream) for stream in self._workload.streams
        ):
            return None
        return saturated.achieved_per_second

    def _by_service_time(self) -> float:
        share = share_by_service_time(self._levels[0], self._workload)
        if (bursts := self._workload.bursts) is not None:
            # Between the load whose bursts are served at once, and the one that a steady rate may
            # have.
            share /= math.sqrt(bursts.times_mean)
        return share * self._saturation

    def _approach(self, first: float, needed: float | None = None) -> Evaluation:
        """Run levels near the limit until the capacity is known or the budget is spent.

        Args:
            needed: load factor that the capacity need not be known below.
        """
        load = max(self._floor, min(first, HIGHEST_SHARE * self._saturation))
        while True:
            level = self._check(load)
            if (result := self._decided_by(level) or self._located(needed)) is not None:
                return result
            own = self._levels[1 + self._earlier :]
            void = sum(why_void(each) is not None for each in own)
            exhausted = len(own) + 1 >= _MOST_LEVELS or void >= _MOST_VOID_LEVELS
            if (exhausted or self._remaining_seconds() <= 0) and self._met_loads():
                return self._estimated(self._knee(), "its load time is spent")
            if exhausted:
                return self.infeasible(level)
            load = self._next_load()

    def _check(self, load_factor: float) -> LoadLevel:
        """Run an open-loop level until it is decided or its time, or the budget, is up."""
        protocol, streams = self._protocol, self._workload.streams
        longest = self._seconds_for(protocol.check_requests, load_factor)
        affordable = self._remaining_seconds() - protocol.warmup_seconds
        seconds = max(min(longest, affordable), longest / 4)
        stop = LateFraction(streams, protocol.warmup_seconds, protocol.check_seconds / 2)
        return self._level(OpenLoop(load_factor), seconds, protocol.check_timeout_seconds, stop)

    def _seconds_for(self, requests: int, load_factor: float) -> float:
        return self._protocol.level_seconds(requests, load_factor * self._demand)

    def _level(
        self, load: ClosedLoop | OpenLoop, seconds: float, timeout: float, stop: StoppingRule | None
    ) -> LoadLevel:
        limit_ms = self._workload.shortest_limit_ms
        if isinstance(load, OpenLoop):
            seconds = self._protocol.whole_periods(seconds)
        plan = LevelPlan(
            load,
            self._protocol.warmup_seconds,
            seconds,
            timeout,
            # The client's lag does not distort a closed loop.
            longest_lag_ms=longest_lag_ms(limit_ms) if isinstance(load, OpenLoop) else None,
            stop=stop,
            saturation_per_second=self._rate_of_queue,
        )
        level = self._run(plan)
        self._levels.append(level)
        return level

    def _decided_by(self, level: LoadLevel) -> Evaluation | None:
        """Return what one level decides alone: met next to saturation, or missed at the floor."""
        top = HIGHEST_SHARE * self._saturation
        if level.load_factor >= top and met_with_ease(level):
            ended = f"met the limits at {level.offered_per_second:.1f}/s, next to saturation"
            return self.certify(top, top, self._upper, ended)
        missed = why_void(level) is not None or why_missed(level) is not None
        if level.load_factor <= self._floor and missed:
            return self.infeasible(level)
        return None

    def _located(self, needed: float | None = None) -> Evaluation | None:
        """Return the capacity once the levels together tell it closely enough."""
        if not self._met_loads():
            return None
        knee = self._knee()
        capacity = min(knee.share, HIGHEST_SHARE) * self._saturation
        certified = min(self._met_loads()) <= capacity and not self._cut_short(capacity)
        if not certified:
            return None
        if knee.half_width <= self._protocol.resolution:
            return self._estimated(knee, f"known to {knee.half_width:.1%}")
        if needed is not None and self._high(knee) < needed:
            per_second = needed * self._demand
            return self._estimated(knee, f"{per_second:.1f}/s are needed to be cheaper")
        return None

    def _estimated(self, knee: Knee, ended: str) -> Evaluation:
        """Return the capacity by the knee, bounded by the levels that met the limits."""
        saturation, met, upper = self._saturation, self._met_loads(), self._upper
        missed = [x for x in self._open_loop() if why_missed(x) is not None]
        capacity = max(min(met), min(knee.share, HIGHEST_SHARE) * saturation)
        high = min(upper, max(self._high(knee), capacity))
        if missed:
            ended += f"; at {missed[-1].offered_per_second:.1f}/s: {why_missed(missed[-1])}"
        if self._cut_short(capacity):
            capacity, high = max(met), upper
            ended += f"; more could not be measured: {describe_void(self._levels)}"
        # However little the levels tell, a load that met the limits is above the floor.
        low = max(self._floor, min(knee.low, HIGHEST_SHARE) * saturation)
        return self.certify(capacity, min(low, capacity), high, ended)

    def _high(self, knee: Knee) -> float:
        """Return the upper bound of the capacity, had no other process run."""
        return knee.high * self._saturation * mean_slowdown(self._levels)

    def _knee(self) -> Knee:
        find = find_knee if self._workload.bursts is None else bracket_knee
        return find([knee_point(x, self._saturation) for x in self._open_loop()])

    def _open_loop(self) -> tuple[LoadLevel, ...]:
        return valid_open_loop(self._levels)

    def _met_loads(self) -> list[float]:
        """Return the loads at which the limits were met."""
        return [x.load_factor for x in self._open_loop() if why_missed(x) is None]

    def _least_void(self) -> float:
        """Return the least load that the load generator could not send on time."""
        void = [level.load_factor for level in self._levels if why_void(level) is not None]
        return min(void, default=math.inf)

    def _cut_short(self, capacity: float) -> bool:
        """Return whether only the load generator kept the levels below a capacity."""
        met = self._met_loads()
        all_met = len(met) == len(self._open_loop())
        return all_met and max(met) < capacity and self._least_void() <= capacity

    def _remaining_seconds(self) -> float:
        """Return the load time that may still be spent."""
        protocol = self._protocol
        own = (*self._levels[:1], *self._levels[1 + self._earlier :])
        spent = sum(protocol.warmup_seconds + level.seconds for level in own)
        rate = self._saturation * self._demand
        return max(protocol.load_seconds, protocol.load_requests / rate) - spent

    def _next_load(self) -> float:
        """Return the estimated capacity, kept between proven lower and upper bounds.

        While no level has met the limits, it is less each time.
        """
        floor, open_loop = self._floor, self._open_loop()
        if not open_loop:
            return max(floor, _BELOW_VOID * self._least_void())
        capacity = min(self._knee().share, HIGHEST_SHARE) * self._saturation
        if not self._met_loads():
            tried = min([x.load_factor for x in open_loop] + [self._least_void()])
            return max(floor, min(capacity, 0.9 * tried))
        proven_missed = [x.load_factor for x in open_loop if x.verdict == "infeasible"]
        proven_met = [x.load_factor for x in open_loop if x.verdict == "feasible"]
        low = max(proven_met, default=floor)
        high = min([*proven_missed, self._least_void()])
        if low < capacity < high or math.isinf(high):
            return max(floor, capacity)
        return (max((x for x in self._met_loads() if x < high), default=floor) + high) / 2

    def _bounded(self, ended: str) -> Evaluation:
        return self._evaluation("bounded", (0.0, 0.0, self._upper), ended, 0.0)

    def _evaluation(
        self,
        outcome: Outcome,
        load_factor: tuple[float, float, float | None],
        ended: str,
        overshoot: float,
    ) -> Evaluation:
        """Return the evaluation of a load factor, given with its interval."""
        measurement = Measurement(tuple(self._levels), *load_factor, self._demand, ended)
        return Evaluation(outcome, ended, measurement, overshoot)
