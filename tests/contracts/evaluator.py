"""What holds for every evaluator. `test_evaluator` runs it on those that need no server, and
tests/e2e/test_serving.py on the live one with a real server.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from optimizer.configuration.serving_config import ServingConfig
from optimizer.machine.slots import Slot
from optimizer.measurement.evaluation import Evaluation
from optimizer.search.evaluator import Evaluator


@dataclass(frozen=True)
class EvaluatorCase:
    """An evaluator, a configuration that meets its limits, and evaluations of one that fails."""

    evaluator: Evaluator
    config: ServingConfig
    slot: Slot
    failing: Callable[[], list[Evaluation]]

    def evaluate(self, prune_below: float | None = None) -> Evaluation:
        return self.evaluator.evaluate(self.config, self.slot, prune_below)


def evaluations(evaluator: Evaluator, config: ServingConfig, slot: Slot) -> list[Evaluation]:
    """One of every method."""
    methods = (evaluator.evaluate, evaluator.saturate, evaluator.calibrate)
    return [method(config, slot) for method in methods]


class EvaluatorContract:
    """A subclass has a fixture `case` of scope class."""

    @pytest.fixture(scope="class")
    @classmethod
    def evaluated(cls, case: EvaluatorCase) -> Evaluation:
        return case.evaluate()

    @pytest.fixture(scope="class")
    @classmethod
    def saturated(cls, case: EvaluatorCase) -> Evaluation:
        return case.evaluator.saturate(case.config, case.slot)

    @pytest.fixture(scope="class")
    @classmethod
    def calibrated(cls, case: EvaluatorCase) -> Evaluation:
        return case.evaluator.calibrate(case.config, case.slot)

    def test_a_capacity_has_an_interval_and_meets_the_limits(self, evaluated: Evaluation) -> None:
        assert evaluated.outcome == "ok", evaluated.reason
        measurement = evaluated.valid_measurement
        assert 0 < measurement.load_factor_low <= measurement.load_factor
        high = measurement.load_factor_high
        assert high is None or measurement.load_factor <= high
        assert evaluated.limit_overshoot is not None
        assert evaluated.limit_overshoot <= 0

    def test_every_measurement_begins_with_saturation(
        self, evaluated: Evaluation, saturated: Evaluation, calibrated: Evaluation
    ) -> None:
        for evaluation in (evaluated, saturated, calibrated):
            first, *others = evaluation.valid_measurement.levels
            assert first.kind == "saturation"
            assert {level.kind for level in others} <= {"open_loop"}
            assert evaluation.saturation_per_second == first.achieved_per_second > 0
            low_per_second, high_per_second = first.rate[1:]
            assert low_per_second <= first.achieved_per_second * 1.05
            assert high_per_second >= first.achieved_per_second * 0.95

    def test_every_level_has_all_streams_and_the_servers_batches(
        self, case: EvaluatorCase, evaluated: Evaluation, calibrated: Evaluation
    ) -> None:
        models = {model.name for model in case.config.models}
        levels = (*evaluated.valid_measurement.levels, *calibrated.valid_measurement.levels)
        streams = {tuple(stream.name for stream in level.streams) for level in levels}
        assert len(streams) == 1
        for level in levels:
            assert {split.model for split in level.server} == models
            assert all(split.batches for split in level.server)
            assert level.seconds > 0

    def test_saturation_certifies_nothing(
        self, saturated: Evaluation, calibrated: Evaluation
    ) -> None:
        for evaluation in (saturated, calibrated):
            assert evaluation.outcome == "bounded"
            assert evaluation.limit_overshoot == 0
            measurement = evaluation.valid_measurement
            assert (measurement.load_factor, measurement.load_factor_low) == (0, 0)
            assert measurement.load_factor_high is not None
            assert measurement.load_factor_high >= measurement.levels[0].load_factor * 0.99
        assert len(saturated.valid_measurement.levels) == 1

    def test_calibration_adds_a_light_load(self, calibrated: Evaluation) -> None:
        saturation, light = calibrated.valid_measurement.levels
        assert light.load_factor == pytest.approx(0.5 * saturation.load_factor, rel=0.25)
        assert {95.0} <= {p.percentile for stream in light.streams for p in stream.latencies}

    def test_a_configuration_that_cannot_reach_the_bound_is_only_saturated(
        self, case: EvaluatorCase, saturated: Evaluation
    ) -> None:
        high = saturated.valid_measurement.load_factor_high
        assert high is not None
        pruned = case.evaluate(prune_below=10 * high)
        assert pruned.outcome == "bounded"
        assert [level.kind for level in pruned.valid_measurement.levels] == ["saturation"]
        assert pruned.seconds.measuring > 0

    def test_a_bound_that_it_can_reach_changes_no_outcome(
        self, case: EvaluatorCase, evaluated: Evaluation
    ) -> None:
        bound = 0.1 * evaluated.valid_measurement.load_factor
        assert case.evaluate(prune_below=bound).outcome == "ok"

    def test_a_failure_is_an_outcome_with_its_reason(self, case: EvaluatorCase) -> None:
        for evaluation in case.failing():
            assert evaluation.outcome == "failed"
            assert evaluation.reason.strip()
            assert evaluation.failure is not None
            assert evaluation.failure.kind
            assert (evaluation.measurement, evaluation.limit_overshoot) == (None, None)
            assert evaluation.saturation_per_second is None
            assert evaluation.extra_limits == ()

    def test_the_time_that_it_took_is_told(
        self, evaluated: Evaluation, saturated: Evaluation, calibrated: Evaluation
    ) -> None:
        for evaluation in (evaluated, saturated, calibrated):
            assert evaluation.seconds.measuring > 0
            assert evaluation.seconds.serving >= 0
            assert evaluation.reason == evaluation.valid_measurement.ended
