"""Models whose tensors have no batch axis: several requests are never joined along another axis."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimizer.artifacts.build_jobs import build_artifact
from optimizer.artifacts.cache import ArtifactCache
from optimizer.artifacts.datasets import cropped
from optimizer.artifacts.engines.recipe import input_shapes
from optimizer.artifacts.precision_graphs import PrecisionGraphs
from optimizer.artifacts.references import judged_positions
from optimizer.artifacts.task_metric import evaluate_metric
from optimizer.configuration.runtimes import Runtime, onnxruntime_session, openvino_session
from optimizer.configuration.serving_config import ArtifactSpec, EngineProfile
from optimizer.workload.model_spec import (
    AccuracyLimits,
    DataSet,
    ModelSpec,
    OnnxSource,
    TaskMetric,
)
from optimizer.workload.streams import (
    LengthDistribution,
    OutputTensor,
    Payloads,
    Tensors,
    TensorSpec,
)

ROWS, WIDTH = 2, 8
SESSIONS = {"onnxruntime": onnxruntime_session, "openvino": openvino_session}


def centred_product(path: Path) -> Path:
    """Write y [2, 8] = (x - mean of x over its first axis) w, for x [2, 8]."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["centred"]),
        helper.make_node("MatMul", ["centred", "w"], ["y"]),
    ]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [ROWS, WIDTH]) for name in ("x", "y")
    )
    weights = np.random.default_rng(1).normal(size=(WIDTH, WIDTH)).astype(np.float32)
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(weights, "w")])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def model(path: Path) -> ModelSpec:
    payloads = Payloads((TensorSpec("x", "FP32", (ROWS, WIDTH), -1, 1),), batched=False)
    calibration, evaluation = DataSet(None, 16, 1), DataSet(None, 2, 2)
    source, limits = OnnxSource(path), AccuracyLimits(0, 0)
    return ModelSpec("m", source, payloads, calibration, evaluation, limits, ("y",))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_int8_is_calibrated_with_each_request_by_itself(tmp_path: Path, runtime: Runtime) -> None:
    spec = model(centred_product(tmp_path / "m.onnx"))
    cache = ArtifactCache(tmp_path / "cache")
    built = build_artifact(ArtifactSpec("m", runtime, "python", "int8"), spec, cache)
    run = SESSIONS[runtime].open_session(str(built.path), ["y"], "int8", 1, None)
    graphs = PrecisionGraphs(spec, cache)
    opened = graphs.source.open()
    for row in graphs.inputs.evaluation:
        expected = opened.run(row)["y"]
        assert np.abs(run(row)[0] - expected).max() < 0.1 * np.abs(expected).max()


def test_the_metric_gets_requests_with_an_axis_of_samples(tmp_path: Path) -> None:
    (tmp_path / "metric.py").write_text(
        "def rows(inputs, outputs):\n"
        "    assert inputs['x'].shape == outputs.shape == (3, 2, 8)\n"
        "    return (inputs['x'] == outputs).mean()\n"
    )
    requests: list[Tensors] = [{"x": np.full((ROWS, WIDTH), n)} for n in range(3)]
    outputs: Tensors = {"y": np.stack([request["x"] for request in requests])}
    metric = TaskMetric(tmp_path / "metric.py", "rows", 1.0)
    assert evaluate_metric(metric, requests, outputs, batched=False) == 1.0


def test_padding_is_judged_by_a_mask_of_one_axis_only() -> None:
    outputs = [OutputTensor("y", "FP32", (-1, 4))]
    masks = [np.array([1, 1, 0]), np.array([1, 0, 0])]
    rows: list[Tensors] = [{"attention_mask": mask} for mask in masks]
    values: Tensors = {"y": np.zeros((2, 3, 4))}
    judged = judged_positions(rows, outputs, values, batched=False)["y"]
    np.testing.assert_array_equal(judged, np.array(masks).astype(bool))
    # Its first axis is no batch, so it does not say where the requests are padded.
    with_axis: list[Tensors] = [{"attention_mask": mask[None]} for mask in masks]
    assert judged_positions(with_axis, outputs, values, batched=False) == {}


def test_a_request_that_is_padded_in_front_keeps_its_end() -> None:
    names = ("ids", "attention_mask")
    tensors = tuple(TensorSpec(name, "INT64", ("length",), 0, 9) for name in names)
    payloads = Payloads(tensors, LengthDistribution((2, 4), (1, 1)), batched=False)
    row: Tensors = {"ids": np.array([0, 0, 7, 8]), "attention_mask": np.array([0, 0, 1, 1])}
    [kept] = cropped([row], 2, payloads)
    assert kept["ids"].tolist() == [7, 8]


def test_an_engine_has_no_axis_of_the_batch() -> None:
    payloads = Payloads((TensorSpec("x", "FP32", (ROWS, WIDTH)),), batched=False)
    [shapes] = input_shapes(payloads, EngineProfile(1, 1))
    assert (shapes.least, shapes.optimal, shapes.most) == ((ROWS, WIDTH),) * 3
    [batched] = input_shapes(replace(payloads, batched=True), EngineProfile(2, 4))
    assert batched.most == (4, ROWS, WIDTH)
