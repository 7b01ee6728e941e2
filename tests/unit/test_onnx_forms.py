"""ONNX files as exporters write them: spellings of the batch, maps, and old versions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from optimizer.artifacts.build_jobs import build_artifact, prepare_model
from optimizer.artifacts.cache import ArtifactCache
from optimizer.artifacts.model_source import source_of
from optimizer.configuration.serving_config import ArtifactSpec
from optimizer.errors import NoBatchAxis, UsageError
from optimizer.workload.model_spec import AccuracyLimits, DataSet, ModelSpec, OnnxSource
from optimizer.workload.request_sizes import LengthDistribution
from optimizer.workload.streams import Payloads, Tensors, TensorSpec

Axis = int | str | None
NEWEST = (onnx.defs.onnx_opset_version(), onnx.IR_VERSION)
WIDTH, CLASSES = 6, 3
X = np.random.default_rng(0).normal(size=(4, WIDTH)).astype(np.float32)


def tensor(
    name: str, axes: Sequence[Axis] | None, kind: int = TensorProto.FLOAT
) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, axes)


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    *,
    opset: int = 17,
    ir_version: int = 8,
    **weights: NDArray[Any],
) -> Path:
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=ir_version), path)
    return path


def model(path: Path, output: str = "y", shape: tuple[int, ...] = (WIDTH,)) -> ModelSpec:
    payloads = Payloads((TensorSpec("x", "FP32", shape, -1, 1),), LengthDistribution((1,), (1.0,)))
    data = DataSet(None, 4, 0)
    return ModelSpec("m", OnnxSource(path), payloads, data, data, AccuracyLimits(1, 1), (output,))


def product(path: Path, axes: Sequence[Axis] | None, answers: Sequence[Axis] | None) -> Path:
    """y = relu(x w)."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    weights = np.random.default_rng(1).normal(size=(WIDTH, CLASSES)).astype(np.float32)
    return save(path, nodes, [tensor("x", axes)], [tensor("y", answers)], w=weights)


def assert_served(spec: ModelSpec, folder: Path, expected: NDArray[Any]) -> onnx.ModelProto:
    """Compare the opened model, and what ONNX Runtime and OpenVINO are given, with answers to X."""
    opened = source_of(spec).open()
    answer: NDArray[Any] = opened.run({"x": X})[spec.outputs[0]]
    np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-6)
    assert len(opened.outputs[0].shape) == expected.ndim - 1
    cache = ArtifactCache(folder / "cache")
    graph = build_artifact(ArtifactSpec("m", "onnxruntime", "python", "fp32"), spec, cache)
    session = onnxruntime.InferenceSession(graph.path / "model.onnx")
    np.testing.assert_allclose(
        session.run(spec.outputs, {"x": X})[0], expected, rtol=1e-5, atol=1e-6
    )
    build_artifact(ArtifactSpec("m", "openvino", "python", "fp32"), spec, cache)
    return onnx.load(graph.path / "model.onnx")


@pytest.mark.parametrize("batch", [-1, 0, None, "N", "some.batch/0", 1])
def test_the_batch_axis_may_be_spelt_in_any_form(tmp_path: Path, batch: Axis) -> None:
    path = product(tmp_path / "m.onnx", [batch, WIDTH], [batch, CLASSES])
    weights = numpy_helper.to_array(onnx.load(path).graph.initializer[0])
    made = assert_served(model(path), tmp_path, np.maximum(X @ weights, 0))
    onnx.checker.check_model(made, full_check=True)


@pytest.mark.parametrize("batch", [1, "N", 2])
def test_without_batches_the_first_axis_is_one_of_the_shape(tmp_path: Path, batch: Axis) -> None:
    size = batch if isinstance(batch, int) else 4
    path = product(tmp_path / "m.onnx", [batch, WIDTH], [batch, CLASSES])
    spec = model(path, shape=(size, WIDTH))
    opened = source_of(replace(spec, payloads=replace(spec.payloads, batched=False))).open()
    assert opened.run({"x": X[:size]})["y"].shape == (size, CLASSES)
    assert opened.outputs[0].shape == (batch if isinstance(batch, int) else -1, CLASSES)
    source_of(replace(spec, payloads=replace(spec.payloads, batched=False))).export_onnx(tmp_path)
    kept = onnx.load(tmp_path / "model.onnx").graph.input[0]
    assert kept == tensor("x", [batch if isinstance(batch, int) else f"size_{size}", WIDTH])


def test_a_scalar_is_given_as_a_tensor_of_one_value(tmp_path: Path) -> None:
    """The node that reads it is in a branch."""
    branch = helper.make_graph(
        [helper.make_node("Mul", ["x", "rate"], ["z"])], "branch", [], [tensor("z", [2, WIDTH])]
    )
    nodes = [helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)]
    inputs = [tensor("x", [2, WIDTH]), tensor("rate", [])]
    outputs = [tensor("y", [2, WIDTH])]
    path = save(tmp_path / "m.onnx", nodes, inputs, outputs, yes=np.array(True))
    spec = model(path, shape=(2, WIDTH))
    rate = TensorSpec("rate", "FP32", (1,), choices=(3.0,))
    payloads = Payloads((*spec.payloads.tensors, rate), batched=False)
    source = source_of(replace(spec, payloads=payloads))
    request: Tensors = {"x": X[:2], "rate": np.array([3], np.float32)}
    np.testing.assert_array_equal(source.open().run(request)["y"], 3 * X[:2])
    scalar = replace(payloads, tensors=(payloads.tensors[0], replace(rate, shape=())))
    with pytest.raises(UsageError, match=r"rate: the ONNX graph takes \[1\] .* got \[\]"):
        source_of(replace(spec, payloads=scalar)).open()


def test_a_scalar_output_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)]
    path = save(tmp_path / "m.onnx", nodes, [tensor("x", [2, WIDTH])], [tensor("y", [])])
    spec = model(path, shape=(2, WIDTH))
    with pytest.raises(UsageError, match="output 'y' must have an axis"):
        source_of(replace(spec, payloads=replace(spec.payloads, batched=False))).open()


def test_all_outputs_that_are_tensors_are_served_where_none_is_named(tmp_path: Path) -> None:
    spec = replace(model(classifier(tmp_path / "m.onnx", "N")), outputs=())
    opened = source_of(spec).open()
    assert [(o.name, o.data_type, o.shape) for o in opened.outputs] == [
        ("output_label", "INT64", ()),
        ("maps", "FP32", (CLASSES,)),
    ]


def test_a_file_without_shapes(tmp_path: Path) -> None:
    path = product(tmp_path / "m.onnx", None, None)
    weights = numpy_helper.to_array(onnx.load(path).graph.initializer[0])
    assert_served(model(path), tmp_path, np.maximum(X @ weights, 0))


def test_external_data_is_read_beside_a_file_that_must_be_rewritten(tmp_path: Path) -> None:
    path = product(tmp_path / "m.onnx", [1, WIDTH], [1, CLASSES])
    whole = onnx.load(path)
    weights = numpy_helper.to_array(whole.graph.initializer[0])
    onnx.save(whole, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert_served(model(path), tmp_path, np.maximum(X @ weights, 0))
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(UsageError, match=r"external data 'weights\.bin' is missing"):
        source_of(model(path)).open()


def test_external_data_in_a_folder_lies_beside_the_graph_that_is_served(tmp_path: Path) -> None:
    """Files of a model version have no folders, where a bundle copies them."""
    path = product(tmp_path / "m.onnx", ["N", WIDTH], ["N", CLASSES])
    whole = onnx.load(path)
    weights = numpy_helper.to_array(whole.graph.initializer[0])
    (tmp_path / "data").mkdir()
    location = "data/weights.bin"
    onnx.save(whole, path, save_as_external_data=True, location=location, size_threshold=0)
    assert_served(model(path), tmp_path, np.maximum(X @ weights, 0))
    into = tmp_path / "exported"
    into.mkdir()
    source_of(model(path)).export_onnx(into)
    assert {each.name for each in into.iterdir()} == {"model.onnx", "data.weights.bin"}


@pytest.mark.parametrize(
    ("opset", "ir_version", "rule"),
    [
        (17, 99, r"its IR version must be at most \d+, .*, got 99: export it with an older one"),
        (99, 8, r"its opset must be at most \d+, .*, got 99: .* install a newer onnxruntime"),
    ],
)
def test_a_file_that_is_newer_than_the_runtime_is_refused_with_the_remedy(
    tmp_path: Path, opset: int, ir_version: int, rule: str
) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    x, y = tensor("x", ["N", WIDTH]), tensor("y", ["N", WIDTH])
    path = save(tmp_path / "m.onnx", nodes, [x], [y], opset=opset, ir_version=ir_version)
    with pytest.raises(UsageError, match=rule):
        source_of(model(path)).open()


def baked(path: Path, shape: Sequence[int], answers: Sequence[Axis]) -> Path:
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["r"], "flatten"),
        helper.make_node("Relu", ["r"], ["y"]),
    ]
    return save(
        path, nodes, [tensor("x", [1, 2, 3])], [tensor("y", answers)], shape=np.array(shape)
    )


def test_a_reshape_that_keeps_the_rows_is_no_obstacle(tmp_path: Path) -> None:
    for n, shape in enumerate([[-1, 6], [0, 6]]):
        path = baked(tmp_path / f"{n}.onnx", shape, [1, 6])
        opened = source_of(model(path, shape=(2, 3))).open()
        batch = X.reshape(4, 2, 3)
        np.testing.assert_array_equal(opened.run({"x": batch})["y"], np.maximum(X, 0))


@pytest.mark.parametrize(
    ("shape", "answers", "message"),
    [
        ([1, 6], [1, 6], r"output 'y'.*'flatten' \(Reshape\) fixes the first axis"),
        ([1, -1], [1, 6], r"output 'y'.*'flatten' \(Reshape\) fixes the first axis"),
        ([-1], [6], r"output 'y' must have a batch as its first axis, got \[6\]"),
        ([-1, 3], [2, 3], r"output 'y' must have a batch as its first axis, got \[2, 3\]"),
    ],
)
def test_a_reshape_that_fixes_the_batch_is_named(
    tmp_path: Path, shape: list[int], answers: list[int], message: str
) -> None:
    path = baked(tmp_path / "m.onnx", shape, answers)
    spec = model(path, shape=(2, 3))
    with pytest.raises(NoBatchAxis, match=message):
        source_of(spec).open()
    prepared = prepare_model(spec, ArtifactCache(tmp_path / "cache"))
    assert re.search(message, prepared.no_batching)
    assert prepared.references[0].outputs["y"].shape == (4, *answers)


def test_a_batch_whose_rows_depend_on_each_other_is_not_made_dynamic(tmp_path: Path) -> None:
    """The mean over the first axis changes nothing at batch 1, and every row of a larger batch."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Add", ["x", "mean"], ["y"]),
    ]
    path = save(tmp_path / "m.onnx", nodes, [tensor("x", [1, WIDTH])], [tensor("y", [1, WIDTH])])
    with pytest.raises(NoBatchAxis, match=r"output 'y'.*3 of 3 outputs of a batch"):
        source_of(model(path)).export_onnx(tmp_path)


def test_a_batch_that_cannot_be_executed_is_not_made_dynamic(tmp_path: Path) -> None:
    """The initial state of the recurrent layer has one row."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Unsqueeze", ["x", "zero"], ["sequence"]),
        helper.make_node("GRU", ["sequence", "w", "r", "", "", "h"], ["", "last"], hidden_size=2),
        helper.make_node("Squeeze", ["last", "zero"], ["y"]),
    ]
    path = save(
        tmp_path / "m.onnx", nodes, [tensor("x", [1, WIDTH])], [tensor("y", [1, 2])],
        w=rng.normal(size=(1, 6, WIDTH)).astype(np.float32),
        r=rng.normal(size=(1, 6, 2)).astype(np.float32),
        h=np.zeros((1, 1, 2), np.float32),
        zero=np.array([0]),
    )  # fmt: skip
    with pytest.raises(NoBatchAxis, match=r"outputs y: .*cannot become a batch"):
        source_of(model(path)).open()


@pytest.mark.parametrize("axes", [[4, WIDTH], []])
def test_an_input_without_a_batch_axis_is_named(tmp_path: Path, axes: list[int]) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    path = save(tmp_path / "m.onnx", nodes, [tensor("x", axes)], [tensor("y", axes)])
    with pytest.raises(UsageError, match=r"x: the first axis must be a batch.*batched: false"):
        source_of(model(path)).open()


def classifier(path: Path, batch: Axis) -> Path:
    """What skl2onnx makes of a logistic regression, with its labels and its maps."""
    rng = np.random.default_rng(2)
    nodes = [
        helper.make_node(
            "LinearClassifier", ["x"], ["label", "scores"], domain="ai.onnx.ml",
            coefficients=rng.normal(size=CLASSES * WIDTH).tolist(), intercepts=[0.0] * CLASSES,
            multi_class=1, post_transform="SOFTMAX", classlabels_ints=[0, 1, 2],
        ),
        helper.make_node("Normalizer", ["scores"], ["p"], domain="ai.onnx.ml", norm="L1"),
        helper.make_node(
            "ZipMap", ["p"], ["maps"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]
        ),
        helper.make_node("Identity", ["label"], ["output_label"]),
    ]  # fmt: skip
    key = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    kind = helper.make_map_type_proto(TensorProto.INT64, key)
    maps = helper.make_value_info("maps", helper.make_sequence_type_proto(kind))
    outputs = [tensor("output_label", [batch], TensorProto.INT64), maps]
    return save(path, nodes, [tensor("x", [batch, WIDTH])], outputs)


@pytest.mark.parametrize("batch", [None, 1])
def test_probabilities_in_maps_are_served_as_a_tensor(tmp_path: Path, batch: Axis) -> None:
    path = classifier(tmp_path / "m.onnx", batch)
    rows = [onnxruntime.InferenceSession(path).run(None, {"x": X[n : n + 1]}) for n in range(4)]
    maps = np.array([[row[1][0][c] for c in range(CLASSES)] for row in rows])
    labels = np.concatenate([row[0] for row in rows])
    for output, expected in (("maps", maps), ("output_label", labels)):
        opened = source_of(model(path, output)).open()
        answer: NDArray[Any] = opened.run({"x": X})[output]
        np.testing.assert_allclose(answer, expected, rtol=1e-6)
        assert opened.outputs[0].shape == expected.shape[1:]
        into = tmp_path / output
        into.mkdir()
        source_of(model(path, output)).export_onnx(into)
        assert {n.op_type for n in onnx.load(into / "model.onnx").graph.node} == {
            *("LinearClassifier", "Normalizer", "Identity")
        }


def test_other_outputs_that_are_no_tensors_are_left_out_with_what_only_they_need(
    tmp_path: Path,
) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Neg", ["x"], ["n"]),
        helper.make_node("SequenceConstruct", ["n", "y"], ["both"]),
    ]
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, ["N", WIDTH])
    both = helper.make_value_info("both", helper.make_sequence_type_proto(kind))
    outputs = [tensor("y", ["N", WIDTH]), both]
    path = save(tmp_path / "m.onnx", nodes, [tensor("x", ["N", WIDTH])], outputs)
    made = assert_served(model(path), tmp_path, np.maximum(X, 0))
    assert [node.op_type for node in made.graph.node] == ["Relu"]
    with pytest.raises(
        UsageError, match=r"'both' must be a tensor.* a sequence; its tensors are y"
    ):
        source_of(model(path, "both")).open()


def test_a_sequence_as_input_is_refused(tmp_path: Path) -> None:
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, ["N", WIDTH])
    x = helper.make_value_info("x", helper.make_sequence_type_proto(kind))
    nodes = [helper.make_node("ConcatFromSequence", ["x"], ["y"], axis=0)]
    path = save(tmp_path / "m.onnx", nodes, [x], [tensor("y", ["N", WIDTH])])
    with pytest.raises(UsageError, match="x: the ONNX graph must take a tensor, and takes a seq"):
        source_of(model(path)).open()


@pytest.mark.parametrize(
    ("opset", "ir_version"), [(1, 3), (6, 3), (7, 3), (9, 4), (13, 7), (21, 10), (24, 12), NEWEST]
)
def test_versions_from_old_to_new(tmp_path: Path, opset: int, ir_version: int) -> None:
    weights = np.random.default_rng(1).normal(size=(WIDTH, CLASSES)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    # Before IR version 4, initializers had to be listed as inputs too.
    listed = [tensor("w", weights.shape)] if ir_version < 4 else []
    inputs = [tensor("x", ["N", WIDTH]), *listed]
    path = save(
        tmp_path / "m.onnx", nodes, inputs, [tensor("y", ["N", CLASSES])],
        opset=opset, ir_version=ir_version, w=weights,
    )  # fmt: skip
    assert_served(model(path), tmp_path, np.maximum(X @ weights, 0))
    cache = ArtifactCache(tmp_path / "cache")
    int8 = ArtifactSpec("m", "onnxruntime", "python", "int8")
    assert build_artifact(int8, model(path), cache).int8_share == 1
