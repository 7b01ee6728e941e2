"""What is known of a study, and what follows from it for whoever acts on it. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from optimizer.analysis.effects import Effects
from optimizer.analysis.latency_curve import LatencyCosts
from optimizer.analysis.study_reading import StudyReading
from optimizer.analysis.summary import StudySummary
from optimizer.configuration.serving_config import ServingConfig, describe
from optimizer.load.level_checks import capacity_basis
from optimizer.measurement.cost import Candidate
from optimizer.measurement.level import LoadLevel
from optimizer.report.cells import usd
from optimizer.report.model_figures import Predicted
from optimizer.report.server_figures import Timings, times_ms
from optimizer.report.study_figures import PredictedCurve
from optimizer.study.confidence import CapacityClaim
from optimizer.study.decision import ConfirmedCapacity, Decision

_FINALISTS = 4
"""Whose levels are drawn, beside the baseline."""


@dataclass(frozen=True)
class StudyReport:
    """What is known of a study.

    Attributes:
        summary: what it came to, see `optimizer.analysis.summary`; None while it runs.
        decision: what its records recommend.
        baseline: None where it met the limits at no load, or was not measured yet.
        claims: how the best compares with the other confirmed configurations.
        effects: over all configurations, None where nothing tells what they cost.
        predicted: from calibration alone, beside what was measured later.
        costs: of other limits, None where nothing was measured.
        curves: predicted latency against load, of the finalists that are drawn, by the
            configuration in words and the stream.
        price_warning: that the price is old.
        written: when, for people.
    """

    study: StudyReading
    summary: StudySummary | None
    decision: Decision
    baseline: Candidate | None
    claims: tuple[CapacityClaim, ...]
    effects: Effects | None
    predicted: tuple[Predicted, ...]
    costs: LatencyCosts | None
    curves: Mapping[tuple[str, str], PredictedCurve]
    price_warning: str | None
    written: str

    @property
    def title(self) -> str:
        """Of page and file."""
        return f"Study {self.study.name}"

    @property
    def best(self) -> Candidate | None:
        """The recommendation."""
        best = self.decision.best
        return best.candidate if best is not None else None

    @property
    def findings(self) -> tuple[ConfirmedCapacity, ...]:
        """Configurations within the limits, best first."""
        return self.decision.ranking

    def headline(self) -> str:
        """The recommendation in one sentence."""
        best, searched = self.best, self.study.searched
        if best is None:
            return f"Nothing was found within the limits: {self.study.nothing_found}."
        score, measurement = best.score, best.measurement
        high = measurement.capacity_high_per_second
        capacity = (
            f"{measurement.capacity_per_second:,.0f} requests/s "
            f"({measurement.capacity_low_per_second:,.0f} to "
            f"{f'{high:,.0f}' if high is not None else 'more'})"
        )
        count = f"{score.replicas:,} x {searched.price.instance_type}"
        return (
            f"Serve {describe(best.config)} on {count}: {usd(score.fleet_usd_per_hour)} an hour "
            f"for {searched.demand.requests_per_second:,g} requests/s, "
            f"{usd(score.usd_per_million_at_demand)} per million inferences; one instance serves "
            f"{capacity} within the limit, {self._latency(best)}{self._against_baseline()}."
        )

    def _latency(self, best: Candidate) -> str:
        """Of the stream that is nearest to its limit, at the capacity."""
        level = best.measurement.nearest_level
        assert level is not None, "what meets limits does so at some load"
        worst = level.worst
        percentile = worst.limit_percentile
        text = f"p{percentile:g} {worst.latency_ms(percentile):.0f} of {worst.limit_ms:g} ms"
        basis = capacity_basis(best.measurement)
        return text if basis is None else f"{text} (the capacity is {basis})"

    def _against_baseline(self) -> str:
        best, baseline = self.best, self.baseline
        if best is None or baseline is None or best.config == baseline.config:
            return ""
        own, other = best.score, baseline.score
        share = own.usd_per_million_at_capacity / other.usd_per_million_at_capacity
        fleet = own.fleet_usd_per_hour / other.fleet_usd_per_hour
        return f"; a million costs {share:.0%} of the baseline's, the fleet {fleet:.0%}"

    def cautions(self) -> Iterator[str]:
        """What a reader must know before acting on it."""
        summary = self.summary
        if self.decision.best is not None and not self.decision.best.confirmed:
            yield "It is unconfirmed: it was measured once, and the best of many is too good."
        if summary is None:
            yield "The study has not ended: what follows is its state by now."
            return
        if self.claims:
            next_best = self.claims[0]
            apart = "" if next_best.apart else ": the two cannot be told apart"
            yield (
                f"It serves more than the next best, {describe(next_best.rival)}, with a "
                f"confidence of {next_best.confidence:.1%}{apart}."
            )
        gap = summary.remaining_gap
        left = f"; an unmeasured one may be up to {gap:.0%} cheaper (95 %)" if gap else ""
        yield f"The search ended: {summary.ended}{left}."
        if summary.accuracy_evidence == "synthetic":
            yield (
                "Accuracy was judged on generated inputs: give evaluation data before you trust a "
                "lower precision."
            )
        change = summary.pace.largest_change
        if change is not None and abs(change) > 0.05:
            yield (
                f"The machine's pace changed by up to {change:+.0%} while it was measured; "
                "finalists were measured in turn, so that their ratios hold."
            )
        if self.price_warning is not None:
            yield f"{self.price_warning[0].upper()}{self.price_warning[1:]}."

    def finalists(self) -> list[ServingConfig]:
        """The best few and the baseline."""
        return drawn(self.findings, self.baseline)

    def levels_at_capacity(self) -> dict[str, LoadLevel]:
        """By configuration in words, of the finalists."""
        measured = {each.candidate.config: each.candidate.measurement for each in self.findings}
        if self.baseline is not None:
            measured.setdefault(self.baseline.config, self.baseline.measurement)
        found = {config: measured[config].nearest_level for config in self.finalists()}
        return {describe(c): level for c, level in found.items() if level is not None}

    def timings(self, config: ServingConfig) -> Timings:
        """Return how long the artefacts of a configuration took when they were prepared."""
        artifacts = self.summary.artifacts if self.summary is not None else ()
        timings = {each.artifact: each.timings for each in artifacts}
        return {model.name: timings.get(model.artifact.label, ()) for model in config.models}

    def times_at_capacity(self) -> dict[str, Mapping[str, float]]:
        """Return where a request's time goes, by configuration in words, of the finalists."""
        timings = {describe(config): self.timings(config) for config in self.finalists()}
        levels = self.levels_at_capacity()
        return {name: times_ms(level, timings[name]) for name, level in levels.items()}

    @property
    def space_content(self) -> str:
        """The space file as it was read; JSON, which is YAML too."""
        return json.dumps(dict(self.study.content), indent=2, ensure_ascii=False)


def drawn(findings: Sequence[ConfirmedCapacity], baseline: Candidate | None) -> list[ServingConfig]:
    """The configurations whose loads are drawn: the best few and the baseline."""
    best = [each.candidate.config for each in findings[:_FINALISTS]]
    return list(dict.fromkeys([*best, *([baseline.config] if baseline is not None else [])]))
