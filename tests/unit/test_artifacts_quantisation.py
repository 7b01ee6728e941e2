"""INT8 graphs: what is quantised, what stays as it is, and that runtimes compute in INT8."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from optimizer.artifacts.accuracy import compare
from optimizer.artifacts.graphs import arithmetic, calibration, smoothing
from optimizer.artifacts.graphs.int8 import (
    SIGNED,
    SIGNED_ATTENTION,
    UNSIGNED,
    UNSIGNED_7_BITS,
    to_int8,
    to_int8_tensorrt,
)
from optimizer.artifacts.graphs.int8_dynamic import to_int8_dynamic, to_int8_weights
from optimizer.artifacts.graphs.quantisation import Int8Scheme
from optimizer.artifacts.graphs.tensorrt_rules import broken_rules
from optimizer.configuration.runtimes import openvino as openvino_runtime
from optimizer.configuration.runtimes import openvino_session
from optimizer.errors import BuildFailure
from optimizer.workload.streams import Tensors, stack
from tests.unit import int8_graphs as graphs

Make = Callable[[Path], Path]

SCHEMES = {"s8s8": SIGNED, "u8s8": UNSIGNED, "u8s7": UNSIGNED_7_BITS}


def scaled_gemm(path: Path) -> Path:
    return graphs.gemm(path, transB=1, alpha=0.5, beta=2.0)


# What makes a graph, shape of its input x, share that can be in INT8.
CASES: dict[str, tuple[Make, tuple[int, ...], float]] = {
    "convolutions": (graphs.convolutions_and_gemm, (8, 16, 16), 1.0),
    "residual block": (graphs.residual_block_and_product, (8, 16, 16), 1.0),
    "outliers": (graphs.outliers, (graphs.LENGTH, graphs.WIDTH), 1.0),
    "gemm": (graphs.gemm, (graphs.WIDTH,), 1.0),
    "scaled gemm": (scaled_gemm, (graphs.WIDTH,), 1.0),
    # Four products of 8 x 32 x 32 with weights, two of 8 x 8 x 32 without.
    "attention": (graphs.attention, (graphs.LENGTH, graphs.WIDTH), 32 / 36),
}


def quantised(
    folder: Path,
    make: Make,
    data: list[Tensors],
    scheme: Int8Scheme = UNSIGNED,
    percentile: float = 100,
) -> tuple[Path, float]:
    """Return the INT8 graph of what `make` writes, and the share of arithmetic in INT8."""
    (folder / "fp32").mkdir()
    (folder / "int8").mkdir()
    make(folder / "fp32" / "model.onnx")
    share = to_int8(folder / "fp32", folder / "int8", data, scheme, percentile)
    assert [path.name for path in (folder / "int8").iterdir()] == ["model.onnx"]
    return folder / "int8" / "model.onnx", share


def error(folder: Path, graph: Path, request: Tensors, run: str) -> float:
    """Return the largest error of any output, as a share of the largest output."""
    expected = graphs.run_onnxruntime(folder / "fp32" / "model.onnx", request)
    served = getattr(graphs, f"run_{run}")(graph, request)
    return float(np.abs(served - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_graphs_of_every_operator_are_close_to_fp32(tmp_path: Path, name: str, scheme: str) -> None:
    make, shape, covered = CASES[name]
    graph, share = quantised(tmp_path, make, graphs.rows(shape), SCHEMES[scheme])
    assert share == pytest.approx(covered)
    onnx.checker.check_model(graph, full_check=True)
    request = stack(graphs.rows(shape, seed=9))
    limit = 0.1 if scheme == "u8s7" else 0.06
    if f"int8_{scheme}" not in graphs.OVERFLOWING:
        assert 0 < error(tmp_path, graph, request, "onnxruntime") < limit
        assert 0 < error(tmp_path, graph, request, "openvino") < limit


@pytest.mark.parametrize(
    ("name", "operators"),
    [
        ("convolutions", {"QLinearConv": 2, "QGemm": 1}),
        ("gemm", {"QGemm": 1}),
        ("scaled gemm", {"QGemm": 1}),
        ("attention", {"MatMulIntegerToFloat": 4}),
    ],
)
@pytest.mark.parametrize("scheme", ["u8s8", "u8s7"])
def test_onnxruntime_computes_in_int8(
    tmp_path: Path, name: str, operators: dict[str, int], scheme: str
) -> None:
    make, shape, _ = CASES[name]
    graph, _ = quantised(tmp_path, make, graphs.rows(shape), SCHEMES[scheme])
    executed = graphs.operators_of_onnxruntime(graph)
    assert {name: executed[name] for name in operators} == operators
    assert not executed.keys() & {"Conv", "FusedConv", "Gemm"}


@pytest.mark.parametrize(("name", "count"), [("convolutions", 3), ("gemm", 1), ("attention", 4)])
def test_openvino_computes_in_int8(tmp_path: Path, name: str, count: int) -> None:
    make, shape, _ = CASES[name]
    graph, _ = quantised(tmp_path, make, graphs.rows(shape), SIGNED)
    executed = graphs.products_of_openvino(graph)
    assert executed["i8"] + executed["u8"] == count, executed


@pytest.mark.parametrize("name", CASES)
def test_tensorrt_takes_every_graph(tmp_path: Path, name: str) -> None:
    make, shape, _ = CASES[name]
    graph, _ = quantised(tmp_path, make, graphs.rows(shape), SIGNED)
    (tmp_path / "engine").mkdir()
    to_int8_tensorrt(graph.parent, tmp_path / "engine")
    made = onnx.load(tmp_path / "engine" / "model.onnx")
    assert broken_rules(tmp_path / "engine" / "model.onnx") == []
    types = {t.data_type for t in made.graph.initializer}
    assert onnx.TensorProto.INT32 not in types, "its parser refuses biases in INT32"


def readers(graph: Path, tensor: str) -> set[str]:
    nodes = onnx.load(graph).graph.node
    return {node.name for node in nodes if tensor in node.input}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_attention_and_residual_additions_stay_in_floating_point(
    tmp_path: Path, scheme: str
) -> None:
    make, shape, _ = CASES["attention"]
    graph, _ = quantised(tmp_path, make, graphs.rows(shape), SCHEMES[scheme])
    nodes = {node.name: node for node in onnx.load(graph).graph.node}
    assert list(nodes["scores"].input) == ["q", "kt"]
    assert list(nodes["mixed"].input) == ["shares", "v"]
    assert list(nodes["residual"].input) == ["o", "x"]
    for product in ("queries", "keys", "values", "output"):
        assert all(name.endswith("dequantised") for name in nodes[product].input), product


def test_attention_is_quantised_where_that_is_chosen(tmp_path: Path) -> None:
    make, shape, _ = CASES["attention"]
    graph, share = quantised(tmp_path, make, graphs.rows(shape), SIGNED_ATTENTION)
    assert share == 1
    nodes = {node.name: node for node in onnx.load(graph).graph.node}
    assert list(nodes["scores"].input) == ["q/dequantised", "kt/dequantised"]
    assert list(nodes["mixed"].input) == ["shares/dequantised", "v/dequantised"]
    assert list(nodes["residual"].input) == ["o", "x"]
    if "int8_s8s8" not in graphs.OVERFLOWING:
        request = stack(graphs.rows(shape, seed=9))
        assert 0 < error(tmp_path, graph, request, "onnxruntime") < 0.1
    (tmp_path / "engine").mkdir()
    to_int8_tensorrt(graph.parent, tmp_path / "engine")
    assert broken_rules(tmp_path / "engine" / "model.onnx") == []


def tied_embedding(path: Path) -> Path:
    """A product with weights that an addition reads as well, and an output that a product reads."""
    node = helper.make_node
    nodes = [
        node("Gather", ["w", "zero"], ["row"], "embedding", axis=0),
        node("Add", ["x", "row"], ["h"], "add"),
        node("MatMul", ["h", "w"], ["y"], "product"),
    ]
    weights = {"w": graphs.normal(32, 32), "zero": np.array(0)}
    return graphs.write(path, nodes, weights, {"x": ["batch", 32]}, outputs=("y", "h"))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_whoever_is_no_product_reads_exact_weights_and_outputs_stay_exact(
    tmp_path: Path, scheme: str
) -> None:
    graph, share = quantised(tmp_path, tied_embedding, graphs.rows((32,)), SCHEMES[scheme])
    assert share == 1
    assert "embedding" in readers(graph, "w")
    import onnxruntime

    request = stack(graphs.rows((32,), seed=9))
    before, after = (
        onnxruntime.InferenceSession(path).run(["h"], request)[0]
        for path in (tmp_path / "fp32" / "model.onnx", graph)
    )
    np.testing.assert_array_equal(before, after)


def test_weights_that_two_products_share_are_stored_once(tmp_path: Path) -> None:
    def twice(path: Path) -> Path:
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["h"], "first"),
            helper.make_node("MatMul", ["h", "w"], ["y"], "second"),
        ]
        return graphs.write(path, nodes, {"w": graphs.normal(32, 32)}, {"x": ["batch", 32]})

    graph, _ = quantised(tmp_path, twice, graphs.rows((32,)))
    sizes = [math.prod(tensor.dims) for tensor in onnx.load(graph).graph.initializer]
    assert sizes.count(32 * 32) == 1


def test_weights_of_7_bits_keep_the_sum_of_two_products_in_16_bits(tmp_path: Path) -> None:
    make, shape, _ = CASES["convolutions"]
    graph, _ = quantised(tmp_path, make, graphs.rows(shape), UNSIGNED_7_BITS)
    stored = [numpy_helper.to_array(t) for t in onnx.load(graph).graph.initializer]
    largest = max(np.abs(t.astype(int)).max() for t in stored if t.dtype == np.int8)
    assert largest == 64
    assert 2 * 255 * largest < 2**15


def test_a_large_bias_fits_in_32_bits(tmp_path: Path) -> None:
    def biased(path: Path) -> Path:
        nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], "only")]
        weights = {"w": graphs.normal(32, 8) * np.float32(1e-6), "b": graphs.normal(8) * 1000}
        return graphs.write(path, nodes, weights, {"x": ["batch", 32]})

    graph, _ = quantised(tmp_path, biased, graphs.rows((32,)))
    request = stack(graphs.rows((32,), seed=9))
    assert error(tmp_path, graph, request, "onnxruntime") < 1e-4


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([("Relu", ["x"])], "none of these operators"),
        ([("MatMul", ["x", "x"])], "those of its MatMul are computed or of another type"),
    ],
)
def test_a_graph_without_anything_to_quantise_is_refused(
    tmp_path: Path, nodes: list[tuple[str, list[str]]], message: str
) -> None:
    def make(path: Path) -> Path:
        made = [helper.make_node(name, inputs, ["y"]) for name, inputs in nodes]
        return graphs.write(path, made, {}, {"x": ["batch", 4, 4]})

    wanted = (
        f"int8: the graph must have a Conv, Gemm or MatMul with constant FP32 weights.*{message}"
    )
    with pytest.raises(BuildFailure, match=wanted):
        quantised(tmp_path, make, graphs.rows((4, 4)))


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_older_opsets_are_quantised_too(tmp_path: Path, opset: int) -> None:
    def make(path: Path) -> Path:
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "only")]
        return graphs.write(
            path, nodes, {"w": graphs.normal(32, 32)}, {"x": ["b", 32]}, opset=opset
        )

    graph, _ = quantised(tmp_path, make, graphs.rows((32,)))
    assert graphs.operators_of_onnxruntime(graph)["MatMulIntegerToFloat"] == 1


@pytest.mark.parametrize("run", ["onnxruntime", "openvino"])
def test_a_convolutional_network_is_int8_with_its_normalisations(tmp_path: Path, run: str) -> None:
    make, shape, _ = CASES["residual block"]
    graph, share = quantised(tmp_path, make, graphs.rows(shape))
    assert share == 1
    operators = {node.op_type for node in onnx.load(graph).graph.node}
    assert "BatchNormalization" not in operators, "a runtime could no longer fuse it"
    request = stack(graphs.rows(shape, seed=9))
    expected = graphs.run_onnxruntime(tmp_path / "fp32" / "model.onnx", request)
    if "int8_u8s8" not in graphs.OVERFLOWING:
        served = getattr(graphs, f"run_{run}")(graph, request)
        assert compare(expected, served).min_cosine > 0.999
    if run == "openvino":
        assert graphs.products_of_openvino(graph).keys() <= {"i8", "u8"}
    else:
        executed = graphs.operators_of_onnxruntime(graph)
        assert executed["QLinearConv"] == 2
        assert executed["MatMulIntegerToFloat"] == 1


def test_a_normalisation_stays_where_the_convolution_has_another_reader(tmp_path: Path) -> None:
    def make(path: Path) -> Path:
        model = onnx.load(graphs.residual_block_and_product(path))
        model.graph.output.append(helper.make_tensor_value_info("c1", 1, None))
        onnx.save(model, path)
        return path

    graph, _ = quantised(tmp_path, make, graphs.rows((8, 16, 16)))
    nodes = {node.name for node in onnx.load(graph).graph.node}
    assert "normal1" in nodes
    assert "normal2" not in nodes
    assert error(tmp_path, graph, stack(graphs.rows((8, 16, 16), seed=9)), "onnxruntime") < 0.1


@pytest.mark.parametrize("scheme", [SIGNED, UNSIGNED], ids=["s8s8", "u8s8"])
def test_outliers_of_an_activation_move_into_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: Int8Scheme
) -> None:
    errors = []
    for name, limit in (("smoothed", smoothing._OUTLIER), ("plain", math.inf)):
        monkeypatch.setattr(smoothing, "_OUTLIER", limit)
        (tmp_path / name).mkdir()
        make, shape, _ = CASES["outliers"]
        graph, _ = quantised(tmp_path / name, make, graphs.rows(shape), scheme)
        request = stack(graphs.rows(shape, seed=9))
        errors.append(error(tmp_path / name, graph, request, "onnxruntime"))
    # A third where the processor multiplies in INT8, somewhat more where ONNX Runtime emulates it.
    assert errors[0] < errors[1] / 2


# Activations quantised at run time


@pytest.mark.parametrize("name", ["gemm", "scaled gemm", "attention"])
def test_weights_in_int8_are_close_to_fp32(tmp_path: Path, name: str) -> None:
    make, shape, covered = CASES[name]
    graph, share = weights_quantised(tmp_path, make, graphs.rows(shape, count=1)[0])
    assert share == pytest.approx(covered)
    onnx.checker.check_model(graph, full_check=True)
    request = stack(graphs.rows(shape, seed=9))
    for run in ("onnxruntime", "openvino"):
        assert 0 < error(tmp_path, graph, request, run) < 0.03
    types = {t.name: t.data_type for t in onnx.load(graph).graph.initializer}
    assert onnx.TensorProto.INT8 in types.values()


def test_openvino_quantises_activations_at_run_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The arithmetic is in INT8 exactly where the result differs from that of exact activations.

    With BF16, which some processors have, results are rounded besides, and by the batch.
    """
    monkeypatch.setattr(openvino_session, "inference_precision", lambda *_: "f32")

    def make(path: Path) -> Path:
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "only")]
        weights = {"w": graphs.normal(128, 64)}
        return graphs.write(path, nodes, weights, {"x": ["batch", 128]})

    rows = graphs.rows((128,))
    graph, _ = weights_quantised(tmp_path, make, rows[0])
    openvino_runtime.OPENVINO.convert(graph.parent, tmp_path)  # type: ignore[misc]
    run = openvino_session.open_session(str(tmp_path), ["y"], "int8_dynamic", 1, None)

    def served(request: Tensors) -> NDArray[np.float32]:
        return np.asarray(run(request)[0])

    exact = graphs.run_onnxruntime(graph, stack(rows))
    difference = np.abs(served(stack(rows)) - exact).max() / np.abs(exact).max()
    assert difference > 1e-3, "one scale for 64 channels rounds by about 0.4 %"
    assert compare(exact, served(stack(rows))).min_cosine > 0.999
    alone = np.concatenate([served(row) for row in rows])
    np.testing.assert_allclose(alone, served(stack(rows)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "shape", "covered", "operator"),
    [
        (graphs.gemm, (graphs.WIDTH,), 1.0, "MatMulInteger"),
        (graphs.attention, (graphs.LENGTH, graphs.WIDTH), 32 / 36, "MatMulInteger"),
        (graphs.lstm, (graphs.LENGTH, graphs.WIDTH), 1.0, "DynamicQuantizeLSTM"),
    ],
)
@pytest.mark.parametrize("seven_bits", [False, True])
def test_onnxruntime_quantises_at_run_time(
    tmp_path: Path,
    make: Make,
    shape: tuple[int, ...],
    covered: float,
    operator: str,
    seven_bits: bool,
) -> None:
    before, after = tmp_path / "fp32", tmp_path / "int8"
    for folder in (before, after):
        folder.mkdir()
    make(before / "model.onnx")
    request = stack(graphs.rows(shape, seed=9))
    share = to_int8_dynamic(before, after, graphs.rows(shape)[0], seven_bits=seven_bits)
    assert share == pytest.approx(covered)
    graph = after / "model.onnx"
    assert operator in {node.op_type for node in onnx.load(graph).graph.node}
    if seven_bits or "int8_u8s8" not in graphs.OVERFLOWING:
        assert 0 < error(tmp_path, graph, request, "onnxruntime") < (0.1 if seven_bits else 0.05)


def test_dynamic_quantisation_needs_products(tmp_path: Path) -> None:
    def make(path: Path) -> Path:
        nodes = [helper.make_node("Conv", ["x", "w"], ["y"], "only")]
        weights = {"w": graphs.normal(8, 8, 3, 3)}
        return graphs.write(path, nodes, weights, {"x": ["batch", 8, 16, 16]})

    with pytest.raises(BuildFailure, match="int8_dynamic: the graph must have a Gemm or MatMul"):
        weights_quantised(tmp_path, make, graphs.rows((8, 16, 16))[0])


def weights_quantised(folder: Path, make: Make, request: Tensors) -> tuple[Path, float]:
    """Return the graph with INT8 weights of what `make` writes, and their share."""
    (folder / "fp32").mkdir()
    (folder / "int8").mkdir()
    make(folder / "fp32" / "model.onnx")
    share = to_int8_weights(folder / "fp32", folder / "int8", request)
    return folder / "int8" / "model.onnx", share


# Calibration


def observed(
    folder: Path, data: list[Tensors], percentile: float = 100
) -> dict[str, calibration.Range]:
    path = graphs.attention(folder / "model.onnx")
    shapes = arithmetic.measure_shapes(path, data[0])
    run = calibration.Activations(path, {"x", "mixed"}, data, shapes)
    return calibration.calibrated_ranges(run, percentile, {})


def test_ranges_do_not_depend_on_how_rows_are_divided_into_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = graphs.rows((graphs.LENGTH, graphs.WIDTH), count=20)
    sizes: list[int] = []

    def counted(rows: list[Tensors]) -> Tensors:
        sizes.append(len(rows))
        return stack(rows)

    monkeypatch.setattr("optimizer.artifacts.graphs.calibration.stack", counted)
    ranges = {}
    for limit, batches in ((2**28, [20]), (0, [1] * 20)):
        sizes.clear()
        monkeypatch.setattr(calibration, "_BATCH_BYTES", limit)
        ranges[limit] = observed(tmp_path, data)
        assert sizes == batches
    assert ranges[0]["x"] == ranges[2**28]["x"]
    assert ranges[0]["x"][0] == min(row["x"].min() for row in data)
    assert ranges[0]["mixed"] == pytest.approx(ranges[2**28]["mixed"], rel=1e-5)


def test_a_percentile_leaves_out_the_rarest_values(tmp_path: Path) -> None:
    data = graphs.rows((graphs.LENGTH, graphs.WIDTH), count=64)
    data[0]["x"][0, 0, 0] = 1000
    everything = observed(tmp_path, data)["x"]
    low, high = observed(tmp_path, data, 99)["x"]
    assert everything[1] == 1000
    expected = np.percentile(np.concatenate([row["x"].ravel() for row in data]), [0.5, 99.5])
    assert (low, high) == pytest.approx(tuple(expected), abs=1003 / 4096)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    data = graphs.rows((graphs.LENGTH, graphs.WIDTH), count=2)
    data[1]["x"][0, 0, 0] = np.nan
    with pytest.raises(
        BuildFailure, match="calibration: the tensor mixed contains NaN or infinity"
    ):
        observed(tmp_path, data)


def in_a_container(monkeypatch: pytest.MonkeyPatch, free_bytes: int) -> None:
    monkeypatch.setattr("optimizer.machine.cores.free_memory_bytes", lambda: free_bytes)


def test_a_row_that_does_not_fit_in_memory_is_refused_before_it_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_a_container(monkeypatch, 1000)
    message = (
        r"calibration: 1 row at once \(x \[1, 8, 32\] each\) needs about 0\.0 GiB of memory and "
        r"must fit in what is available \(0\.0 GiB\): free memory, or give the model shorter"
    )
    with pytest.raises(BuildFailure, match=message):
        observed(tmp_path, graphs.rows((graphs.LENGTH, graphs.WIDTH), count=2))


def test_batches_are_as_large_as_the_available_memory_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = graphs.attention(tmp_path / "model.onnx")
    data = graphs.rows((graphs.LENGTH, graphs.WIDTH), count=20)
    shapes = arithmetic.measure_shapes(path, data[0])
    tensors = {"x", "mixed"}
    row = arithmetic.peak_bytes(onnx.load(path).graph.node, shapes, tensors)
    row += 3 * arithmetic.total_bytes(shapes, tensors)
    in_a_container(monkeypatch, 5 * path.stat().st_size + 7 * row)
    with caplog.at_level("INFO"):
        run = calibration.Activations(path, tensors, data, shapes)
    assert [len(batch["x"]) for batch in run] == [7, 7, 6]
    assert "7 rows at once" in caplog.text


def test_the_estimate_of_memory_follows_what_lives_at_the_same_time(tmp_path: Path) -> None:
    path = graphs.attention(tmp_path / "model.onnx")
    [row] = graphs.rows((graphs.LENGTH, graphs.WIDTH), count=1)
    shapes = arithmetic.measure_shapes(path, row)
    assert shapes["scores"] == (1, 8, 8)
    nodes = onnx.load(path).graph.node
    wide, square, weights = 4 * 8 * 32, 4 * 8 * 8, 4 * 32 * 32
    # A Constant and its transpose are larger than all that lives later.
    assert arithmetic.peak_bytes(nodes, shapes, set()) == 2 * weights
    kept = {"q", "k", "v", "scores"}
    assert arithmetic.peak_bytes(nodes[2:], shapes, kept) == 5 * wide + square
