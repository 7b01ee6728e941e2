"""How long the confirm phase takes, and what of it fits into the time that is left.

Where the whole phase does not fit, its load levels become shorter, then it has one round in place
of two, then it has fewer finalists: in this order, and no further than necessary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from optimizer.load.capacity import CapacityProtocol
from optimizer.load.certification import AT_DEMAND_REQUESTS
from optimizer.measurement.cost import Demand, replicas_for
from optimizer.measurement.level import LoadLevel, Measurement
from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.decision import ROUNDS

_SHARE = 1 / 3
"""Largest part of a run's time that the search leaves to the confirm phase."""

_SHORTEST_SHARE = 0.5
"""Shortest level of the confirm phase, as a share of one of the search: after this time a search
takes a verdict that is certain."""

_PLANNED = 0.97
"""Share of the time left that a plan uses, because its levels end within a fraction of a second."""

_BISECTIONS = 30


def load_factor_per_replica(demand: Demand, load_factor: float) -> float:
    """Return the load of one of the replicas that serve a demand with this capacity each."""
    replicas = replicas_for(demand, load_factor * demand.requests_per_second)
    return min(load_factor, (1 + demand.headroom) / replicas)


@dataclass(frozen=True)
class RoundTime:
    """The expected time of one round of a configuration, in seconds.

    Attributes:
        fixed: serving, saturation, and what each level takes besides its length.
        levels: lengths of the open-loop levels, in a phase that is not shortened.
    """

    fixed: float
    levels: tuple[float, ...]

    def seconds(self, longest_level: float = math.inf) -> float:
        """Return the time of the round with levels of at most this length."""
        return self.fixed + sum(min(length, longest_level) for length in self.levels)


def round_time(
    trial: TrialRecord, requests: int, demand: Demand, protocol: CapacityProtocol
) -> RoundTime:
    """Return the expected time of a round by the levels that a trial really took.

    Args:
        trial: that met the limits.
        requests: most requests at the capacity.
        protocol: of the confirm phase.
    """
    measurement, spent = trial.measurement, trial.seconds
    assert measurement is not None, "a trial that met the limits was measured"
    warmup = protocol.warmup_seconds
    planned = sum(level.seconds + warmup for level in measurement.levels)
    each = warmup + max(0.0, spent.measuring - planned) / len(measurement.levels)
    at_demand = load_factor_per_replica(demand, measurement.load_factor)
    proof = min((level.seconds for level in _proven(measurement)), default=math.inf)
    at_capacity = protocol.level_seconds(requests, measurement.capacity_per_second)
    lengths = (
        protocol.whole_periods(min(at_capacity, max(protocol.check_seconds, proof))),
        protocol.level_seconds(AT_DEMAND_REQUESTS, at_demand * demand.requests_per_second),
    )
    fixed = spent.serving + measurement.levels[0].seconds + 3 * each
    return RoundTime(fixed, lengths)


def _proven(measurement: Measurement) -> Iterator[LoadLevel]:
    """Yield the levels that were proven to meet the limits at the capacity or above."""
    for level in measurement.open_loop:
        if level.verdict == "feasible" and level.load_factor >= measurement.load_factor:
            yield level


@dataclass(frozen=True)
class Entrant:
    """A configuration that the confirm phase measures.

    Attributes:
        trial: its record of the search.
        requests: at its capacity, in each round.
        time: expected, of one round.
        is_baseline: whether it stays while rivals are left out.
        completed: rounds so far.
    """

    trial: TrialRecord
    requests: int
    time: RoundTime
    is_baseline: bool = False
    completed: int = 0


@dataclass(frozen=True)
class ConfirmPlan:
    """What fits into the time of a confirm phase.

    Attributes:
        rounds: of each configuration.
        level_seconds: longest open-loop level; infinite where none is shortened.
        entrants: those that are measured.
        left_out: number of those that are not.
    """

    rounds: int
    level_seconds: float
    entrants: tuple[Entrant, ...]
    left_out: int = 0

    @property
    def shortened(self) -> str:
        """What was shortened, in words; empty where nothing was."""
        texts = []
        if math.isfinite(self.level_seconds):
            texts.append(f"load levels of at most {self.level_seconds:.3g} s")
        if self.rounds < ROUNDS:
            texts.append(f"{self.rounds} round instead of {ROUNDS}")
        if self.left_out:
            texts.append(f"{self.left_out} of the finalists left out")
        return ", ".join(texts)


def plan_confirmation(
    entrants: Sequence[Entrant], seconds: float, search: CapacityProtocol, scale: float = 1.0
) -> ConfirmPlan:
    """Return the largest plan that is expected to fit; the best alone where none does.

    Args:
        entrants: best first.
        search: protocol of the search phase.
        scale: by which rounds have taken longer than expected.
    """
    seconds *= _PLANNED
    shortest = shortest_level(search)
    longest = max((max(each.time.levels) for each in entrants), default=0.0)
    for rounds, kept in _choices(entrants):
        needed = partial(_needed, kept, rounds, scale)
        if needed(math.inf) <= seconds:
            level_seconds = math.inf
        elif needed(shortest) <= seconds:
            level_seconds = _largest_fitting(needed, seconds, shortest, longest)
        else:
            continue
        return ConfirmPlan(rounds, level_seconds, kept, len(entrants) - len(kept))
    return ConfirmPlan(1, shortest, tuple(entrants[:1]), len(entrants[1:]))


def shortest_level(search: CapacityProtocol) -> float:
    """Return the shortest length of a level of the confirm phase, in seconds."""
    return search.whole_periods(_SHORTEST_SHARE * search.check_seconds)


def least_seconds(entrants: Sequence[Entrant], search: CapacityProtocol, scale: float) -> float:
    """Return the time within which a plan has a round of each configuration."""
    return _needed(entrants, 1, scale, shortest_level(search)) / _PLANNED


def _choices(entrants: Sequence[Entrant]) -> Iterator[tuple[int, tuple[Entrant, ...]]]:
    """Yield rounds and configurations, the most first; the baseline goes after the rivals."""
    for rounds in range(ROUNDS, 0, -1):
        yield rounds, tuple(entrants)
    rivals = [n for n, each in enumerate(entrants) if n > 0 and not each.is_baseline]
    for count in range(1, len(rivals) + 1):
        left_out = rivals[-count:]
        yield 1, tuple(each for n, each in enumerate(entrants) if n not in left_out)


def _needed(entrants: Sequence[Entrant], rounds: int, scale: float, longest_level: float) -> float:
    return scale * sum(
        max(0, rounds - each.completed) * each.time.seconds(longest_level) for each in entrants
    )


def _largest_fitting(
    needed: partial[float], seconds: float, fitting: float, longest: float
) -> float:
    """Return the largest length of a level, between two, with which a phase fits."""
    for _ in range(_BISECTIONS):
        middle = (fitting + longest) / 2
        if needed(middle) <= seconds:
            fitting = middle
        else:
            longest = middle
    return fitting


def reserved_for_confirm(
    finalists: Sequence[RoundTime], run_seconds: float, search: CapacityProtocol
) -> float:
    """Return the seconds that a search leaves to the confirm phase of a run.

    That is the time of the whole phase, or a third of the run's if that is less, but at least one
    round of the best.

    Args:
        finalists: best first.
    """
    if not finalists:
        return 0.0
    whole = ROUNDS * sum(each.seconds() for each in finalists)
    least = finalists[0].seconds(shortest_level(search))
    return min(whole, max(_SHARE * run_seconds, least))
