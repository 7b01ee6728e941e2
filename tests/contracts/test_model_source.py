"""What every `ModelSource` promises: a checkpoint, an architecture, and ONNX files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from optimizer.artifacts.build_results import OpenedModel
from optimizer.artifacts.graphs.onnx_graph import OnnxGraph
from optimizer.artifacts.model_source import ModelSource, source_of
from optimizer.configuration.runtimes import onnxruntime_session, pytorch_session
from optimizer.configuration.runtimes.spec import Precision
from optimizer.errors import BuildFailure, UsageError
from optimizer.workload.model_spec import ModelSpec, OnnxSource, TransformersSource
from optimizer.workload.streams import Tensors
from tests.unit.tiny_bert import CONFIG, LONGEST, MODEL, request

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of torch, its exporter and transformers
    pytest.mark.timeout(300),
]

SHAPES = [(1, 7), (1, LONGEST), (5, 7), (5, LONGEST)]
BERT = TransformersSource("BertForSequenceClassification", config=json.dumps(CONFIG))


def architecture(folder: Path, seed: int) -> ModelSpec:
    return replace(MODEL, source=replace(BERT, seed=seed))


def checkpoint(folder: Path, seed: int) -> ModelSpec:
    """Weights in 16 bits on disk: the reference must be FP32 all the same."""
    import torch
    import transformers

    torch.manual_seed(seed)
    config = transformers.BertConfig(**CONFIG)
    transformers.BertForSequenceClassification(config).bfloat16().save_pretrained(folder)
    source = TransformersSource("BertForSequenceClassification", checkpoint=str(folder))
    return replace(MODEL, source=source)


@cache
def exported_architecture() -> onnx.ModelProto:
    with TemporaryDirectory() as folder:
        source_of(architecture(Path(folder), 0)).export_onnx(Path(folder))
        return onnx.load(Path(folder) / "model.onnx")


def onnx_file(folder: Path, seed: int, *, external: bool = False) -> ModelSpec:
    graph = onnx.ModelProto()
    graph.CopyFrom(exported_architecture())
    [bias] = [t for t in graph.graph.initializer if t.name.endswith("embeddings.LayerNorm.bias")]
    bias.CopyFrom(numpy_helper.from_array(np.full(32, seed, np.float32), bias.name))
    path = folder / "bert.onnx"
    onnx.save(graph, path, save_as_external_data=external, location="weights.bin")
    return replace(MODEL, source=OnnxSource(path))


def onnx_with_external_data(folder: Path, seed: int) -> ModelSpec:
    return onnx_file(folder, seed, external=True)


SOURCES: dict[str, Callable[[Path, int], ModelSpec]] = {
    "architecture": architecture,
    "checkpoint": checkpoint,
    "ONNX file": onnx_file,
    "ONNX file with external data": onnx_with_external_data,
}


@pytest.fixture(scope="module", params=SOURCES)
def spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return SOURCES[request.param](tmp_path_factory.mktemp("source"), 0)


@pytest.fixture(scope="module")
def source(spec: ModelSpec) -> ModelSource:
    return source_of(spec)


@pytest.fixture(scope="module")
def opened(source: ModelSource) -> OpenedModel:
    return source.open()


@pytest.fixture(scope="module")
def exported(source: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    source.export_onnx(folder)
    return folder


def assert_equal_outputs(
    opened: OpenedModel, run: Callable[[Tensors], list[NDArray[Any]]], tolerance: float
) -> None:
    for batch, length in SHAPES:
        tensors = request(batch, length)
        [outputs] = run(tensors)
        assert outputs.dtype == np.float32
        expected: NDArray[Any] = opened.run(tensors)["logits"]
        np.testing.assert_allclose(outputs, expected, atol=tolerance)


def test_the_fingerprint_is_json_and_names_the_content(
    spec: ModelSpec, source: ModelSource, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    fingerprint = source.fingerprint()
    assert json.loads(json.dumps(fingerprint)) == fingerprint == source_of(spec).fingerprint()
    make = SOURCES[request.node.callspec.params["spec"]]
    same, other = tmp_path / "same", tmp_path / "other"
    for folder, seed in ((same, 0), (other, 1)):
        folder.mkdir()
        assert (source_of(make(folder, seed)).fingerprint() == fingerprint) == (seed == 0)


def test_the_opened_model_executes_all_batches_and_lengths(opened: OpenedModel) -> None:
    [output] = opened.outputs
    assert (output.name, output.data_type) == ("logits", "FP32")
    assert opened.weight_bytes > 4 * CONFIG["vocab_size"] * CONFIG["hidden_size"]
    for batch, length in SHAPES:
        tensors = request(batch, length)
        outputs = opened.run(tensors)["logits"]
        assert outputs.shape == (batch, *output.shape)
        assert outputs.dtype == np.float32
        np.testing.assert_array_equal(outputs, opened.run(tensors)["logits"])
        assert not np.array_equal(outputs, outputs.astype(np.float16)), "the arithmetic is FP32"


def test_the_onnx_export_gives_the_model_s_own_outputs(opened: OpenedModel, exported: Path) -> None:
    run = onnxruntime_session.open_session(str(exported), ["logits"], "fp32", 1, None)
    assert_equal_outputs(opened, run, 1e-4)


def test_the_onnx_export_is_whole_and_names_no_path_of_this_machine(exported: Path) -> None:
    names = {path.name for path in exported.iterdir()}
    assert "model.onnx" in names
    assert len(names) <= 2, "the graph, and its external data"
    onnx.checker.check_model(exported / "model.onnx", full_check=True)
    content = (exported / "model.onnx").read_bytes()
    assert b"site-packages" not in content
    assert b".py" not in content


def test_the_onnx_export_masks_attention_by_addition_and_names_each_axis_once(
    exported: Path,
) -> None:
    graph = OnnxGraph(exported / "model.onnx")
    operators = {node.op_type for node in graph.nodes}
    assert "Softmax" in operators
    # A boolean mask is looked up through an index of integers, and rows without any share are NaN.
    assert not operators & {"And", "GatherND", "IsNaN", "Range", "Where"}
    axes = [[axis.dim_param for axis in v.type.tensor_type.shape.dim] for v in graph.inputs]
    assert axes == [["batch", "size_length"]] * 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_torch_export_gives_the_model_s_own_outputs_or_says_why_there_is_none(
    spec: ModelSpec, source: ModelSource, opened: OpenedModel, tmp_path: Path, precision: Precision
) -> None:
    if isinstance(spec.source, OnnxSource):
        with pytest.raises(BuildFailure, match="runtime pytorch needs a transformers source"):
            source.export_torch(tmp_path, precision)
        return
    source.export_torch(tmp_path, precision)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    run = pytorch_session.open_session(str(tmp_path), ["logits"], precision, 1, None)
    assert_equal_outputs(opened, run, 1e-4 if precision == "fp32" else 0.2)


def test_an_output_that_the_model_lacks_is_refused(spec: ModelSpec, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no output 'scores'; it has logits"):
        source_of(replace(spec, outputs=("scores",))).open()
