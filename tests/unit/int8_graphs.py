"""Small graphs to quantise, and what runtimes make of them."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from optimizer.configuration.hardware import overflows_in_int8
from optimizer.machine.fingerprint import cpu_flags
from optimizer.workload.streams import Tensors

WIDTH, INNER, LENGTH = 32, 64, 8

OVERFLOWING = (
    {"int8_s8s8", "int8_u8s8", "int8_trt", "int8_trt_attention"}
    if overflows_in_int8(cpu_flags())
    else frozenset()
)
"""Graphs whose sums overflow on this processor; none of them is served on it."""


def write(
    path: Path,
    nodes: Sequence[NodeProto],
    weights: dict[str, NDArray[Any]],
    inputs: dict[str, Sequence[int | str]],
    outputs: Sequence[str] = ("y",),
    opset: int = 20,
) -> Path:
    """Write FP32 nodes with their constants as an ONNX file."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.save(onnx.shape_inference.infer_shapes(made), path)
    return path


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def convolutions_and_gemm(path: Path) -> Path:
    """Conv, Relu, Conv, Relu and Gemm, each with a bias; x is [batch, 8, 16, 16]."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], "first", pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], ["r1"], "relu1"),
        node("Conv", ["r1", "w2", "b2"], ["c2"], "second", strides=[2, 2]),
        node("Relu", ["c2"], ["r2"], "relu2"),
        node("GlobalAveragePool", ["r2"], ["p"], "pool"),
        node("Flatten", ["p"], ["f"], "flatten"),
        node("Gemm", ["f", "w3", "b3"], ["y"], "last", transB=1),
    ]
    weights = {
        "w1": normal(16, 8, 3, 3) / 8,
        "b1": normal(16),
        "w2": normal(32, 16, 3, 3) / 12,
        "b2": normal(32),
        "w3": normal(10, 32) / 5,
        "b3": normal(10),
    }
    return write(path, nodes, weights, {"x": ["batch", 8, 16, 16]})


def residual_block_and_product(path: Path) -> Path:
    """Convolutions with batch normalisation around a residual addition, then a MatMul.

    x is [batch, 8, 16, 16]; the second convolution works by channel.
    """
    node = helper.make_node
    weights = {
        "w1": normal(8, 8, 3, 3) / 8,
        "w2": normal(8, 1, 3, 3, seed=1) / 3,
        "w3": normal(8, 10) / 3,
    }
    for at in (1, 2):
        # Some channels are scaled by far more than others.
        weights[f"scale{at}"] = np.geomspace(0.05, 5, 8).astype(np.float32)
        weights[f"shift{at}"] = normal(8, seed=at)
        weights[f"mean{at}"] = normal(8, seed=10 + at)
        weights[f"variance{at}"] = np.square(normal(8, seed=20 + at)) + np.float32(0.5)
    folded = [[f"{each}{at}" for each in ("scale", "shift", "mean", "variance")] for at in (1, 2)]
    nodes = [
        node("Conv", ["x", "w1"], ["c1"], "first", pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c1", *folded[0]], ["n1"], "normal1", epsilon=0.01),
        node("Relu", ["n1"], ["r1"], "relu1"),
        node("Conv", ["r1", "w2"], ["c2"], "second", pads=[1, 1, 1, 1], group=8),
        node("BatchNormalization", ["c2", *folded[1]], ["n2"], "normal2"),
        node("Add", ["n2", "x"], ["a"], "residual"),
        node("Relu", ["a"], ["r2"], "relu2"),
        node("GlobalAveragePool", ["r2"], ["p"], "pool"),
        node("Flatten", ["p"], ["f"], "flatten"),
        node("MatMul", ["f", "w3"], ["y"], "last"),
    ]
    return write(path, nodes, weights, {"x": ["batch", 8, 16, 16]})


def outliers(path: Path) -> Path:
    """A MatMul whose input has two channels a hundred times larger than the others."""
    factors = np.ones(WIDTH, np.float32)
    factors[[3, 7]] = 100
    nodes = [
        helper.make_node("Mul", ["x", "factors"], ["h"], "scale"),
        helper.make_node("MatMul", ["h", "w"], ["y"], "product"),
    ]
    small = normal(WIDTH, INNER) / 6 / factors[:, None]
    return write(path, nodes, {"factors": factors, "w": small}, {"x": ["batch", LENGTH, WIDTH]})


def lstm(path: Path) -> Path:
    """An LSTM over the second axis; x is [batch, LENGTH, WIDTH]."""
    node = helper.make_node
    nodes = [
        node("Transpose", ["x"], ["t"], "turn", perm=[1, 0, 2]),
        node("LSTM", ["t", "w", "r"], ["h"], "lstm", hidden_size=INNER),
        node("Squeeze", ["h", "one"], ["y"], "squeeze"),
    ]
    weights = {
        "w": normal(1, 4 * INNER, WIDTH) / 6,
        "r": normal(1, 4 * INNER, INNER) / 8,
        "one": np.array([1]),
    }
    return write(path, nodes, weights, {"x": ["batch", LENGTH, WIDTH]})


def gemm(path: Path, **attributes: float) -> Path:
    """A Gemm with bias alone; x is [batch, WIDTH]."""
    by_rows = attributes.get("transB", 0)
    shape = (INNER, WIDTH) if by_rows else (WIDTH, INNER)
    only = helper.make_node("Gemm", ["x", "w", "b"], ["y"], "only")
    only.attribute.extend(helper.make_attribute(*each) for each in attributes.items())
    weights = {"w": normal(*shape) / 6, "b": normal(INNER)}
    return write(path, [only], weights, {"x": ["batch", WIDTH]})


def attention(path: Path) -> Path:
    """One attention with a residual addition; x is [batch, LENGTH, WIDTH].

    The weights of the keys lie in a Constant and are transposed.
    """
    node = helper.make_node
    keys = numpy_helper.from_array(normal(WIDTH, WIDTH, seed=2) / 6, "held")
    nodes = [
        node("Constant", [], ["held"], "constant", value=keys),
        node("Transpose", ["held"], ["turned"], "turn", perm=[1, 0]),
        node("MatMul", ["x", "wq"], ["q"], "queries"),
        node("MatMul", ["x", "turned"], ["k"], "keys"),
        node("MatMul", ["x", "wv"], ["v"], "values"),
        node("Transpose", ["k"], ["kt"], "transpose", perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["scores"], "scores"),
        node("Softmax", ["scores"], ["shares"], "softmax"),
        node("MatMul", ["shares", "v"], ["mixed"], "mixed"),
        node("MatMul", ["mixed", "wo"], ["o"], "output"),
        node("Add", ["o", "x"], ["y"], "residual"),
    ]
    weights = {name: normal(WIDTH, WIDTH, seed=ord(name[1])) / 6 for name in ("wq", "wv", "wo")}
    return write(path, nodes, weights, {"x": ["batch", LENGTH, WIDTH]})


def rows(shape: Sequence[int], count: int = 32, seed: int = 1) -> list[Tensors]:
    """Requests of batch 1 for the input x."""
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(1, *shape)).astype(np.float32)} for _ in range(count)]


def run_onnxruntime(graph: Path, request: Tensors) -> NDArray[Any]:
    import onnxruntime

    served: NDArray[Any] = onnxruntime.InferenceSession(graph).run(["y"], request)[0]
    return served


def run_openvino(graph: Path, request: Tensors) -> NDArray[Any]:
    served: NDArray[Any] = _compiled(graph)(request)["y"]
    return served


def copied(graph: Path, folder: Path) -> Path:
    """Return a copy, beside which files may be written."""
    folder.mkdir()
    return Path(shutil.copy(graph, folder))


def operators_of_onnxruntime(graph: Path) -> Counter[str]:
    """Return how often ONNX Runtime executes each operator, after its optimisations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(graph.with_name("optimized.onnx"))
    options.log_severity_level = 3
    onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def products_of_openvino(graph: Path) -> Counter[str]:
    """Return how often OpenVINO executes convolutions and products in each element type."""
    infos = [op.get_rt_info() for op in _compiled(graph).get_runtime_model().get_ops()]
    return Counter(
        info["runtimePrecision"].astype(str)
        for info in infos
        if info["layerType"].astype(str) in {"Convolution", "FullyConnected", "MatMul"}
    )


def _compiled(graph: Path) -> Any:
    import openvino

    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    return openvino.Core().compile_model(graph, "CPU", hint)
