"""TensorRT's rules: each is broken alone by a graph that is good otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from ml_dtypes import bfloat16
from numpy.typing import DTypeLike, NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from optimizer.artifacts.graphs.tensorrt_rules import broken_rules, check_tensorrt_rules
from optimizer.errors import BuildFailure

WIDTH, INNER = 8, 16
Edit = Callable[[ModelProto], object]


def quantised(name: str, scale: str, zero: str = "zero", axis: int = 1) -> list[NodeProto]:
    """A Q/DQ pair, named q_NAME and d_NAME."""
    made = helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}_q"], f"q_{name}")
    back = helper.make_node("DequantizeLinear", [f"{name}_q", scale, zero], [f"{name}_d"])
    back.name = f"d_{name}"
    for node in (made, back):
        node.attribute.append(helper.make_attribute("axis", axis))
    return [made, back]


def good(dtype: DTypeLike = np.float32, opset: int = 20) -> ModelProto:
    """An attention in floating point, then an MLP block in INT8; x and y are [batch, n, WIDTH]."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.normal(size=(WIDTH, INNER)),
        "w2": rng.normal(size=(INNER, WIDTH)),
        "bias": rng.normal(size=INNER),
        "s_x": np.array(0.02),
        "s_h": np.array(0.03),
        "s_w1": np.full(INNER, 0.02),
        "s_w2": np.full(WIDTH, 0.02),
    }
    zeros = {"zero": np.zeros((), np.int8), "z_w1": np.zeros(INNER, np.int8)}
    zeros["z_w2"] = np.zeros(WIDTH, np.int8)
    node = helper.make_node
    nodes = [
        node("Transpose", ["x"], ["k"], "turn", perm=[0, 2, 1]),
        node("MatMul", ["x", "k"], ["scores"], "scores"),
        node("Softmax", ["scores"], ["shares"], "softmax"),
        node("MatMul", ["shares", "x"], ["a"], "mixed"),
        *quantised("a", "s_x"),
        *quantised("w1", "s_w1", "z_w1"),
        node("MatMul", ["a_d", "w1_d"], ["product"], "first"),
        node("Add", ["product", "bias"], ["sum"], "add"),
        node("Tanh", ["sum"], ["h"], "activation"),
        *quantised("h", "s_h"),
        *quantised("w2", "s_w2", "z_w2"),
        node("MatMul", ["h_d", "w2_d"], ["y"], "second"),
    ]
    type_ = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "block",
        [helper.make_tensor_value_info("x", type_, ["batch", "n", WIDTH])],
        [helper.make_tensor_value_info("y", type_, ["batch", "n", WIDTH])],
        [numpy_helper.from_array(v.astype(dtype), n) for n, v in weights.items()]
        + [numpy_helper.from_array(v, n) for n, v in zeros.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def convolution(operator: str, dtype: DTypeLike, opset: int) -> ModelProto:
    """A Conv or ConvTranspose of x, [batch, 4, WIDTH]."""
    type_ = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w"], ["y"], "convolution")],
        "images",
        [helper.make_tensor_value_info("x", type_, ["batch", 4, WIDTH])],
        [helper.make_tensor_value_info("y", type_, ["batch", 4, WIDTH])],
        [numpy_helper.from_array(np.ones((4, 4, 1)).astype(dtype), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def found(model: ModelProto, tmp_path: Path) -> list[str]:
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return [str(mistake) for mistake in broken_rules(path)]


def named(model: ModelProto, name: str) -> NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def put(name: str, values: object, dtype: DTypeLike = np.float32) -> Edit:
    """Give a weight other values."""

    def edit(model: ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(values, dtype), name))

    return edit


def rewire(position: int, source: str, *nodes: str) -> Edit:
    """Let nodes read another tensor."""

    def edit(model: ModelProto) -> None:
        for name in nodes:
            named(model, name).input[position] = source

    return edit


def set_attribute(name: str, value: object, *nodes: str) -> Edit:
    def edit(model: ModelProto) -> None:
        for node in (named(model, n) for n in nodes):
            kept = [a for a in node.attribute if a.name != name]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return edit


def add(*nodes: NodeProto) -> Edit:
    return lambda model: model.graph.node.extend(nodes)


def compute_the_scale(model: ModelProto) -> None:
    node = helper.make_node("Mul", ["s_x", "s_x"], ["computed"], "multiply")
    model.graph.node.insert(0, node)
    rewire(1, "computed", "q_a")(model)


def give_no_zero_point(model: ModelProto) -> None:
    for name in ("q_a", "d_a"):
        del named(model, name).input[2]


def ask_for_the_zero_point(model: ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("asked", TensorProto.INT8, ["batch"]))
    rewire(2, "asked", "q_a")(model)


def size_the_batch(size: int) -> Edit:
    def edit(model: ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = size

    return edit


def move_into_a_function(model: ModelProto) -> None:
    """Let the pair of the product's weights be a function of the model, with its scale of 0."""
    put("s_w1", np.zeros(INNER))(model)
    pair = [named(model, "q_w1"), named(model, "d_w1")]
    opsets = [helper.make_opsetid("", 20)]
    taken = ["w1", "s_w1", "z_w1"]
    model.functions.append(helper.make_function("own", "Pair", taken, ["w1_d"], pair, opsets))
    for node in pair:
        model.graph.node.remove(node)
    model.graph.node.insert(0, helper.make_node("Pair", taken, ["w1_d"], "call", domain="own"))
    model.opset_import.append(helper.make_opsetid("own", 1))


def quantise_one_attention_product(model: ModelProto) -> None:
    model.graph.node.extend([*quantised("x", "s_x"), *quantised("k", "s_x")])
    named(model, "scores").input[:] = ["x_d", "k_d"]


def both(first: Edit, second: Edit) -> Edit:
    return lambda model: (first(model), second(model))


def as_gemm(transposed: int) -> Edit:
    def edit(model: ModelProto) -> None:
        named(model, "second").op_type = "Gemm"
        named(model, "first").op_type = "Gemm"
        set_attribute("transB", transposed, "second")(model)

    return edit


def transpose_the_weights(model: ModelProto) -> None:
    node = helper.make_node("Transpose", ["w2_d"], ["w2_t"], "swap", perm=[1, 0])
    model.graph.node.extend([node])
    rewire(1, "w2_t", "second")(model)


def convolve(axis: int) -> Edit:
    def edit(model: ModelProto) -> None:
        weights = np.zeros((WIDTH, INNER, 1), np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weights, "w3"))
        pair = quantised("w3", "s_w2", "z_w2", axis)
        node = helper.make_node("Conv", ["h", "w3_d"], ["z"], "convolution")
        model.graph.node.extend([*pair, node])

    return edit


BROKEN: Sequence[tuple[str, Edit, set[str], str]] = [
    ("zero-point", put("zero", 3, np.int8), {"q_a", "d_a", "q_h", "d_h"}, "zero-points must be 0"),
    ("asked zero-point", ask_for_the_zero_point, {"q_a"}, "the zero-point must be constant"),
    ("UINT8", put("z_w1", np.zeros(INNER), np.uint8), {"q_w1", "d_w1"}, "must quantise to INT8"),
    ("UINT8 unsaid", give_no_zero_point, {"q_a"}, "must quantise to INT8"),
    ("scale of 0", put("s_h", 0), {"q_h", "d_h"}, "scales must be finite and above 0, got 0"),
    ("negative", put("s_h", -0.5), {"q_h", "d_h"}, "finite and above 0, got -0.5"),
    ("not a number", put("s_h", np.nan), {"q_h", "d_h"}, "finite and above 0, got nan"),
    ("infinity", put("s_h", np.inf), {"q_h", "d_h"}, "finite and above 0, got inf"),
    ("computed", compute_the_scale, {"q_a"}, "the scale must be constant"),
    ("activation", put("s_h", np.full(INNER, 0.1)), {"q_h", "d_h"}, "activations must have one"),
    ("matrix", put("s_w1", np.ones((2, INNER))), {"q_w1", "d_w1"}, "one scale per channel"),
    ("axis", set_attribute("axis", 0, "q_w1", "d_w1"), {"q_w1", "d_w1"}, "MatMul first must have"),
    ("negative axis", set_attribute("axis", -2, "d_w1"), {"d_w1"}, "along axis 1, got 0"),
    ("Gemm axis", as_gemm(1), {"q_w2", "d_w2"}, "Gemm second must have scales along axis 0, got 1"),
    ("turned weights", transpose_the_weights, {"q_w2", "d_w2"}, "along axis 1, got 0"),
    ("Conv axis", convolve(1), {"q_w3", "d_w3"}, "Conv convolution must have scales along axis 0"),
    (
        "dynamic",
        add(helper.make_node("DynamicQuantizeLinear", ["x"], ["i", "j", "k_"], "dynamic")),
        {"dynamic"},
        "INT8 must be written as Q/DQ pairs, got DynamicQuantizeLinear",
    ),
    (
        "integer",
        add(helper.make_node("MatMulInteger", ["a_q", "w1_q"], ["i"], "whole")),
        {"whole"},
        "Q/DQ pairs, got MatMulInteger",
    ),
    (
        "QLinear",
        add(helper.make_node("QLinearMatMul", ["a_q", *"bcdefgh"], ["i"], "old")),
        {"old"},
        "Q/DQ pairs, got QLinearMatMul",
    ),
    (
        "half an MLP block",
        rewire(0, "h", "second"),
        {"first"},
        "an MLP block must be INT8 or neither, got INT8 in first and not in second",
    ),
    (
        "half an attention",
        quantise_one_attention_product,
        {"scores"},
        "an attention must be INT8 or neither, got INT8 in scores and not in mixed",
    ),
    ("batch", size_the_batch(4), {"x"}, "the first axis must be a dynamic batch, got 4"),
    ("no batch", size_the_batch(0), {"x"}, "the first axis must be a dynamic batch, got 0"),
    (
        "too few scales",
        both(put("s_w1", np.ones(5)), put("z_w1", np.zeros(5), np.int8)),
        {"q_w1", "d_w1"},
        "weights of 16 channels must have as many scales, got 5",
    ),
    (
        "too few zero-points",
        put("z_w1", np.zeros(5), np.int8),
        {"q_w1", "d_w1"},
        "there must be as many zero-points as scales, 16, got 5",
    ),
    ("in a function", move_into_a_function, {"q_w1__1", "d_w1__1"}, "finite and above 0, got 0"),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, bfloat16])
def test_a_good_graph_passes(dtype: DTypeLike, tmp_path: Path) -> None:
    model = good(dtype)
    onnx.checker.check_model(model, full_check=True)
    assert found(model, tmp_path) == []
    check_tensorrt_rules(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("edit", "names", "rule"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN]
)
def test_each_rule_names_its_nodes(edit: Edit, names: set[str], rule: str, tmp_path: Path) -> None:
    model = good()
    edit(model)
    mistakes = found(model, tmp_path)
    assert {mistake.split(": ")[0] for mistake in mistakes} == names
    assert [m for m in mistakes if rule not in m] == []
    with pytest.raises(BuildFailure, match=f"in {len(mistakes)} place.*{min(names)}: "):
        check_tensorrt_rules(tmp_path / "model.onnx")


def test_scales_are_of_the_type_that_the_graph_calculates_in(tmp_path: Path) -> None:
    model = good(np.float16)
    put("s_h", 0.03, np.float32)(model)
    mistakes = found(model, tmp_path)
    assert [m.split(": ")[0] for m in mistakes] == ["q_h", "d_h"]
    assert "scales must be FLOAT16 as the graph is" in mistakes[0]
    assert mistakes[0].endswith("got FLOAT")


def test_files_of_earlier_opsets_may_have_fp16_scales(tmp_path: Path) -> None:
    """ONNX lists them from opset 19, TensorRT's importer takes them in any."""
    assert found(good(np.float16, opset=13), tmp_path) == []


def test_a_batch_axis_of_minus_1_is_dynamic(tmp_path: Path) -> None:
    model = good()
    size_the_batch(-1)(model)
    assert found(model, tmp_path) == []


def test_a_model_without_a_batch_axis_has_sizes(tmp_path: Path) -> None:
    model = good()
    size_the_batch(4)(model)
    onnx.save(model, tmp_path / "model.onnx")
    check_tensorrt_rules(tmp_path / "model.onnx", batched=False)


@pytest.mark.parametrize("opset", [20, 22])
def test_of_convolutions_in_bf16_only_the_transposed_are_refused(
    opset: int, tmp_path: Path
) -> None:
    mistake = "convolution: ConvTranspose must be in FP16 or FP32, got BFLOAT16"
    assert found(convolution("ConvTranspose", bfloat16, opset), tmp_path) == [mistake]
    assert found(convolution("ConvTranspose", np.float16, opset), tmp_path) == []
    assert found(convolution("Conv", bfloat16, opset), tmp_path) == []


def test_fp16_scales_have_a_floor(tmp_path: Path) -> None:
    model = good(np.float16)
    put("s_w1", [2e-5, *[0.02] * (INNER - 1)], np.float16)(model)
    mistakes = found(model, tmp_path)
    assert mistakes[0] == "q_w1: FP16 scales must be at least 6.1e-05, got 2e-05"
    assert [m.split(": ")[0] for m in mistakes] == ["q_w1", "d_w1"]
    model = good(np.float32)
    put("s_w1", np.full(INNER, 2e-5))(model)
    assert found(model, tmp_path) == [], "FP32 has digits enough"


def test_scales_may_be_held_by_constants(tmp_path: Path) -> None:
    model = good()
    held = [
        helper.make_node("Constant", [], ["one"], value_float=0.02),
        helper.make_node("Constant", [], ["some"], value_floats=[0.02] * INNER),
    ]
    for node in held:
        model.graph.node.insert(0, node)
    rewire(1, "one", "q_h", "d_h")(model)
    rewire(1, "some", "q_w1", "d_w1")(model)
    assert found(model, tmp_path) == []
    model.graph.node[1].attribute[0].f = -1.0
    assert len(found(model, tmp_path)) == 2


def test_weights_may_lie_in_int8_already(tmp_path: Path) -> None:
    model = good()
    for name in ("q_w1", "q_w2"):
        node = named(model, name)
        weights = np.zeros((WIDTH, INNER) if name == "q_w1" else (INNER, WIDTH), np.int8)
        model.graph.initializer.append(numpy_helper.from_array(weights, node.output[0]))
        model.graph.node.remove(node)
    assert found(model, tmp_path) == []


def test_products_that_no_activation_joins_are_no_mlp_block(tmp_path: Path) -> None:
    model = good()
    rewire(0, "h", "second")(model)
    named(model, "activation").op_type = "LayerNormalization"
    assert found(model, tmp_path) == []


def test_a_node_in_a_branch_is_named_too(tmp_path: Path) -> None:
    model = good()
    inner = helper.make_node("MatMulInteger", ["a_q", "w1_q"], ["i"])
    value = helper.make_tensor_value_info("i", TensorProto.INT32, None)
    branch = helper.make_graph([inner], "branch", [], [value])
    condition = numpy_helper.from_array(np.array(True), "condition")
    model.graph.initializer.append(condition)
    model.graph.node.append(
        helper.make_node("If", ["condition"], ["o"], then_branch=branch, else_branch=branch)
    )
    assert set(found(model, tmp_path)) == {
        "MatMulInteger of i: INT8 must be written as Q/DQ pairs, got MatMulInteger"
    }


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A good graph, all its weights beside it."""
    path = tmp_path / "model.onnx"
    options: dict[str, Any] = {"location": "model.onnx.data", "size_threshold": 0}
    onnx.save(good(), path, save_as_external_data=True, **options)
    return path


def test_scales_in_external_data_are_read(external: Path) -> None:
    assert broken_rules(external) == []
    header = onnx.load(external, load_external_data=False)
    [entry] = [t for t in header.graph.initializer if t.name == "s_h"]
    offset = next(int(e.value) for e in entry.external_data if e.key == "offset")
    with external.with_name("model.onnx.data").open("r+b") as data:
        data.seek(offset)
        data.write(bytes_of(np.float32(-1)))
    assert [m.key for m in broken_rules(external)] == ["q_h", "d_h"]


def bytes_of(value: np.generic) -> bytes:
    array: NDArray[Any] = np.asarray(value)
    return array.tobytes()


def test_missing_and_short_external_data_are_said_by_weight(external: Path) -> None:
    data = external.with_name("model.onnx.data")
    data.write_bytes(data.read_bytes()[:100])
    short = broken_rules(external)
    assert "w1" in {mistake.key for mistake in short}
    assert "got model.onnx.data of 100 bytes" in str(short[0])
    data.unlink()
    with pytest.raises(BuildFailure, match=r"w1: external data must lie beside .* got no file"):
        check_tensorrt_rules(external)


def test_many_mistakes_are_counted_and_the_first_are_shown(tmp_path: Path) -> None:
    model = good()
    for name, count in (("s_x", ()), ("s_h", ()), ("s_w1", INNER), ("s_w2", WIDTH)):
        put(name, np.full(count, -1.0))(model)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(BuildFailure) as caught:
        check_tensorrt_rules(tmp_path / "model.onnx")
    message = str(caught.value)
    assert message.startswith("model.onnx breaks TensorRT's rules in 8 places: q_a: scales must be")
    assert message.endswith("; and 3 more")
    assert message.count("finite and above 0") == 5
