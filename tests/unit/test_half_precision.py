"""Graphs in 16 bits: what is cast, which numbers they hold, and in which order their nodes are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from ml_dtypes import bfloat16
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from optimizer.artifacts.graphs.half_precision import to_bf16, to_fp16
from optimizer.workload.streams import Tensors

BEYOND_FP16 = 1e6
MASKED = float(np.finfo(np.float32).min)


def write(folder: Path) -> Path:
    """y = (x + counts + mask) * factor + shift / 2, the shift from a branch: numbers everywhere."""
    constant = numpy_helper.from_array(np.array([1e-10], np.float32), "constant")
    of_branch = [
        helper.make_graph(
            [
                helper.make_node(
                    "Constant", [], [f"s{n}"], value=numpy_helper.from_array(value, "v")
                )
            ],
            f"branch{n}",
            [],
            [helper.make_tensor_value_info(f"s{n}", TensorProto.FLOAT, [1])],
        )
        for n, value in enumerate(np.array([[3e5], [0.0]], np.float32))
    ]
    nodes = [
        helper.make_node("Constant", [], ["tiny"], value=constant),
        helper.make_node("Cast", ["counts"], ["counted"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "counted"], ["moved"]),
        helper.make_node("Add", ["moved", "mask"], ["masked"]),
        helper.make_node("Mul", ["masked", "factor"], ["scaled"]),
        helper.make_node("Add", ["scaled", "tiny"], ["nearly"]),
        helper.make_node(
            "If", ["yes"], ["shift"], then_branch=of_branch[0], else_branch=of_branch[1]
        ),
        helper.make_node("Constant", [], ["half"], value_float=0.5),
        helper.make_node("Mul", ["shift", "half"], ["half_shift"]),
        helper.make_node("Add", ["nearly", "half_shift"], ["y"]),
    ]
    weights = {
        "mask": np.array([0, MASKED, -np.inf], np.float32),
        "factor": np.array([BEYOND_FP16, 1, 1], np.float32),
        "yes": np.array(True),
    }
    graph = helper.make_graph(
        nodes,
        "numbers",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("counts", TensorProto.INT64, ["batch", 3]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    folder.mkdir()
    onnx.save(made, folder / "model.onnx")
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "source")


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


def weight(model: ModelProto, name: str) -> NDArray[Any]:
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


def calculated(folder: Path, request: Tensors) -> NDArray[Any]:
    outputs: Any = ReferenceEvaluator(str(folder / "model.onnx")).run(None, request)
    served: NDArray[Any] = outputs[0]
    return served


def test_bf16_takes_its_numbers_from_fp32(source: Path, into: Path) -> None:
    to_bf16(source, into)
    made = onnx.load(into / "model.onnx")
    assert weight(made, "factor").dtype == bfloat16
    assert float(weight(made, "factor")[0]) == float(bfloat16(BEYOND_FP16))
    mask = weight(made, "mask").astype(np.float64)
    assert np.isfinite(mask[1]), "a finite mask must not become infinite"
    assert mask[1] < -3.3e38
    assert mask[2] == -np.inf
    [tiny] = [n.attribute[0].t for n in made.graph.node if n.output[0] == "tiny"]
    assert float(numpy_helper.to_array(tiny)[0]) == float(bfloat16(1e-10))


def test_no_fp16_is_left_in_bf16(source: Path, into: Path) -> None:
    to_bf16(source, into)
    made = onnx.load(into / "model.onnx")
    assert "FLOAT16" not in str(made).replace("BFLOAT16", "")
    types = {v.name: v.type.tensor_type.elem_type for v in [*made.graph.input, *made.graph.output]}
    floating, whole = TensorProto.FLOAT, TensorProto.INT64
    assert types == {"x": floating, "counts": whole, "y": floating}
    casts = [n.attribute[0].i for n in made.graph.node if n.op_type == "Cast"]
    assert sorted(casts) == [TensorProto.FLOAT, TensorProto.BFLOAT16, TensorProto.BFLOAT16]


def test_bf16_calculates_what_fp32_does(source: Path, into: Path) -> None:
    to_bf16(source, into)
    request: Tensors = {"x": np.array([[2, 1, 0]], np.float32), "counts": np.array([[1, 2, 3]])}
    wanted, got = calculated(source, request), calculated(into, request)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, rtol=2**-7)
    assert wanted[0, 0] == pytest.approx(3 * BEYOND_FP16 + 1.5e5)


@pytest.mark.parametrize("convert", [to_fp16, to_bf16])
def test_nodes_stand_in_an_order_in_which_they_can_be_executed(
    source: Path, into: Path, convert: Any
) -> None:
    convert(source, into)
    assert [path.name for path in into.iterdir()] == ["model.onnx"]
    onnx.checker.check_model(into / "model.onnx", full_check=True)


def with_layer_norm(folder: Path) -> Path:
    """A layer norm in single operators, as files before opset 17 have it, of images of a Conv."""
    nodes = [
        helper.make_node("Conv", ["x", "weights"], ["image"]),
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[-1]),
        helper.make_node("Sub", ["image", "mean"], ["distance"]),
        helper.make_node("Pow", ["distance", "two"], ["square"]),
        helper.make_node("ReduceMean", ["square"], ["variance"], axes=[-1]),
        helper.make_node("Sqrt", ["variance"], ["deviation"]),
        helper.make_node("Div", ["distance", "deviation"], ["y"]),
    ]
    weights = {"weights": np.ones((1, 1, 1), np.float32), "two": np.array(2, np.float32)}
    images, means = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1, size])
        for name, size in (("x", 4), ("mean", 1))
    ]
    graph = helper.make_graph(
        nodes,
        "layer norm",
        [images],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1, 4]), means],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=7)
    folder.mkdir()
    onnx.save(made, folder / "model.onnx")
    return folder


@pytest.mark.parametrize("convert", [to_fp16, to_bf16])
def test_variances_beyond_fp16_are_computed_in_fp32(
    tmp_path: Path, into: Path, convert: Any
) -> None:
    """And a Conv is converted, which the opset has in FP16 and not in BF16."""
    source = with_layer_norm(tmp_path / "source")
    convert(source, into)
    request: Tensors = {"x": np.array([[[3000, -3000, 1000, -1000]]], np.float32)}
    wanted, got = calculated(source, request), calculated(into, request)
    np.testing.assert_allclose(got, wanted, rtol=2**-7)
