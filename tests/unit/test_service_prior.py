"""Service times on other hardware: they lend their shape, and a few runs here their scale."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from optimizer.configuration.serving_config import ArtifactSpec
from optimizer.simulator.calibration import CALIBRATION_RUNS, calibration_points
from optimizer.simulator.execution_layout import ExecutionLayout, execution_layout
from optimizer.simulator.service_curve import ServiceVariation
from optimizer.simulator.service_model import ServiceModel
from optimizer.simulator.service_observation import ServiceObservation, observe
from optimizer.simulator.service_prior import ServicePrior
from tests.unit.service_truths import Truth, affine_truth, levels_of, saturated
from tests.unit.studies import small_space

SPACE = small_space(
    runtime=("onnxruntime", "openvino"),
    precision=("fp32", "int8"),
    max_batch_size=(4, 8, 16, 32, 64),
)
SLOWER = {"fp32": 4.0, "int8": 2.0}


def slower(truth: Truth) -> Truth:
    """The same on other hardware: a factor for each precision."""

    def elsewhere(layout: ExecutionLayout, batch_size: int) -> float:
        return SLOWER[layout.artifact.precision] * truth(layout, batch_size)

    return elsewhere


def observed(truth: Truth, points: list[tuple[int, ...]]) -> tuple[ServiceObservation, ...]:
    configs = [SPACE.config(point) for point in points]
    return tuple(each for c in configs for each in observe(c, saturated(c, truth)))


def prior_of(truth: Truth, variation: ServiceVariation | None = None) -> ServicePrior:
    service = ServiceModel(observed(truth, calibration_points(SPACE)))
    if variation is not None:
        service = replace(service, variation=variation)
    return ServicePrior("other", service, 3.0)


def errors(model: ServiceModel, truth: Truth) -> NDArray[np.float64]:
    """Of the log times of every layout's largest batch."""
    levels = [(layout, size) for _, layout, size in levels_of(SPACE)]
    curves = model.curves(levels)
    return np.array(
        [math.log(c.execution_ms[-1] / truth(*own)) for c, own in zip(curves, levels, strict=True)]
    )


def test_one_run_of_each_kind_brings_the_times_of_other_hardware_to_scale() -> None:
    lent, alone = [], []
    for seed in range(5):
        truth = affine_truth(seed)
        prior = prior_of(truth)
        own = observed(slower(truth), calibration_points(SPACE, lent=prior.observations))
        lent.append(np.abs(errors(ServiceModel((*own, *prior.observations)), slower(truth))))
        alone.append(np.abs(errors(ServiceModel(own), slower(truth))))
    assert np.median(lent) < 0.12
    assert np.quantile(lent, 0.9) < 0.25
    assert np.median(alone) > 1.5 * np.median(lent)


def test_each_runtime_and_precision_is_run_once_here() -> None:
    everything = prior_of(affine_truth(0)).observations
    some = [o for o in everything if o.layout.artifact.runtime == "onnxruntime"]
    for lent in (everything, some):
        points = calibration_points(SPACE, lent=lent)
        assert points[0] == SPACE.baseline
        kinds = {_kind(SPACE.config(point).models[0].artifact) for point in points}
        assert len(kinds) == len(points) == 4 < CALIBRATION_RUNS


def _kind(artifact: ArtifactSpec) -> tuple[str, str]:
    return artifact.runtime, artifact.precision


def test_a_precision_that_one_runtime_is_slow_with_here_is_predicted_so() -> None:
    """As of a processor without instructions that only one runtime needs for INT8."""

    def without_instructions(layout: ExecutionLayout, batch_size: int) -> float:
        slow = _kind(layout.artifact) == ("openvino", "int8")
        return (6.0 if slow else 2.0) * truth(layout, batch_size)

    for seed in range(3):
        truth = affine_truth(seed)
        prior = prior_of(truth)
        own = observed(without_instructions, calibration_points(SPACE, lent=prior.observations))
        model = ServiceModel((*own, *prior.observations))
        assert np.median(np.abs(errors(model, without_instructions))) < 0.1


def test_before_anything_was_run_here_the_order_is_that_of_the_other_hardware() -> None:
    truth = affine_truth(1)
    prior = prior_of(truth)
    model = ServiceModel(prior.observations)
    precisions = [layout.artifact.precision for _, layout, _ in levels_of(SPACE)]
    for precision in SLOWER:
        own = [e for e, p in zip(errors(model, truth), precisions, strict=True) if p == precision]
        assert np.std(own) < 0.1
    [curve] = model.curves([levels_of(SPACE)[0][1:]])
    assert curve.log_sd > 1, "the scale is not known"


def test_times_here_count_for_more_than_times_elsewhere() -> None:
    """Where both were measured, those here are predicted: there, executions start slowly."""
    truth = affine_truth(2)
    own = observed(slower(truth), calibration_points(SPACE))
    prior = prior_of(lambda layout, size: 0.1 * truth(layout, size) + 5.0)
    with_prior = np.abs(errors(ServiceModel((*own, *prior.observations)), slower(truth)))
    assert np.median(with_prior) < 0.15


def test_requests_outside_the_server_take_the_time_that_they_take_here() -> None:
    prior = prior_of(affine_truth(0))
    far = tuple(replace(each, network_ms=50.0) for each in prior.observations)
    here = observed(affine_truth(0), [SPACE.baseline])
    assert ServiceModel(far).outside_ms == 50.0
    assert ServiceModel((*here, *far)).outside_ms == pytest.approx(here[0].network_ms)


def test_wake_up_times_that_were_not_seen_here_are_lent_to_scale() -> None:
    truth = affine_truth(0)
    prior = prior_of(truth, ServiceVariation(0.3, (("onnxruntime", 1.0), ("openvino", 0.5))))
    own = observed(lambda *at: 3 * truth(*at), calibration_points(SPACE))
    fitted = ServiceVariation(0.2, (("onnxruntime", 7.0), ("openvino", 99.0)))
    service = ServiceModel((*own, *prior.observations), fitted)
    lent = prior.scaled(service, {"onnxruntime"}).variation
    assert lent.spread == 0.2
    wakes = dict(lent.wake_ms)
    assert wakes["onnxruntime"] == 7.0
    assert wakes["openvino"] == pytest.approx(1.5, rel=0.1)


def test_layouts_of_other_hardware_are_never_those_of_this_one() -> None:
    prior = prior_of(affine_truth(0))
    [model] = SPACE.config(SPACE.baseline).models
    layout = execution_layout(model, SPACE.config(SPACE.baseline).server)
    assert layout in {o.layout for o in prior.service.observations}
    assert layout not in {o.layout for o in prior.observations}
