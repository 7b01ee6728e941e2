"""Which configuration a study recommends, by its records alone. Pure.

Every command that names a best configuration, and the run itself at its end, asks `decide`:

    best = decide(trials, confirmations, price, demand).best
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.cost import Candidate, Demand, Price, tie_break_key
from optimizer.measurement.level import LoadLevel, Measurement
from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.confidence import CapacityClaim, Finalist, claims
from optimizer.study.directory import StudyDirectory
from optimizer.study.history import scored
from optimizer.study.searched_space import read_searched
from optimizer.study.warm_start import at_demand

ROUNDS = 2
"""How often the confirm phase measures a configuration."""


@dataclass(frozen=True)
class ConfirmedCapacity:
    """A configuration that met the limits.

    Attributes:
        candidate: with its cost at the price and demand that were asked about.
        trial: the record of the search that found it.
        confirmed: whether the figures are of the confirm phase.
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
        """Its capacity, its cost and its status in one line."""
        measurement, score = self.candidate.measurement, self.candidate.score
        return (
            f"{measurement.capacity_per_second:.0f}/s, "
            f"${score.usd_per_million_at_capacity:.4f} per million, {self.status}"
        )

    def latency_ms(self, percentile: float) -> float | None:
        """At the capacity, the worst over streams and rounds; None where no level is near it."""
        measurement = self.candidate.measurement
        levels = levels_near(measurement, measurement.load_factor)
        if not levels and (level := measurement.level_at_capacity) is not None:
            levels = [level]
        return max((level.latency_ms(percentile) for level in levels), default=None)


@dataclass(frozen=True)
class Decision:
    """The configurations of a study that are within its limits, best first.

    Attributes:
        confirmed: those that held a load in every round of the confirm phase.
        unconfirmed: the others that met the limits in a trial, unless a round contradicted that.
    """

    confirmed: tuple[ConfirmedCapacity, ...] = ()
    unconfirmed: tuple[ConfirmedCapacity, ...] = ()

    @property
    def ranking(self) -> tuple[ConfirmedCapacity, ...]:
        """What is recommended from: unconfirmed figures count only where nothing is confirmed."""
        return self.confirmed or self.unconfirmed

    @property
    def contenders(self) -> tuple[ConfirmedCapacity, ...]:
        """All of them: what was confirmed, and then the rest."""
        return self.confirmed + self.unconfirmed

    @property
    def best(self) -> ConfirmedCapacity | None:
        """What the study recommends; None where nothing is within the limits."""
        return next(iter(self.ranking), None)

    @property
    def equal_cost(self) -> tuple[ConfirmedCapacity, ...]:
        """The best, and what else serves the demand with as cheap a fleet."""
        fleets = [each.candidate.score.fleet_usd_per_hour for each in self.ranking]
        return tuple(
            each for each, fleet in zip(self.ranking, fleets, strict=True) if fleet <= fleets[0]
        )

    def entry_of(self, config: ServingConfig) -> ConfirmedCapacity | None:
        """The finding of one configuration, such as the baseline; None where it is not one."""
        return next((each for each in self.ranking if each.config == config), None)


def decide(
    trials: Iterable[TrialRecord],
    confirmations: Collection[TrialRecord],
    price: Price,
    demand: Demand,
    space: SearchSpace | None = None,
) -> Decision:
    """Rank what a study found, by cost and the rules for ties.

    Args:
        trials: records of the search.
        confirmations: records of the confirm phase, by whichever run.
        space: that a configuration must belong to: its artefact may have left the space since it
            was measured. None accepts every configuration.
    """
    contradicted = contradicted_by(confirmations)
    # A configuration that was measured again counts by its last trial.
    latest = {record.config: record for record in trials if record.outcome == "ok"}
    confirmed, unconfirmed = list[ConfirmedCapacity](), list[ConfirmedCapacity]()
    for config, trial in latest.items():
        if config in contradicted or (space is not None and space.position_of(config) is None):
            continue
        held = certified_rounds(config, confirmations)
        is_confirmed = len(held) >= ROUNDS
        measurement = merged(held) if is_confirmed else _measured(trial)
        relative = at_demand(demand.requests_per_second, measurement)
        candidate = candidate_of(config, relative, price, demand)
        if candidate is not None:
            found = confirmed if is_confirmed else unconfirmed
            found.append(ConfirmedCapacity(candidate, trial, is_confirmed))
    return Decision(tuple(sorted(confirmed, key=_rank)), tuple(sorted(unconfirmed, key=_rank)))


def _rank(finding: ConfirmedCapacity) -> tuple[float, ...]:
    candidate = finding.candidate
    return (candidate.score.fleet_usd_per_hour, *tie_break_key(candidate), finding.trial.number)


def _measured(record: TrialRecord) -> Measurement:
    assert record.measurement is not None, "a trial that met the limits was measured"
    return record.measurement


def rounds_of(config: ServingConfig, confirmations: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return the rounds of one configuration; a transient failure is none of them."""
    own = [record for record in confirmations if record.config == config]
    return [record for record in own if not record.unmeasured]


def certified_rounds(
    config: ServingConfig, confirmations: Iterable[TrialRecord]
) -> list[Measurement]:
    """Return what the rounds of one configuration measured, as far as they held a load."""
    rounds = rounds_of(config, confirmations)
    return [r.measurement for r in rounds if r.outcome == "ok" and r.measurement is not None]


def contradicted_by(confirmations: Iterable[TrialRecord]) -> dict[ServingConfig, TrialRecord]:
    """Return the configurations that failed to hold a load when measured again, and that round."""
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
    winner, *rivals = (
        Finalist(each.config, tuple(certified_rounds(each.config, confirmations)[:ROUNDS]))
        for each in decision.confirmed
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
    """Return the rounds of one configuration as one measurement, at the least that they held."""
    least = min(rounds, key=lambda m: m.load_factor)
    return replace(
        least,
        levels=tuple(level for m in rounds for level in m.levels),
        load_factor_low=min(m.load_factor_low for m in rounds),
        load_factor_high=least.load_factor_high,
        ended=f"held in {len(rounds)} rounds",
    )


def levels_near(measurement: Measurement, load_factor: float) -> list[LoadLevel]:
    """Return the open-loop levels at a load factor, within a thousandth."""
    return [
        level for level in measurement.open_loop if abs(level.load_factor / load_factor - 1) < 1e-3
    ]


def p95_at_lowest_load(measurement: Measurement) -> float:
    """Return the worst 95th percentile at the lowest load: the demand per replica, in ms.

    It is infinite for the levels of a recorded table, which keeps no percentiles.
    """
    levels = measurement.open_loop or measurement.levels
    lowest = min(level.load_factor for level in levels)
    try:
        return max(x.latency_ms(95) for x in levels if x.load_factor <= lowest * (1 + 1e-3))
    except KeyError:
        return math.inf


def stored_decision(directory: StudyDirectory) -> Decision:
    """Return what the records in a study's folder recommend; nothing before its search.

    Raises:
        StorageError: when its files are damaged.
    """
    if not directory.searched.exists():
        return Decision()
    own = read_searched(directory)
    trials, confirmations = directory.trials.read_all(), directory.confirmations.read_all()
    return decide(trials.values(), confirmations.values(), own.price, own.demand, own.search_space)
