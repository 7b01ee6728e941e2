"""What came of a study: the recommendation, how far to trust it, and what it took.

The end of a run, `report` and its page say the same by this module.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from optimizer.analysis.lent_savings import LentSavings, lent_savings
from optimizer.analysis.study_reading import StudyReading
from optimizer.analysis.summary import DisturbanceSummary, ParetoEntry, StudySummary
from optimizer.configuration.serving_config import describe
from optimizer.measurement.bursts import BurstComparison
from optimizer.measurement.cold_start import ColdStart
from optimizer.measurement.level_checks import capacity_basis
from optimizer.measurement.transport_costs import TransportComparison
from optimizer.measurement.trial_record import outcome_name
from optimizer.report import number_formats as form
from optimizer.report.burst_tables import bursts_sentence
from optimizer.report.cold_start_tables import cold_start_sentence
from optimizer.report.configurations import (
    cache_table,
    claims_table,
    confidence_text,
    configurations_table,
    rejections_table,
    short_trials_table,
)
from optimizer.report.pipeline_tables import Breakdown, breakdown_parts, breakdowns_of
from optimizer.report.table import Line, Part, Table
from optimizer.report.transport_tables import transports_sentence
from optimizer.study.confidence import CapacityClaim
from optimizer.study.decision import ConfirmedCapacity, Decision, claims_of

_NOTABLE_DRIFT = 0.05


@dataclass(frozen=True)
class StudyOutcome:
    """What came of a study, as far as it went.

    Attributes:
        summary: None while it runs.
        price_warning: that the price is old.
    """

    study: StudyReading
    summary: StudySummary | None
    price_warning: str | None = None

    @cached_property
    def decision(self) -> Decision:
        """What the records recommend at the study's own price and demand."""
        return self.study.own_decision

    @cached_property
    def claims(self) -> tuple[CapacityClaim, ...]:
        """How the best compares with the other confirmed configurations."""
        return claims_of(self.decision, self.study.confirmations)

    @property
    def best(self) -> ConfirmedCapacity | None:
        """The recommendation; None where nothing is within the limits."""
        return self.decision.best

    @property
    def baseline(self) -> ConfirmedCapacity | None:
        """The baseline; None where it met the limits at no load, or was not measured yet."""
        return self.decision.entry_of(self.study.baseline)

    @cached_property
    def cold_start(self) -> ColdStart | None:
        """How the best starts, where that was measured."""
        return self.study.directory.cold_start.read(self.best.config if self.best else None)

    @cached_property
    def transports(self) -> TransportComparison | None:
        """What transports cost on the best, where that was measured."""
        return self.study.directory.transports.read(self.best.config if self.best else None)

    @cached_property
    def bursts(self) -> BurstComparison | None:
        """What bursts do to the best, where that was measured."""
        return self.study.directory.bursts.read(self.best.config if self.best else None)

    def lent_text(self) -> Iterator[str]:
        """Yield what the service times of another study have saved, where one lent them."""
        if (savings := lent_savings(self.study)) is not None:
            yield lent_sentence(savings)

    def headline(self) -> str:
        """Return the recommendation in one sentence."""
        best, searched = self.best, self.study.searched
        if best is None:
            return f"Nothing was found within the limits: {self.study.why_nothing_confirmed}."
        score, measurement = best.candidate.score, best.candidate.measurement
        low, high = measurement.capacity_low_per_second, measurement.capacity_high_per_second
        return (
            f"Serve {describe(best.config)} on {form.count(score.replicas)} x "
            f"{searched.price.instance_type}: {form.usd(score.fleet_usd_per_hour)} an hour for "
            f"{form.rate(searched.demand.requests_per_second)} requests/s, "
            f"{form.usd(score.usd_per_million_at_demand)} per million inferences; one instance "
            f"serves {form.rate(measurement.capacity_per_second)} requests/s "
            f"({form.interval(low, high, form.rate)}) within the limit, "
            f"{_latency(best)}{self._against_baseline()}."
        )

    def _against_baseline(self) -> str:
        best, baseline = self.best, self.baseline
        if best is None or baseline is None or best.config == baseline.config:
            return ""
        own, other = best.candidate.score, baseline.candidate.score
        share = own.usd_per_million_at_capacity / other.usd_per_million_at_capacity
        fleet = own.fleet_usd_per_hour / other.fleet_usd_per_hour
        return (
            f"; a million inferences cost {form.percent(share)} of the baseline's, the fleet "
            f"{form.percent(fleet)}"
        )

    def cautions(self) -> Iterator[str]:
        """Yield what a reader must know before acting on the recommendation."""
        best, summary = self.best, self.summary
        if best is not None and not best.confirmed:
            yield "Not confirmed yet: the best of many noisy measurements is optimistic."
        if summary is None:
            yield "The study has not ended: these are its results so far."
            return
        if (why := summary.nothing_found) is not None:
            if best is not None:
                yield f"{_capitalised(why.reason)}."
            yield f"What to do: {why.advice}."
        if self.claims:
            yield self._next_best(self.claims[0])
        yield from self._ending(summary)
        if summary.accuracy_evidence == "synthetic":
            yield (
                "Accuracy was judged on generated inputs: provide evaluation data before you "
                "trust a lower precision."
            )
        yield from _drift(summary)
        if summary.disturbance is not None:
            yield disturbance_sentence(summary.disturbance)
        if self.price_warning is not None:
            yield f"{_capitalised(self.price_warning)}."

    def _ending(self, summary: StudySummary) -> Iterator[str]:
        """Yield why the search ended, and what it and the confirm phase leave open."""
        yield f"The search ended: {summary.ended}."
        if summary.confirm_shortened is not None:
            yield f"The confirm phase was shortened to end in time: {summary.confirm_shortened}."
        if summary.remaining_gap and self.best is not None and not summary.space_exhausted:
            yield f"Remaining potential: up to {form.percent(summary.remaining_gap)} (95% bound)."

    @staticmethod
    def _next_best(claim: CapacityClaim) -> str:
        if not claim.apart:
            rival = describe(claim.rival)
            return f"No statistically significant difference from the next best, {rival}."
        return (
            f"It serves more than the next best, {describe(claim.rival)}, with a confidence of "
            f"{confidence_text(claim)}."
        )

    def tables(self) -> list[Table]:
        """Return the best beside what it is compared with."""
        tables = []
        if self.best is not None:
            equal = self.decision.equal_cost
            named = [("best", equal[0])]
            if self.baseline is not None and self.baseline not in equal:
                named.append(("baseline", self.baseline))
            named += [("equal cost", each) for each in equal[1:]]
            tables.append(configurations_table("The best and what it is compared with", named))
            if (cache := cache_table(self.decision.ranking)) is not None:
                tables.append(cache)
            if (rejections := rejections_table(self.decision.ranking)) is not None:
                tables.append(rejections)
        if self.claims:
            tables.append(claims_table(self.claims))
        if self.summary is not None and self.summary.pareto:
            tables.append(front_table(self.summary.pareto))
        return tables

    def breakdowns(self, finding: ConfirmedCapacity) -> list[Breakdown]:
        """Return where the time goes in each pipeline of a configuration; empty without one."""
        return breakdowns_of(finding, self.study.trials)

    def course(self) -> str:
        """Return what the study took, in one sentence."""
        trials, summary = self.study.trials, self.summary
        if summary is None:
            measured = sum(record.seconds.measuring for record in trials)
            return f"{len(trials)} trials, {form.seconds(measured)} of load tests."
        counts = ", ".join(
            f"{number} {outcome_name(outcome)}" for outcome, number in summary.trials.items()
        )
        elapsed = f"{form.seconds(summary.wall_seconds)} elapsed in the last run, "
        return (
            f"{len(trials)} trials ({counts}): {elapsed if summary.wall_seconds else ''}"
            f"{form.seconds(summary.measuring_seconds)} of load tests, "
            f"{form.seconds(summary.building_seconds)} of building artefacts, "
            f"{form.seconds(summary.overhead_seconds_per_trial_median)} of overhead per trial "
            "(median)."
        )

    def parts(self) -> list[Part]:
        """Return what a terminal shows when the study has ended."""
        good = self.best is not None and self.best.confirmed
        return [
            short_trials_table(self.study.trials),
            *self.tables(),
            *(breakdown_parts(self.breakdowns(self.best)) if self.best is not None else ()),
            Line(self.headline(), "good" if good else "warning"),
            *(Line(caution) for caution in self.cautions()),
            *(Line(cold_start_sentence(cold)) for cold in [self.cold_start] if cold is not None),
            *(Line(transports_sentence(each)) for each in [self.transports] if each is not None),
            *(Line(bursts_sentence(each)) for each in [self.bursts] if each is not None),
            Line(f"Price: {form.price_text(self.study.searched.price)}."),
            Line(self.course()),
            *map(Line, self.lent_text()),
        ]


def _latency(best: ConfirmedCapacity) -> str:
    """Return the latency at the capacity, of the stream that is nearest to its limit."""
    level = best.candidate.measurement.nearest_level
    assert level is not None, "what meets limits does so at some load"
    worst = level.worst
    percentile = worst.limit_percentile
    text = f"p{percentile:g} {worst.latency_ms(percentile):.0f} of {worst.limit_ms:g} ms"
    basis = capacity_basis(best.candidate.measurement)
    return text if basis is None else f"{text} (the capacity is {basis})"


def _drift(summary: StudySummary) -> Iterator[str]:
    rates, change = summary.pace.saturation_per_second, summary.pace.largest_change
    if len(rates) < 2 and change is None:
        return
    runs, spread = "", 0.0
    if rates:
        ends = f"{form.rate(min(rates))} to {form.rate(max(rates))}"
        runs = f": it saturated at {ends} requests/s in {len(rates)} runs"
        spread = max(rates) / min(rates) - 1
    if change is not None and abs(change) > _NOTABLE_DRIFT:
        yield (
            f"Machine performance drifted by up to {form.change(change)} (baseline rerun{runs}): "
            "trials of different times differ by as much. Interleaved confirmation runs are not "
            "affected."
        )
    elif spread > _NOTABLE_DRIFT:
        yield (
            f"It is not known whether machine performance drifted (baseline rerun{runs}): these "
            f"differ by {form.percent(spread)}, but the difference is within their noise."
        )
    else:
        yield f"Machine performance was stable (baseline rerun{runs})."


def disturbance_sentence(disturbance: DisturbanceSummary) -> str:
    """Return whether trials at the same time slowed each other down."""
    workers, slowdown = disturbance.workers, disturbance.largest_slowdown
    if slowdown is None:
        return f"Trials ran on {workers} workers at the same time, without notable disturbance."
    return (
        f"Trials ran on {workers} workers at the same time, and slowed each other down by up to "
        f"{form.percent(slowdown)}: trials differ by as much. Confirmations ran alone."
    )


def lent_sentence(lent: LentSavings) -> str:
    """Return what the service times of another study have saved."""
    here, there = lent.trials_to_best
    trials = ""
    if here is not None and there is not None:
        trials = f"; the best was trial {here} of this study, and trial {there} of that one"
    return (
        f"The service times of study {lent.lender} were taken over up to a scale: "
        f"{lent.runs} calibration run{'s' if lent.runs != 1 else ''} instead of "
        f"{lent.runs + lent.saved_runs}, which saved about {form.seconds(lent.saved_seconds)}"
        f"{trials}."
    )


def front_table(front: tuple[ParetoEntry, ...]) -> Table:
    """Return the configurations that no other one beats within all limits of a study."""
    return Table(
        "$ per million within each limit: the Pareto front",
        ("configuration", *(f"{limit_ms:g} ms" for limit_ms in front[0].limits_ms)),
        tuple(
            (
                each.description,
                *(
                    "missed" if cost is None else form.usd(cost)
                    for cost in each.usd_per_million_at_capacity
                ),
            )
            for each in front
        ),
    )


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
