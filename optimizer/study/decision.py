"""The configuration that a study recommends, by its records alone.

Every command that names a best configuration calls `decide`, and so does the run at its end:

    best = decide(trials, confirmations, price, demand).best
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.cache_use import cache_uses
from optimizer.measurement.cost import Candidate, Demand, Price, tie_break_key
from optimizer.measurement.level import LoadLevel, Measurement
from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.confidence import CapacityClaim, Finalist, claims
from optimizer.study.directory import StudyDirectory
from optimizer.study.history import scored
from optimizer.study.searched_space import read_searched
from optimizer.study.warm_start import at_demand

ROUNDS = 2
"""Rounds of the confirm phase for each configuration, unless the time does not suffice."""


@dataclass(frozen=True)
class ConfirmedCapacity:
    """A configuration that met the limits.

    Attributes:
        candidate: with its cost at the requested price and demand.
        trial: the record of the search.
        confirmed: whether the figures are those of the confirm phase.
    """

    candidate: Candidate
    trial: TrialRecord
    confirmed: bool

    @property
    def config(self) -> ServingConfig:
        """The configuration itself."""
        return self.candidate.config

    @property
    def status(self) -> str:
        """How far its figures can be trusted, in the word that every command uses."""
        return "confirmed" if self.confirmed else "unconfirmed"

    @property
    def figures(self) -> str:
        """Its capacity, cost and status in one line."""
        measurement, score = self.candidate.measurement, self.candidate.score
        return (
            f"{measurement.capacity_per_second:.0f}/s, "
            f"${score.usd_per_million_at_capacity:.4f} per million, {self.status}"
        )

    def latency_ms(self, percentile: float) -> float | None:
        """Return the latency at the capacity, the worst over streams and rounds."""
        measurement = self.candidate.measurement
        levels = levels_near(measurement, measurement.load_factor)
        if not levels and (level := measurement.level_at_capacity) is not None:
            levels = [level]
        return max((level.latency_ms(percentile) for level in levels), default=None)


@dataclass(frozen=True)
class Decision:
    """The configurations of a study that met its limits, best first.

    Attributes:
        confirmed: those with a certified load in every round of the confirm phase, see
            `rounds_needed`.
        unconfirmed: the others that met the limits in a trial, unless a round contradicted it.
    """

    confirmed: tuple[ConfirmedCapacity, ...] = ()
    unconfirmed: tuple[ConfirmedCapacity, ...] = ()

    @property
    def ranking(self) -> tuple[ConfirmedCapacity, ...]:
        """The confirmed configurations; the unconfirmed ones only where none is confirmed."""
        return self.confirmed or self.unconfirmed

    @property
    def contenders(self) -> tuple[ConfirmedCapacity, ...]:
        """All configurations, the confirmed ones first."""
        return self.confirmed + self.unconfirmed

    @property
    def best(self) -> ConfirmedCapacity | None:
        """The recommendation; None where nothing met the limits."""
        return next(iter(self.ranking), None)

    @property
    def equal_cost(self) -> tuple[ConfirmedCapacity, ...]:
        """The best, and all others that serve the demand with an equally cheap fleet."""
        fleets = [each.candidate.score.fleet_usd_per_hour for each in self.ranking]
        return tuple(
            each for each, fleet in zip(self.ranking, fleets, strict=True) if fleet <= fleets[0]
        )

    def entry_of(self, config: ServingConfig) -> ConfirmedCapacity | None:
        """Return the entry of one configuration in the ranking; None where it has none."""
        return next((each for each in self.ranking if each.config == config), None)


def decide(
    trials: Iterable[TrialRecord],
    confirmations: Collection[TrialRecord],
    price: Price,
    demand: Demand,
    space: SearchSpace | None = None,
) -> Decision:
    """Rank the configurations of a study by cost and the rules for ties.

    Those with a response cache that answered no request come last.

    Args:
        trials: records of the search.
        confirmations: records of the confirm phase, of any run.
        space: to which a configuration must belong, because its artefact may have left the
            space since it was measured. None accepts every configuration.
    """
    contradicted = contradicted_by(confirmations)
    # A configuration that was measured again counts by its last trial.
    latest = {record.config: record for record in trials if record.outcome == "ok"}
    confirmed, unconfirmed = list[ConfirmedCapacity](), list[ConfirmedCapacity]()
    for config, trial in latest.items():
        if config in contradicted or (space is not None and space.position_of(config) is None):
            continue
        rounds = certified_rounds(config, confirmations)
        is_confirmed = len(rounds) >= rounds_needed(rounds_of(config, confirmations))
        measurement = merged(rounds) if is_confirmed else _measured(trial)
        relative = at_demand(demand.requests_per_second, measurement)
        candidate = candidate_of(config, relative, price, demand)
        if candidate is not None:
            entry = ConfirmedCapacity(candidate, trial, is_confirmed)
            (confirmed if is_confirmed else unconfirmed).append(entry)
    return Decision(tuple(sorted(confirmed, key=_rank)), tuple(sorted(unconfirmed, key=_rank)))


class RunningDecision:
    """The decision of a study while its trials are told one by one.

    The rank of a configuration does not depend on others, so that a new trial is compared with the
    best alone, and costs as much after thousands of trials as after ten.

    Args:
        trials, confirmations, price, demand, space: see `decide`.

    Attributes:
        decision: the best configuration and the space's baseline, as `decide` ranks them.
    """

    def __init__(
        self,
        trials: Iterable[TrialRecord],
        confirmations: Collection[TrialRecord],
        price: Price,
        demand: Demand,
        space: SearchSpace,
    ) -> None:
        self._decide = partial(
            decide, confirmations=confirmations, price=price, demand=demand, space=space
        )
        self._baseline = space.config(space.baseline)
        self._latest = {record.config: record for record in trials if record.outcome == "ok"}
        self.decision = self._decide(self._latest.values())

    def add(self, record: TrialRecord) -> None:
        """Take the record of a further trial into account."""
        if record.outcome != "ok":
            return
        best, measured_again = self.decision.best, record.config in self._latest
        self._latest[record.config] = record
        if best is None or measured_again:
            self.decision = self._decide(self._latest.values())
            return
        baseline = [r for r in [self._latest.get(self._baseline)] if r is not None]
        self.decision = self._decide([*baseline, best.trial, record])


def _rank(entry: ConfirmedCapacity) -> tuple[float, ...]:
    candidate = entry.candidate
    # A cache that answers nothing only costs, whatever the noise of the measurements says.
    idle = any(use.hits == 0 for use in cache_uses(candidate.measurement.levels))
    cost = candidate.score.fleet_usd_per_hour
    return (idle, cost, *tie_break_key(candidate), entry.trial.number)


def _measured(record: TrialRecord) -> Measurement:
    assert record.measurement is not None, "a trial that met the limits has a measurement"
    return record.measurement


def rounds_of(config: ServingConfig, confirmations: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return the rounds of one configuration, without transient failures."""
    own = [record for record in confirmations if record.config == config]
    return [record for record in own if not record.unmeasured]


def rounds_needed(rounds: Iterable[TrialRecord]) -> int:
    """Return how many rounds confirm a configuration; fewer where a run had no time for more."""
    return min((record.rounds or ROUNDS for record in rounds), default=ROUNDS)


def certified_rounds(
    config: ServingConfig, confirmations: Iterable[TrialRecord]
) -> list[Measurement]:
    """Return the measurements of one configuration's rounds that certified a load."""
    rounds = rounds_of(config, confirmations)
    return [r.measurement for r in rounds if r.outcome == "ok" and r.measurement is not None]


def contradicted_by(confirmations: Iterable[TrialRecord]) -> dict[ServingConfig, TrialRecord]:
    """Return the configurations that missed the limits in a round, with the record of it."""
    return {
        record.config: record
        for record in confirmations
        if record.outcome != "ok" and not record.unmeasured
    }


def claims_of(
    decision: Decision, confirmations: Collection[TrialRecord]
) -> tuple[CapacityClaim, ...]:
    """Compare the best with every other confirmed configuration, best first."""
    if not decision.confirmed:
        return ()
    measured = [certified_rounds(each.config, confirmations) for each in decision.confirmed]
    fewest = min(ROUNDS, *map(len, measured))
    winner, *rivals = (
        Finalist(each.config, tuple(rounds[:fewest]))
        for each, rounds in zip(decision.confirmed, measured, strict=True)
    )
    return claims(winner, rivals)


def candidate_of(
    config: ServingConfig, measurement: Measurement, price: Price, demand: Demand
) -> Candidate | None:
    """Return a configuration with its cost; None where it met the limits at no load."""
    cost = scored(measurement, price, demand)
    if cost is None:
        return None
    return Candidate(config, measurement, cost, p95_at_lowest_load(measurement))


def merged(rounds: Sequence[Measurement]) -> Measurement:
    """Return the rounds of one configuration as one measurement, at the smallest certified load."""
    least = min(rounds, key=lambda m: m.load_factor)
    return replace(
        least,
        levels=tuple(level for m in rounds for level in m.levels),
        load_factor_low=min(m.load_factor_low for m in rounds),
        load_factor_high=least.load_factor_high,
        ended=f"certified in {len(rounds)} round{'s' if len(rounds) > 1 else ''}",
    )


def levels_near(measurement: Measurement, load_factor: float) -> list[LoadLevel]:
    """Return the open-loop levels at a load factor, within a thousandth."""
    return [
        level for level in measurement.open_loop if abs(level.load_factor / load_factor - 1) < 1e-3
    ]


def p95_at_lowest_load(measurement: Measurement) -> float:
    """Return the worst 95th percentile at the lowest load, the demand per replica, in ms.

    It is infinite for the levels of a recorded table, which has no percentiles.
    """
    levels = measurement.open_loop or measurement.levels
    lowest = min(level.load_factor for level in levels)
    try:
        return max(x.latency_ms(95) for x in levels if x.load_factor <= lowest * (1 + 1e-3))
    except KeyError:
        return math.inf


def stored_decision(directory: StudyDirectory, trials: Iterable[TrialRecord]) -> Decision:
    """Return what the records in a study's folder recommend; nothing before its search.

    Args:
        trials: in that folder.

    Raises:
        StorageError: when its files are damaged.
    """
    if not directory.searched.exists():
        return Decision()
    own, confirmations = read_searched(directory), directory.confirmations.read_all()
    return decide(trials, confirmations.values(), own.price, own.demand, own.search_space)
