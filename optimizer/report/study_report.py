"""Everything that a report shows of a study, worked out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optimizer.analysis.effects import Effects
from optimizer.analysis.latency_curve import LatencyCosts
from optimizer.analysis.study_reading import StudyReading
from optimizer.configuration.serving_config import ServingConfig, describe
from optimizer.measurement.level import LoadLevel, ServerSplit
from optimizer.report.model_figures import Predicted
from optimizer.report.pipeline_tables import step_times_ms
from optimizer.report.server_figures import Timings, times_ms
from optimizer.report.study_figures import PredictedCurve
from optimizer.report.study_outcome import StudyOutcome
from optimizer.study.pipeline_times import composed_targets, pipeline_times

_FINALISTS = 4
"""Whose levels are drawn, beside the baseline."""


@dataclass(frozen=True)
class StudyReport:
    """What a report shows of a study.

    Attributes:
        effects: over all configurations, None where nothing tells what they cost.
        predicted: from calibration alone, beside what was measured later.
        costs: of other limits, None where nothing was measured.
        curves: predicted latency against load of the finalists, by the configuration in words and
            the stream.
        written: when, for people.
        left_at_baseline: sentences about models that the search left there.
    """

    outcome: StudyOutcome
    effects: Effects | None
    predicted: tuple[Predicted, ...]
    costs: LatencyCosts | None
    curves: Mapping[tuple[str, str], PredictedCurve]
    written: str
    left_at_baseline: tuple[str, ...] = ()

    @property
    def study(self) -> StudyReading:
        """The study's records."""
        return self.outcome.study

    @property
    def title(self) -> str:
        """Title of page and file."""
        return f"Study {self.study.name}"

    def finalists(self) -> list[ServingConfig]:
        """Return the best few configurations and the baseline."""
        return finalists(self.outcome)

    def levels_at_capacity(self) -> dict[str, LoadLevel]:
        """Return the load level at the capacity of each finalist, by configuration in words."""
        outcome = self.outcome
        baseline = (outcome.baseline,) if outcome.baseline is not None else ()
        measured = {
            each.config: each.candidate.measurement
            for each in (*baseline, *outcome.decision.ranking)
        }
        levels = {config: measured[config].nearest_level for config in self.finalists()}
        return {describe(c): level for c, level in levels.items() if level is not None}

    def timings(self, config: ServingConfig) -> Timings:
        """Return how long the artefacts of a configuration took when they were prepared."""
        artifacts = self.outcome.summary.artifacts if self.outcome.summary is not None else ()
        timings = {each.artifact: each.timings for each in artifacts}
        return {model.name: timings.get(model.artifact.label, ()) for model in config.models}

    def times_at_capacity(self) -> dict[str, Mapping[str, float]]:
        """Return where a request's time goes, by configuration in words, of the finalists."""
        configs = {describe(config): config for config in self.finalists()}
        levels = self.levels_at_capacity()
        return {name: self._times_ms(configs[name], level) for name, level in levels.items()}

    def batches_at_capacity(self) -> dict[str, Sequence[ServerSplit]]:
        """Return what was executed, by configuration in words; of a pipeline by the best's step."""
        levels = self.levels_at_capacity()
        best, *_ = self.finalists()
        if composed_targets(best) and (level := levels.get(describe(best))) is not None:
            return {f"{split.model}, of the best": (split,) for split in level.executed}
        return {name: level.executed for name, level in levels.items()}

    def _times_ms(self, config: ServingConfig, level: LoadLevel) -> Mapping[str, float]:
        """Return the parts of a request's time; of a pipeline that is served alone, by step."""
        pipelines = composed_targets(config)
        if len(config.targets) == len(pipelines) == 1:
            times = pipeline_times(config, pipelines[0], level)
            if times is not None:
                return step_times_ms(times)
        return times_ms(level, self.timings(config))

    @property
    def space_content(self) -> str:
        """The space file as it was read; JSON, which is YAML too."""
        return json.dumps(dict(self.study.content), indent=2, ensure_ascii=False)


def finalists(outcome: StudyOutcome) -> list[ServingConfig]:
    """Return the configurations whose loads are drawn: the best few and the baseline."""
    best = [each.config for each in outcome.decision.ranking[:_FINALISTS]]
    own = [outcome.baseline.config] if outcome.baseline is not None else []
    return list(dict.fromkeys([*best, *own]))
