"""Which points are saturated first."""

from __future__ import annotations

import numpy as np
import pytest

from optimizer.configuration.hardware import Hardware
from optimizer.configuration.model_space import Limits
from optimizer.configuration.named_parameters import parameters_in_order
from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ServerOptions, ServingConfig
from optimizer.simulator.calibration import CALIBRATION_RUNS, calibration_points
from optimizer.simulator.execution_layout import execution_layout
from optimizer.simulator.service_model import ServiceModel
from optimizer.simulator.service_observation import observe
from tests.unit.service_truths import affine_truth, saturated
from tests.unit.studies import HARDWARE, VALUES, four_points, small_space, ten_points

SPACE = small_space(
    runtime=("pytorch", "onnxruntime", "openvino"), preferred_batch_sizes=("none", "half")
)


def test_the_baseline_is_first_and_no_point_is_twice() -> None:
    points = calibration_points(SPACE)
    assert points[0] == SPACE.baseline
    assert len(set(points)) == len(points) == CALIBRATION_RUNS


def test_every_artifact_is_run() -> None:
    configs = [SPACE.config(point) for point in calibration_points(SPACE)]
    assert {c.models[0].artifact for c in configs} == set(SPACE.artifacts)


def test_the_choice_is_the_same_every_time_and_grows_at_its_end() -> None:
    assert calibration_points(SPACE) == calibration_points(SPACE)
    assert calibration_points(SPACE, 5) == calibration_points(SPACE)[:5]


def test_neither_delay_nor_preferred_sizes_are_spent_a_run_on() -> None:
    configs = [SPACE.config(point) for point in calibration_points(SPACE)]
    batchings = [c.models[0].batching for c in configs if c.models[0].batching is not None]
    assert batchings
    assert all(b.max_queue_delay_us == 0 and not b.preferred_batch_sizes for b in batchings)


def test_a_space_with_fewer_ways_of_serving_is_run_whole() -> None:
    space = four_points()
    assert sorted(calibration_points(space)) == sorted(map(tuple, space.points.tolist()))


def test_a_small_space_takes_fewer_runs() -> None:
    space = ten_points()
    points = calibration_points(space)
    assert len(points) == 3
    truth = affine_truth(0)
    configs = [space.config(point) for point in points]
    model = ServiceModel(tuple(o for c in configs for o in observe(c, saturated(c, truth))))
    servings = [space.config(space.at(row)).models[0] for row in range(len(space))]
    curves = model.curves(
        [(execution_layout(m, ServerOptions()), m.max_batch_size) for m in servings]
    )
    assert np.mean([curve.log_sd for curve in curves]) < 0.1


def test_chosen_runs_tell_more_than_what_chance_draws() -> None:
    truth = affine_truth(0)

    def left(configs: list[ServingConfig]) -> float:
        model = ServiceModel(tuple(o for c in configs for o in observe(c, saturated(c, truth))))
        servings = [SPACE.config(SPACE.at(row)).models[0] for row in range(len(SPACE))]
        curves = model.curves(
            [(execution_layout(m, ServerOptions()), m.max_batch_size) for m in servings]
        )
        return float(np.mean([curve.log_sd**2 for curve in curves]))

    chosen = left([SPACE.config(point) for point in calibration_points(SPACE)])
    rng = np.random.default_rng(0)
    others = [
        left(
            [
                SPACE.config(SPACE.at(int(row)))
                for row in rng.choice(len(SPACE), CALIBRATION_RUNS, replace=False)
            ]
        )
        for _ in range(8)
    ]
    assert chosen < 0.7 * np.median(others)


def test_models_that_are_served_together_are_run_together() -> None:
    parameters = [p for name in ("bert", "ranker") for p in parameters_in_order(name, VALUES)]
    space = SearchSpace(tuple(parameters), HARDWARE, Limits())
    points = calibration_points(space, 6)
    assert points[0] == space.baseline
    configs = [space.config(point) for point in points]
    for at in (0, 1):
        assert len({config.models[at].artifact for config in configs}) == 3


@pytest.mark.timeout(20)
def test_a_space_of_many_points_is_sampled() -> None:
    space = small_space(
        hardware=Hardware(cores=64, memory_mib=64_000),
        runtime=("pytorch", "onnxruntime", "openvino"),
        precision=("fp32", "bf16", "int8"),
        max_batch_size=(2, 4, 8, 12, 16, 24, 32, 48, 64),
        instance_count=(1, 2, 3, 4, 5, 6, 8),
        intra_op_threads=(1, 2, 3, 4, 6, 8, 12),
    )
    points = calibration_points(space)
    assert points[0] == space.baseline
    assert len(set(points)) == CALIBRATION_RUNS
