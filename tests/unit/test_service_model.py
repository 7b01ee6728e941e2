"""From saturated levels to the service times of every execution layout."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import InstanceGroup, ServingConfig
from optimizer.measurement.level import BatchPoint, LoadLevel, ServerSplit
from optimizer.measurement.resource_use import MachineUse
from optimizer.simulator.calibration import calibration_points
from optimizer.simulator.execution_layout import execution_layout
from optimizer.simulator.service_model import ServiceModel
from optimizer.simulator.service_observation import ServiceObservation, observe
from tests.unit.service_truths import Truth, affine_truth, levels_of, saturated
from tests.unit.studies import level, small_space

SPACE = small_space(
    runtime=("pytorch", "onnxruntime", "openvino"),
    precision=("fp32", "bf16", "int8"),
    max_batch_size=(4, 8, 16, 32, 64),
)
NOISE = 0.03


def config_of(space: SearchSpace = SPACE, **wanted: object) -> ServingConfig:
    """The first point whose artifact, group and batch are as wanted."""
    for row in range(len(space)):
        config = space.config(space.at(row))
        (model,) = config.models
        own = {
            "runtime": model.artifact.runtime,
            "precision": model.artifact.precision,
            "largest": model.max_batch_size,
            "instances": model.instance_count,
            "threads": model.groups[0].threads,
        }
        if wanted.items() <= own.items():
            return config
    raise AssertionError(f"no such point: {wanted}")


def with_batches(shown: LoadLevel, *batches: BatchPoint) -> LoadLevel:
    return replace(shown, server=(replace(shown.server[0], batches=batches),))


def calibrated(truth: Truth, seed: int, runs: int = 8) -> ServiceModel:
    """From noisy levels at the calibration points."""
    rng = np.random.default_rng(seed)
    configs = [SPACE.config(point) for point in calibration_points(SPACE, runs)]
    found = [
        observe(config, saturated(config, truth, math.exp(rng.normal(0, NOISE))))
        for config in configs
    ]
    return ServiceModel(tuple(each for one in found for each in one))


def errors(truth: Truth, model: ServiceModel) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of the log times of the largest batches of what was not measured, with their log_sd."""
    known = {(o.layout, max(t.batch_size for t in o.times)) for o in model.observations}
    unseen = [(w, size) for _, w, size in levels_of(SPACE) if size > 1 and (w, size) not in known]
    curves = model.curves(unseen)
    pairs = zip(curves, unseen, strict=True)
    log_errors = [math.log(curve.execution_ms[-1] / truth(*own)) for curve, own in pairs]
    return np.array(log_errors), np.array([curve.log_sd for curve in curves])


def test_the_occupancy_of_an_instance_is_what_the_rate_says() -> None:
    config = config_of(largest=8, instances=2)
    truth = affine_truth(0)
    (found,) = observe(config, saturated(config, truth, overhead_ms=0.7))
    assert found.layout == execution_layout(config.models[0], config.server)
    assert [time.batch_size for time in found.times] == [4, 8]
    for time in found.times:
        expected = truth(found.layout, time.batch_size)
        # How much of the overhead goes with the requests is not known.
        assert time.occupancy_ms == pytest.approx(expected, rel=0.04)
    mean = sum(t.occupancy_ms * t.executions for t in found.times) / 1000
    true_mean = sum(truth(found.layout, t.batch_size) * t.executions for t in found.times) / 1000
    assert mean == pytest.approx(true_mean)


def test_overhead_of_a_single_batch_size_is_in_no_doubt() -> None:
    config = config_of(largest=1)
    (found,) = observe(config, saturated(config, affine_truth(0), overhead_ms=0.7))
    (time,) = found.times
    assert time.occupancy_ms == pytest.approx(affine_truth(0)(found.layout, 1))
    assert time.log_sd == 0


def test_a_rate_above_what_the_compute_times_allow_scales_them() -> None:
    config = config_of(largest=8)
    (found,) = observe(config, saturated(config, affine_truth(0), overhead_ms=-0.2))
    mean = sum(t.occupancy_ms * t.executions for t in found.times) / 1000
    expected = 0.9 * affine_truth(0)(found.layout, 8) + 0.1 * affine_truth(0)(found.layout, 4)
    assert mean == pytest.approx(expected)


def test_batch_sizes_with_hardly_any_executions_are_left_out() -> None:
    config = config_of(largest=8)
    shown = saturated(config, affine_truth(0))
    rare = with_batches(shown, BatchPoint(1, 3, 2.0), *shown.server[0].batches)
    (found,) = observe(config, rare)
    assert [time.batch_size for time in found.times] == [4, 8]


def test_requests_of_several_inferences_are_counted_as_such() -> None:
    config = config_of(largest=8)
    shown = saturated(config, affine_truth(0))
    in_pairs = replace(
        shown,
        server=(replace(shown.server[0], requests=shown.server[0].requests // 2),),
        streams=(replace(shown.streams[0], achieved_per_second=shown.achieved_per_second / 2),),
    )
    assert observe(config, in_pairs)[0].times == pytest.approx(observe(config, shown)[0].times)


def light(config: ServingConfig, *points: BatchPoint) -> LoadLevel:
    requests = sum(point.batch_size * point.executions for point in points)
    split = ServerSplit(config.models[0].name, requests, 1.0, 0.1, 5.0, 0.1, points)
    return replace(level(0.5), server=(split,))


def test_a_light_load_tells_of_sizes_that_saturation_does_not_show() -> None:
    config, truth = config_of(largest=8), affine_truth(0)
    layout = execution_layout(config.models[0], config.server)
    shown = saturated(config, truth, overhead_ms=0.8)
    small = light(config, BatchPoint(1, 90, truth(layout, 1) - 0.1), BatchPoint(8, 9, 99.0))
    (found,) = observe(config, shown, small)
    assert [time.batch_size for time in found.times] == [4, 8, 1]
    single = found.times[-1]
    # A tenth of a millisecond for each request is what saturation shows beside computing.
    assert single.occupancy_ms == pytest.approx(truth(layout, 1), rel=0.01)
    assert single.log_sd > max(time.log_sd for time in found.times[:2])


def test_a_light_load_of_saturated_sizes_alone_tells_nothing_more() -> None:
    config, truth = config_of(largest=1), affine_truth(0)
    shown = saturated(config, truth)
    assert observe(config, shown, light(config, BatchPoint(1, 90, 99.0))) == observe(config, shown)


def test_only_a_saturated_level_shows_service_times() -> None:
    with pytest.raises(ValueError, match="got one of kind open_loop"):
        observe(config_of(), level(0.5))


def test_a_model_that_waits_for_requests_tells_its_compute_time_alone() -> None:
    (model,) = config_of(largest=8).models
    other = replace(model, name="ranker")
    config = ServingConfig((model, other))
    batches = (BatchPoint(8, 100, 10.0),)
    busy = ServerSplit("bert", 800, 50.0, 0.0, 10.0, 0.0, batches)
    idle = ServerSplit("ranker", 800, 0.1, 0.0, 10.0, 0.0, batches)
    shown = replace(level(2.0, kind="saturation"), server=(busy, idle), replied_ms=40.0)
    first, second = observe(config, shown)
    # 500 of the 1,000 requests a second are each model's: 62.5 executions.
    assert first.times[0].occupancy_ms == pytest.approx(16.0)
    assert second.times[0].occupancy_ms == pytest.approx(10.0)


def test_what_was_measured_is_recovered() -> None:
    truth = affine_truth(1)
    model = calibrated(truth, 1)
    for observation in model.observations:
        largest = max(observation.times, key=lambda time: time.batch_size)
        (curve,) = model.curves([(observation.layout, largest.batch_size)])
        assert curve.execution_ms[-1] == pytest.approx(largest.occupancy_ms, rel=0.02)
        assert curve.log_sd < 0.035


def test_eight_runs_tell_of_what_was_never_run() -> None:
    found = [np.abs(errors(truth, calibrated(truth, n))[0]) for n, truth in _truths()]
    assert np.median(np.concatenate(found)) < 0.10
    assert np.quantile(np.concatenate(found), 0.9) < 0.20


def test_the_standard_deviation_is_honest() -> None:
    pairs = [errors(truth, calibrated(truth, n)) for n, truth in _truths()]
    ratios = np.concatenate([np.abs(error) / sd for error, sd in pairs])
    assert 0.55 < np.mean(ratios < 1) < 0.97
    assert np.mean(ratios < 2) > 0.9
    assert np.mean(ratios < 0.1) < 0.3


def _truths() -> list[tuple[int, Truth]]:
    return [(seed, affine_truth(seed)) for seed in range(12)]


def test_more_observations_narrow_what_is_not_known() -> None:
    truth = affine_truth(2)
    few, many = (calibrated(truth, 2, runs) for runs in (4, 16))
    unseen = [(layout, size) for _, layout, size in levels_of(SPACE)]
    wide, narrow = (np.array([c.log_sd for c in m.curves(unseen)]) for m in (few, many))
    assert (narrow <= wide + 0.02).all()
    assert np.median(narrow) < 0.7 * np.median(wide)


def test_a_curve_has_the_powers_of_two_and_the_largest_batch() -> None:
    model = calibrated(affine_truth(0), 0)
    layout = execution_layout(config_of().models[0], config_of().server)
    (curve,) = model.curves([(layout, 24)])
    assert curve.batch_sizes == (1, 2, 4, 8, 16, 24)
    assert list(curve.execution_ms) == sorted(curve.execution_ms)
    assert curve.outside_ms == pytest.approx(1.5)
    assert model.curve(config_of(largest=1).models[0]).batch_sizes == (1,)


def test_one_busy_instance_is_never_slower_than_all() -> None:
    model = calibrated(affine_truth(0), 0)
    curve = model.curve(config_of(largest=8, instances=2).models[0])
    alone, together = curve.busy_factors
    assert alone < together == 1.0
    (group,) = config_of(largest=8, instances=2).models[0].groups
    three = replace(config_of(largest=8).models[0], groups=(replace(group, count=3),))
    factors = model.curve(three).busy_factors
    assert factors[1] == pytest.approx((factors[0] + 1) / 2)


def test_instances_on_one_gpu_share_it() -> None:
    gpu = InstanceGroup("KIND_GPU", 1, (0,))
    model = config_of(runtime="onnxruntime", precision="fp32", largest=8).models[0]
    config = ServingConfig((replace(model, groups=(gpu,)),))
    seen = observe(config, saturated(config, lambda layout, size: 2.0 + size))
    fit = ServiceModel(seen)
    times = [
        fit.curve(replace(model, groups=(replace(gpu, count=count),))).execution_ms[-1]
        for count in (1, 2)
    ]
    assert times[1] / times[0] == pytest.approx(math.exp(0.5), rel=0.02)
    two_gpus = fit.curve(replace(model, groups=(replace(gpu, logical_gpus=(0, 1)),)))
    assert two_gpus.execution_ms[-1] == pytest.approx(times[0], rel=0.02)
    assert len(two_gpus.busy_factors) == 2


def test_each_model_has_its_own_times() -> None:
    truth = affine_truth(0)
    config = config_of(largest=8)
    (seen,) = observe(config, saturated(config, truth))
    slower = ServiceObservation(
        replace(seen.layout, model="ranker"),
        tuple(replace(time, occupancy_ms=10 * time.occupancy_ms) for time in seen.times),
        None,
    )
    both = ServiceModel((seen, slower))
    (alone,) = ServiceModel((seen,)).curves([(seen.layout, 8)])
    first, second = both.curves([(seen.layout, 8), (slower.layout, 8)])
    assert first == alone
    assert second.execution_ms[-1] == pytest.approx(10 * first.execution_ms[-1])


def test_a_model_that_was_never_observed_is_refused() -> None:
    with pytest.raises(KeyError):
        calibrated(affine_truth(0), 0).curve(replace(config_of().models[0], name="other"))


def test_a_disturbed_level_counts_for_less() -> None:
    truth, config = affine_truth(0), config_of(largest=8)
    layout = execution_layout(config.models[0], config.server)
    good = saturated(config, truth)
    machine = MachineUse(2.5, 2, 3.0, 100.0, foreign_cores=0.0)
    (quiet,) = observe(config, replace(good, machine=machine))
    slow = replace(saturated(config, truth, 2.0), machine=replace(machine, foreign_cores=1.0))
    (disturbed,) = observe(config, slow)
    assert quiet.disturbance == 0
    assert disturbed.disturbance == pytest.approx(math.log(2))
    (curve,) = ServiceModel((quiet, disturbed)).curves([(layout, 8)])
    assert curve.execution_ms[-1] == pytest.approx(truth(layout, 8), rel=0.03)


def test_how_much_runs_differ_is_learnt() -> None:
    truth, rng = affine_truth(0), np.random.default_rng(0)
    configs = [config for config, _, size in levels_of(SPACE) if size in (8, 64)]

    def log_sd(noise: float) -> float:
        seen = [
            each
            for config in configs
            for each in observe(config, saturated(config, truth, math.exp(rng.normal(0, noise))))
        ]
        curves = ServiceModel(tuple(seen)).curves([(each.layout, 8) for each in seen])
        return float(np.median([curve.log_sd for curve in curves]))

    assert log_sd(0.12) > 1.3 * log_sd(0.02)
