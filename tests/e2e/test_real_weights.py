"""Trained weights in every precision: how far their outputs are from FP32, on real sentences.

The figures are printed: pytest -s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from optimizer.artifacts.accuracy import Accuracy, compare
from optimizer.artifacts.build_jobs import export_graph
from optimizer.artifacts.build_process import BuildProcess
from optimizer.artifacts.build_results import PreparedModel
from optimizer.artifacts.cache import ArtifactCache
from optimizer.artifacts.graphs.tensorrt_rules import broken_rules
from optimizer.artifacts.precision_graphs import PrecisionGraphs
from optimizer.commands.run_context import open_space
from optimizer.configuration.hardware import processor_lacks
from optimizer.configuration.runtimes import Runtime
from optimizer.configuration.runtimes.spec import GraphKind, Precision
from optimizer.configuration.serving_config import ArtifactSpec
from optimizer.machine.fingerprint import cpu_flags
from optimizer.study.directory import StudyDirectory
from optimizer.workload.model_spec import ModelSpec
from optimizer.workload.streams import Tensors, stack
from tests.e2e import minilm, tiny
from tests.e2e.running import Optimizer
from tests.unit.int8_graphs import OVERFLOWING

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

Run = Callable[[Path, Tensors], NDArray[Any]]


@dataclass(frozen=True)
class Searched:
    """A search of one trial, for which every artefact was built, served and gated."""

    model: ModelSpec
    cache: Path
    output: str
    summary: dict[str, Any]
    gated: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def searched(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    folder, cache = tmp_path_factory.mktemp("real weights"), artifacts / "models"
    minilm.write_inputs(folder)
    space = tiny.write_space(folder, minilm.space())
    arguments = ["run", space, "--cache", cache, "--sampler", "random"]
    optimizer = Optimizer(arguments, folder)
    try:
        assert optimizer.wait(300) == 0, optimizer.errors + optimizer.output
    finally:
        optimizer.end()
    study = StudyDirectory(folder / "results" / "minilm")
    return Searched(
        open_space(space).models[0],
        cache,
        optimizer.output,
        dict(study.read_json(study.summary)),
        {row["artifact"]: row for row in study.read_json(study.prepared)["artifacts"]},
    )


@pytest.fixture(scope="module")
def prepared(searched: Searched, tmp_path_factory: pytest.TempPathFactory) -> PreparedModel:
    log = tmp_path_factory.mktemp("prepared") / "build.log"
    with BuildProcess(ArtifactCache(searched.cache), log, threads=2) as builds:
        return builds.prepare_model(searched.model)


@pytest.fixture(scope="module")
def reference(prepared: PreparedModel) -> NDArray[Any]:
    return prepared.references[0].outputs[minilm.OUTPUT]


@pytest.fixture(scope="module")
def own_tokens(prepared: PreparedModel) -> NDArray[np.bool_]:
    """Which positions belong to a sentence and not to padding."""
    return prepared.references[0].judged[minilm.OUTPUT]


def run_onnxruntime(graph: Path, request: Tensors) -> NDArray[Any]:
    import onnxruntime

    served: NDArray[Any] = onnxruntime.InferenceSession(graph).run(None, request)[0]
    return served


def run_openvino(graph: Path, request: Tensors, hint: str = "f32") -> NDArray[Any]:
    import openvino

    options = {"INFERENCE_PRECISION_HINT": hint}
    served: NDArray[Any] = openvino.Core().compile_model(graph, "CPU", options)(request)[0]
    return served


def run_openvino_bf16(graph: Path, request: Tensors) -> NDArray[Any]:
    return run_openvino(graph, request, "bf16")


def said(what: str, accuracy: Accuracy, pooled: NDArray[Any]) -> None:
    print(
        f"{what}: cosine {accuracy.mean_cosine:.5f} (worst {accuracy.min_cosine:.5f}), "
        f"argmax {accuracy.argmax_agreement:.4f}, "
        f"sentence embeddings {pooled.mean():.5f} (worst {pooled.min():.5f})"
    )


def sentence_cosines(
    reference: NDArray[Any], served: NDArray[Any], own: NDArray[np.bool_]
) -> NDArray[Any]:
    """Cosine of each sentence's embedding, which is the mean over its own tokens."""
    a, b = ((each * own[..., None]).sum(axis=1) for each in (reference, served))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines: NDArray[Any] = (a * b).sum(axis=1) / lengths
    return cosines


HAS_BF16 = processor_lacks("openvino", "bf16", cpu_flags()) is None

SERVED: list[tuple[str, float]] = [
    ("onnxruntime/fp32", 0.99999),
    ("onnxruntime/int8", 0.98),
    ("openvino/fp32", 0.99999),
    *([("openvino/bf16", 0.999)] if HAS_BF16 else []),
    ("openvino/int8", 0.98),
]


@pytest.mark.parametrize(("artifact", "least"), SERVED)
def test_the_gate_reports_how_close_served_outputs_are(
    searched: Searched, artifact: str, least: float
) -> None:
    gated = searched.gated[f"minilm/{artifact}"]
    assert gated["dropped"] is None
    assert gated["accuracy"]["samples"] == len(minilm.EVALUATION) >= 64
    cosine = gated["accuracy"]["mean_cosine"]
    print(f"{artifact}: {gated['accuracy']}")
    assert cosine >= least
    assert f"cosine {cosine:.4f}" in searched.output
    if not artifact.endswith("fp32"):
        assert cosine < 0.99999, "the same numbers are no lower precision"


def test_judged_on_given_sentences_is_no_synthetic_evidence(searched: Searched) -> None:
    assert searched.summary["accuracy_evidence"] == "dataset"
    assert "generated inputs" not in searched.output


def test_the_reference_is_what_transformers_calculates_and_padding_is_not_judged(
    prepared: PreparedModel,
    searched: Searched,
    reference: NDArray[Any],
    own_tokens: NDArray[np.bool_],
) -> None:
    assert own_tokens.shape == (len(minilm.EVALUATION), minilm.LENGTH)
    own = [int(row["attention_mask"].sum()) for row in prepared.evaluation]
    assert own_tokens.sum(axis=1).tolist() == own
    graph = export_graph(searched.model, ArtifactCache(searched.cache)).path / "model.onnx"
    served = run_onnxruntime(graph, stack(prepared.evaluation))
    assert compare(reference, served, own_tokens).max_abs_error < 1e-4


@pytest.mark.skipif(HAS_BF16, reason="this processor computes in BF16")
def test_bf16_is_left_out_with_its_reason_where_openvino_would_compute_in_fp32(
    searched: Searched,
) -> None:
    assert "OpenVINO would compute in FP32" in searched.gated["minilm/openvino/bf16"]["dropped"]


FILES: list[tuple[Runtime, Precision, Run]] = [
    ("onnxruntime", "fp32", run_onnxruntime),
    ("onnxruntime", "int8", run_onnxruntime),
    ("openvino", "fp32", run_openvino),
    *([("openvino", "bf16", run_openvino_bf16)] if HAS_BF16 else []),  # type: ignore[list-item]
    ("openvino", "int8", run_openvino),
]


@pytest.mark.parametrize(("runtime", "precision", "run"), FILES)
def test_triton_serves_what_the_runtime_calculates(
    searched: Searched,
    prepared: PreparedModel,
    reference: NDArray[Any],
    own_tokens: NDArray[np.bool_],
    runtime: Runtime,
    precision: Precision,
    run: Run,
    tmp_path: Path,
) -> None:
    spec = ArtifactSpec("minilm", runtime, "python", precision)
    with BuildProcess(ArtifactCache(searched.cache), tmp_path / "build.log", threads=2) as builds:
        artifact = builds.build(spec, searched.model)
    assert artifact.cached
    file = artifact.path / ("model.xml" if runtime == "openvino" else "model.onnx")
    served = run(file, stack(prepared.evaluation))
    accuracy = compare(reference, served, own_tokens)
    gated = searched.gated[spec.label]["accuracy"]
    # Kernels differ between batch sizes; INT8 rounds their differences to whole steps.
    assert accuracy.mean_cosine == pytest.approx(gated["mean_cosine"], abs=0.005)


GRAPHS: list[tuple[GraphKind, Run, float, float]] = [
    # Kind, runtime, smallest mean cosine of the tokens, and of the sentences.
    ("fp16", run_onnxruntime, 0.9999, 0.9999),
    ("fp16", run_openvino, 0.9999, 0.9999),
    # ONNX Runtime's CPU provider has no BF16 kernels.
    ("bf16", run_openvino, 0.999, 0.999),
    ("int8_s8s8", run_onnxruntime, 0.993, 0.993),
    ("int8_s8s8", run_openvino, 0.993, 0.993),
    ("int8_u8s8", run_onnxruntime, 0.995, 0.995),
    ("int8_u8s8", run_openvino, 0.995, 0.995),
    ("int8_u8s7", run_onnxruntime, 0.993, 0.993),
    ("int8_u8s7", run_openvino, 0.993, 0.993),
    ("int8_trt", run_onnxruntime, 0.993, 0.993),
    ("int8_trt", run_openvino, 0.993, 0.993),
    ("int8_weights", run_openvino, 0.999, 0.999),
    ("int8_dynamic", run_onnxruntime, 0.985, 0.985),
    ("int8_dynamic_s7", run_onnxruntime, 0.98, 0.98),
]


@pytest.mark.parametrize(("kind", "run", "tokens", "sentences"), GRAPHS)
def test_every_graph_agrees_with_fp32(
    searched: Searched,
    prepared: PreparedModel,
    reference: NDArray[Any],
    own_tokens: NDArray[np.bool_],
    kind: GraphKind,
    run: Run,
    tokens: float,
    sentences: float,
) -> None:
    if kind in OVERFLOWING:
        pytest.skip("sums of products of 8 bits overflow on this processor")
    if kind == "bf16" and not HAS_BF16:
        pytest.skip("OpenVINO does not compute in BF16 on this processor")
    graph = PrecisionGraphs(searched.model, ArtifactCache(searched.cache)).entry(kind).path
    if not kind.startswith(("int8_u8", "int8_dyn", "int8_w")):
        assert broken_rules(graph / "model.onnx") == []
    served = run(graph / "model.onnx", stack(prepared.evaluation))
    accuracy = compare(reference, served, own_tokens)
    pooled = sentence_cosines(reference, served, own_tokens)
    said(f"{kind} {run.__name__}", accuracy, pooled)
    assert accuracy.mean_cosine >= tokens
    assert pooled.mean() >= sentences
