"""Models that come as ONNX files, with and without external data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from optimizer.artifacts import builders
from optimizer.artifacts import precision_graphs as graphs_module
from optimizer.artifacts.accuracy import compare
from optimizer.artifacts.bare_timing import time_bare
from optimizer.artifacts.build_jobs import build_artifact, export_graph, prepare_model
from optimizer.artifacts.cache import ArtifactCache
from optimizer.artifacts.graphs.tensorrt_rules import SMALLEST_FP16_SCALE, check_tensorrt_rules
from optimizer.artifacts.precision_graphs import PrecisionGraphs
from optimizer.configuration.hardware import overflows_in_int8
from optimizer.configuration.runtimes import Runtime
from optimizer.configuration.runtimes.openvino import OPENVINO
from optimizer.configuration.runtimes.spec import GraphKind
from optimizer.configuration.serving_config import ArtifactSpec
from optimizer.errors import BuildFailure, UsageError
from optimizer.machine.fingerprint import cpu_flags
from optimizer.workload.model_spec import AccuracyLimits, DataSet, ModelSpec, OnnxSource
from optimizer.workload.request_sizes import LengthDistribution
from optimizer.workload.streams import OutputTensor, Payloads, Tensors, TensorSpec, stack
from tests.unit import int8_graphs

WIDTH = 64


def write_graph(
    path: Path,
    *,
    batch: int | str = "batch",
    external: bool = False,
    operator: str = "MatMul",
    seed: int = 0,
) -> Path:
    """y = x [batch, WIDTH] times constant weights [WIDTH, WIDTH]."""
    weights = np.random.default_rng(seed).normal(size=(WIDTH, WIDTH)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, WIDTH])],
        [numpy_helper.from_array(weights, "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    location = "weights.bin"
    onnx.save(made, path, save_as_external_data=external, location=location, size_threshold=0)
    return path


def model(path: Path, output: str = "y", **tensor: object) -> ModelSpec:
    spec = TensorSpec("x", "FP32", (WIDTH,), minimum=-1, maximum=1)
    payloads = Payloads((replace(spec, **tensor),), LengthDistribution((1,), (1.0,)))  # type: ignore[arg-type]
    data = DataSet(None, 12, 0)
    source = OnnxSource(path)
    return ModelSpec("product", source, payloads, data, data, AccuracyLimits(1, 1), (output,))


def run(graph: Path, kind: GraphKind, request: Tensors) -> NDArray[Any]:
    """By ONNX's own evaluator where ONNX Runtime has no kernels."""
    outputs: Any
    if kind == "bf16":
        outputs = ReferenceEvaluator(str(graph)).run(None, request)
    else:
        outputs = onnxruntime.InferenceSession(graph).run(None, request)
    served: NDArray[Any] = outputs[0]
    return served


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize(
    "kind", ["fp32", "fp16", "bf16", "int8_s8s8", "int8_u8s8", "int8_u8s7", "int8_trt"]
)
def test_every_precision(tmp_path: Path, kind: GraphKind, external: bool) -> None:
    spec = model(write_graph(tmp_path / "m.onnx", external=external))
    cache = ArtifactCache(tmp_path / "cache")
    prepared = prepare_model(spec, cache)
    assert prepared.outputs == (OutputTensor("y", "FP32", (WIDTH,)),)
    entry = PrecisionGraphs(spec, cache).entry(kind)
    files = {path.name for path in entry.path.iterdir()}
    assert (len(files) == 2) == external
    assert "model.onnx" in files
    served = run(entry.path / "model.onnx", kind, stack(prepared.evaluation))
    assert served.dtype == np.float32
    tolerance = {"fp32": 1e-5, "fp16": 0.01, "bf16": 0.1, "int8_u8s7": 0.5}.get(kind, 0.3)
    if kind not in int8_graphs.OVERFLOWING:
        assert compare(prepared.references[0].outputs["y"], served).max_abs_error < tolerance


def test_openvino_reads_external_data(tmp_path: Path) -> None:
    spec = model(write_graph(tmp_path / "m.onnx", external=True))
    cache = ArtifactCache(tmp_path / "cache")
    artifact = build_artifact(ArtifactSpec("product", "openvino", "python", "fp32"), spec, cache)
    assert {path.name for path in artifact.path.iterdir()} == {"model.xml", "model.bin"}
    assert (artifact.path / "model.bin").stat().st_size >= WIDTH * WIDTH * 4


def test_an_artefact_is_timed_in_its_own_runtime(tmp_path: Path) -> None:
    spec, cache = model(write_graph(tmp_path / "m.onnx")), ArtifactCache(tmp_path / "cache")
    artifact = build_artifact(ArtifactSpec("product", "onnxruntime", "python", "fp32"), spec, cache)
    rng = np.random.default_rng(0)
    batches: list[Tensors] = [
        {"x": rng.uniform(size=(size, WIDTH)).astype(np.float32)} for size in (1, 20_000)
    ]
    alone, large = time_bare(artifact, "y", 1, batches, cache)
    assert 0 < alone < large


def test_the_content_names_the_model(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path / "cache")
    spec = model(write_graph(tmp_path / "m.onnx", external=True))
    assert prepare_model(spec, cache).built
    (tmp_path / "moved").mkdir()
    moved = model(write_graph(tmp_path / "moved" / "m.onnx", external=True))
    assert not prepare_model(moved, cache).built
    (tmp_path / "other").mkdir()
    write_graph(tmp_path / "other" / "m.onnx", external=True, seed=1)
    # The graph's own file stays the same: only the external data changes.
    (tmp_path / "other" / "weights.bin").replace(tmp_path / "weights.bin")
    assert prepare_model(spec, cache).built


def test_where_a_graph_was_traced_does_not_travel_along(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "m.onnx")
    traced = onnx.load(path)
    condition = helper.make_node(
        "Constant", [], ["c"], value=numpy_helper.from_array(np.array(True))
    )
    branch = helper.make_graph(
        [helper.make_node("Identity", ["y"], ["z"], doc_string="/home/me/model.py, line 3")],
        "branch",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", WIDTH])],
    )
    choice = helper.make_node("If", ["c"], ["chosen"], then_branch=branch, else_branch=branch)
    traced.graph.node.extend([condition, choice])
    for node in traced.graph.node:
        node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="/home/me/model.py")
    traced.graph.value_info.extend([helper.make_tensor_value_info("c", TensorProto.BOOL, [])])
    traced.graph.value_info[0].doc_string = "/home/me/model.py"
    traced.metadata_props.add(key="license", value="mit")
    onnx.save(traced, path)
    graph = export_graph(model(path), ArtifactCache(tmp_path / "cache")).path / "model.onnx"
    assert b"/home/me" in path.read_bytes()
    assert b"/home/me" not in graph.read_bytes()
    kept = onnx.load(graph)
    assert [node.op_type for node in kept.graph.node] == ["MatMul", "Constant", "If"]
    assert [(entry.key, entry.value) for entry in kept.metadata_props] == [("license", "mit")]
    onnx.checker.check_model(kept)


def test_int8_without_anything_to_quantise_is_no_int8(tmp_path: Path) -> None:
    spec = model(write_graph(tmp_path / "m.onnx", operator="Add"))
    with pytest.raises(BuildFailure, match="int8: the graph must have a Conv, Gemm or MatMul with"):
        PrecisionGraphs(spec, ArtifactCache(tmp_path / "cache")).entry("int8_u8s8")


def test_a_recipe_of_a_later_version_builds_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = model(write_graph(tmp_path / "m.onnx"))
    cache = ArtifactCache(tmp_path / "cache")
    wanted = [ArtifactSpec("product", "onnxruntime", "python", "int8")]
    wanted += [ArtifactSpec("product", "openvino", "python", p) for p in ("fp32", "int8")]

    def cached() -> list[bool]:
        return [build_artifact(each, spec, cache).cached for each in wanted]

    assert cached() == [False] * 3
    assert cached() == [True] * 3
    recipes = cast(dict[str, int], graphs_module._RECIPES)
    int8 = "int8_u8s7" if overflows_in_int8(cpu_flags()) else "int8_u8s8"
    openvino = builders.GraphBuilder(replace(OPENVINO, recipe=OPENVINO.recipe + 1))
    for name, still_cached in (
        (int8, [False, True, False]),
        ("openvino", [True, False, False]),
        ("fp32", [False] * 3),
    ):
        if name == "openvino":
            monkeypatch.setitem(builders.BUILDERS, name, openvino)
        else:
            monkeypatch.setitem(recipes, name, recipes[name] + 1)
        assert cached() == still_cached, name
        assert cached() == [True] * 3
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("flags", "kind", "dynamic"),
    [
        ({"avx2"}, "int8_u8s7", "int8_dynamic_s7"),
        ({"avx2", "avx512f"}, "int8_u8s7", "int8_dynamic_s7"),
        ({"avx2", "avx_vnni"}, "int8_u8s8", "int8_dynamic"),
        ({"avx512f", "avx512_vnni"}, "int8_u8s8", "int8_dynamic"),
        (None, "int8_u8s8", "int8_dynamic"),
    ],
)
def test_weights_have_7_bits_for_onnxruntime_where_8_may_overflow(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: set[str] | None,
    kind: GraphKind,
    dynamic: GraphKind,
) -> None:
    spec = model(write_graph(tmp_path / "m.onnx"))
    cache = ArtifactCache(tmp_path / "cache")
    monkeypatch.setattr(builders, "cpu_flags", lambda: flags)
    wanted = ArtifactSpec("product", "onnxruntime", "python", "int8")
    for each in (wanted, replace(wanted, precision="int8_dynamic")):
        made = build_artifact(each, spec, cache)
        expected = kind if each == wanted else dynamic
        assert made.path == PrecisionGraphs(spec, cache).entry(expected).path
        assert made.int8_share == 1


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_share_of_int8_is_kept_with_the_artefact(tmp_path: Path, runtime: Runtime) -> None:
    path = int8_graphs.attention(tmp_path / "m.onnx")
    spec = model(path, name="x", shape=(int8_graphs.LENGTH, int8_graphs.WIDTH))
    wanted = ArtifactSpec("product", runtime, "python", "int8")
    cache = ArtifactCache(tmp_path / "cache")
    for _ in range(2):
        assert build_artifact(wanted, spec, cache).int8_share == pytest.approx(32 / 36)
    other = replace(wanted, precision="fp32")
    assert build_artifact(other, spec, cache).int8_share is None


def test_the_percentile_of_calibration_belongs_to_the_key(tmp_path: Path) -> None:
    spec = model(write_graph(tmp_path / "m.onnx"))
    cache = ArtifactCache(tmp_path / "cache")
    kinds: list[GraphKind] = ["int8_u8s8", "fp32"]
    first = [PrecisionGraphs(spec, cache).entry(kind) for kind in kinds]
    other = replace(spec, calibration_percentile=90.0)
    again = [PrecisionGraphs(other, cache).entry(kind) for kind in kinds]
    assert [a.sha256 == b.sha256 for a, b in zip(first, again, strict=True)] == [False, True]


@pytest.mark.parametrize(
    ("tensor", "output", "message"),
    [
        ({"name": "z"}, "y", "has the inputs x; the payloads give z"),
        ({"data_type": "INT64"}, "y", "x: the ONNX graph takes float32, got INT64"),
        ({"shape": (None,)}, "y", r"x: the ONNX graph takes \[None, 64\] .* got \[None, length\]"),
        ({"shape": (8, 8)}, "y", r"x: the ONNX graph takes \[None, 64\]"),
        ({}, "logits", "has no output 'logits'; it has y"),
    ],
)
def test_a_graph_that_does_not_fit(
    tmp_path: Path, tensor: dict[str, object], output: str, message: str
) -> None:
    spec = model(write_graph(tmp_path / "m.onnx"), output, **tensor)
    with pytest.raises(UsageError, match=message):
        prepare_model(spec, ArtifactCache(tmp_path / "cache"))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path / "cache")
    (tmp_path / "text.onnx").write_text("not a graph")
    for name in ("absent.onnx", "text.onnx"):
        with pytest.raises(UsageError, match=f"{name}: must be a readable ONNX file"):
            prepare_model(model(tmp_path / name), cache)
    path = write_graph(tmp_path / "m.onnx", external=True)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(UsageError, match=r"external data 'weights\.bin' is missing"):
        prepare_model(model(path), cache)


def test_external_data_may_not_lie_elsewhere(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "m.onnx", external=True)
    header = onnx.load(path, load_external_data=False)
    header.graph.initializer[0].external_data[0].value = "../weights.bin"
    onnx.save(header, path)
    with pytest.raises(UsageError, match="must lie beside the file"):
        prepare_model(model(path), ArtifactCache(tmp_path / "cache"))


def test_scales_too_small_for_fp16_are_raised(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "m.onnx")
    tiny = onnx.load(path)
    weights = numpy_helper.to_array(tiny.graph.initializer[0]) * np.float32(1e-3)
    tiny.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "w"))
    onnx.save(tiny, path)
    graphs = PrecisionGraphs(model(path), ArtifactCache(tmp_path / "cache"))
    before = scales_of_weights(graphs.entry("int8_s8s8").path / "model.onnx")
    after = scales_of_weights(graphs.entry("int8_trt").path / "model.onnx")
    assert before.max() < SMALLEST_FP16_SCALE
    assert after.dtype == np.float16
    assert (after == SMALLEST_FP16_SCALE).all()


def scales_of_weights(path: Path) -> NDArray[Any]:
    made = onnx.load(path).graph
    [node] = [n for n in made.node if n.op_type == "QuantizeLinear" and n.input[0] == "w"]
    return numpy_helper.to_array(next(t for t in made.initializer if t.name == node.input[1]))


def test_a_block_that_can_be_quantised_by_half_only_is_refused(tmp_path: Path) -> None:
    # Weights in FP16 are not quantised.
    made = onnx.load(write_graph(tmp_path / "m.onnx"))
    made.graph.node[0].output[0] = "product"
    made.graph.node.extend(
        [
            helper.make_node("Relu", ["product"], ["h"], "activation"),
            helper.make_node("Cast", ["h"], ["h16"], to=TensorProto.FLOAT16),
            helper.make_node("MatMul", ["h16", "w16"], ["y16"], "half"),
            helper.make_node("Cast", ["y16"], ["y"], to=TensorProto.FLOAT),
        ]
    )
    weights = numpy_helper.to_array(made.graph.initializer[0]).astype(np.float16)
    made.graph.initializer.append(numpy_helper.from_array(weights, "w16"))
    made.graph.node[0].name = "other_half"
    onnx.save(made, tmp_path / "m.onnx")
    graphs = PrecisionGraphs(model(tmp_path / "m.onnx"), ArtifactCache(tmp_path / "cache"))
    made_for_tensorrt = graphs.entry("int8_trt").path / "model.onnx"
    with pytest.raises(BuildFailure, match=r"other_half: both products .* and not in half"):
        check_tensorrt_rules(made_for_tensorrt)


def test_padding_is_not_judged_where_outputs_have_a_row_for_each_position(tmp_path: Path) -> None:
    path = write_token_graph(tmp_path / "m.onnx")
    tensors = (
        TensorSpec("ids", "INT64", (None,), minimum=1, maximum=1000),
        TensorSpec("attention_mask", "INT64", (None,), minimum=1, maximum=1),
    )
    payloads = Payloads(tensors, LengthDistribution((2, 5), (0.5, 0.5)))
    spec = replace(model(path), payloads=payloads)
    prepared = prepare_model(spec, ArtifactCache(tmp_path / "cache"))
    [reference] = prepared.references
    assert reference.outputs["y"].shape == (12, 5, 1)
    masks = np.concatenate([row["attention_mask"] for row in prepared.evaluation])
    np.testing.assert_array_equal(reference.judged["y"], masks == 1)
    assert not reference.judged["y"].all()


def test_outputs_without_positions_are_judged_whole(tmp_path: Path) -> None:
    spec = model(write_graph(tmp_path / "m.onnx"))
    [reference] = prepare_model(spec, ArtifactCache(tmp_path / "cache")).references
    assert reference.judged == {}


def write_token_graph(path: Path) -> Path:
    """y [batch, length, 1] is ids times attention_mask."""
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["ids", "attention_mask"], ["own"]),
            helper.make_node("Cast", ["own"], ["floating"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["floating", "last"], ["y"]),
        ],
        "tokens",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
            for name in ("ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "length", 1])],
        [numpy_helper.from_array(np.array([2]), "last")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(made, path)
    return path
