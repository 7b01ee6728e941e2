"""Models whose tensors have no batch axis: several requests are never joined along another axis."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from optimizer.artifacts import build_jobs
from optimizer.artifacts.accuracy import compare
from optimizer.artifacts.build_jobs import build_artifact, prepare_model
from optimizer.artifacts.cache import ArtifactCache
from optimizer.artifacts.datasets import cropped
from optimizer.artifacts.engines.recipe import input_shapes
from optimizer.artifacts.precision_graphs import PrecisionGraphs
from optimizer.artifacts.references import judged_positions
from optimizer.artifacts.task_metric import evaluate_metric
from optimizer.configuration.runtimes import Runtime, onnxruntime_session, openvino_session
from optimizer.configuration.serving_config import ArtifactSpec, EngineProfile
from optimizer.errors import ConfigMismatch, NoBatchAxis
from optimizer.files.tensors import from_npz, to_npz
from optimizer.workload.data_types import NUMPY_TYPES, DataType, concatenated, is_ragged
from optimizer.workload.model_spec import (
    AccuracyLimits,
    DataSet,
    ModelSpec,
    OnnxSource,
    TaskMetric,
    TransformersSource,
)
from optimizer.workload.request_sizes import LengthDistribution
from optimizer.workload.streams import OutputTensor, Payloads, Tensors, TensorSpec

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


def selected(path: Path) -> Path:
    """Write y [2, n], the positions of the values of x [batch, 8] above 0."""
    nodes = [
        helper.make_node("Relu", ["x"], ["positive"]),
        helper.make_node("NonZero", ["positive"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])
    y = helper.make_tensor_value_info("y", TensorProto.INT64, ["axes", "n"])
    graph = helper.make_graph(nodes, "g", [x], [y])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def test_an_output_whose_shape_depends_on_the_values_is_served_without_batches(
    tmp_path: Path,
) -> None:
    spec = model(selected(tmp_path / "m.onnx"))
    payloads = Payloads((TensorSpec("x", "FP32", (WIDTH,), -1, 1),))
    data = DataSet(None, 3, 2, json.dumps({"x": [[-1] * 8, [1] * 8, [-1, 1] * 4]}))
    spec = replace(spec, payloads=payloads, evaluation=data)
    cache = ArtifactCache(tmp_path / "cache")
    first, again = prepare_model(spec, cache), prepare_model(spec, cache)
    assert (first.built, again.built) == (True, False)
    assert first.no_batching == again.no_batching
    assert first.no_batching.startswith("output 'y' has no row per request: a batch of 1 gives")
    assert first.outputs == (OutputTensor("y", "INT64", (-1, -1)),)
    for prepared in (first, again):
        shapes = [row.shape for row in prepared.references[0].outputs["y"]]
        assert shapes == [(2, 0), (2, 8), (2, 4)]
    alone = replace(spec, payloads=replace(payloads, one_at_a_time=True))
    files = build_artifact(ArtifactSpec("m", "openvino", "python", "fp32"), alone, cache)
    run = openvino_session.open_session(str(files.path), ["y"], "fp32", 1, None)
    for request, expected in zip(first.evaluation, first.references[0].outputs["y"], strict=True):
        np.testing.assert_array_equal(run(request)[0], expected)


def test_a_transformers_class_whose_output_has_no_batch_axis_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise NoBatchAxis("output 'y' has no row per request")

    monkeypatch.setattr(build_jobs, "_prepared", refuse)
    spec = replace(model(tmp_path / "m.onnx"), source=TransformersSource("BertModel"))
    with pytest.raises(NoBatchAxis, match="no row per request"):
        prepare_model(spec, ArtifactCache(tmp_path / "cache"))


@pytest.mark.parametrize("kind", ["FP32", "INT64", "BF16", "BYTES"])
def test_outputs_of_several_shapes_are_compared_one_by_one(kind: DataType) -> None:
    rows = [np.arange(1, size + 1).astype(str if kind == "BYTES" else float) for size in (3, 0, 5)]
    ragged = concatenated([_typed(row, kind)[None] for row in rows])
    assert is_ragged(ragged)
    stored = from_npz(to_npz({"y": ragged, "z": np.arange(3)}))
    assert is_ragged(stored["y"])
    equal = compare(ragged, stored["y"])
    assert equal.min_cosine == pytest.approx(1)
    assert (equal.argmax_agreement, equal.samples) == (1, 3)
    assert equal.max_abs_error == 0
    other = ragged.copy()
    other[2] = other[2][::-1]
    assert compare(ragged, other).mean_cosine < 0.9
    other[2] = other[2][:4]
    message = r"output for request 3 has shape \[4\], the reference \[5\]"
    with pytest.raises(ConfigMismatch, match=message):
        compare(ragged, other)
    # Where all of one side have one shape by chance, they are compared one by one too.
    with pytest.raises(ConfigMismatch, match=r"output for request 1 has shape \[3\]"):
        compare(np.zeros((3, 2)), ragged)


def _typed(values: NDArray[Any], kind: DataType) -> NDArray[Any]:
    if kind != "BYTES":
        return values.astype(NUMPY_TYPES[kind])
    return np.array([str(each).encode() for each in values], dtype=object)
