"""The build process: real builds of a tiny BERT in its child, and builds that fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from optimizer.artifacts import transformers_model
from optimizer.artifacts.accuracy import compare
from optimizer.artifacts.build_context import ReportProgress, no_progress
from optimizer.artifacts.build_messages import Job, answer
from optimizer.artifacts.build_process import BuildProcess
from optimizer.artifacts.build_results import ModelArtifact, PreparedModel
from optimizer.artifacts.cache import ArtifactCache
from optimizer.artifacts.graphs.tensorrt_rules import broken_rules
from optimizer.artifacts.precision_graphs import PrecisionGraphs
from optimizer.configuration.runtimes.spec import GraphKind
from optimizer.errors import BuildFailure, OptimizerError, UsageError
from optimizer.workload.model_spec import TransformersSource
from optimizer.workload.streams import OutputTensor, Tensors, TensorSpec, stack
from tests.unit import int8_graphs
from tests.unit.tiny_bert import LONGEST, MODEL, PAIRS, VOCABULARY, artifact

Run = Callable[[Tensors], NDArray[Any]]


@pytest.fixture(scope="module")
def cache_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def builds(cache_root: Path) -> Iterator[BuildProcess]:
    with BuildProcess(
        ArtifactCache(cache_root), cache_root.parent / "build.log", threads=2
    ) as builds:
        yield builds


@pytest.fixture(scope="module")
def prepared(builds: BuildProcess) -> PreparedModel:
    return builds.prepare_model(MODEL)


@pytest.fixture(scope="module")
def fp32_graph(builds: BuildProcess) -> Path:
    return builds.export_graph(MODEL).path / "model.onnx"


def load_onnxruntime(directory: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(directory / "model.onnx")
    return lambda request: session.run(["logits"], request)[0]


def run_onnxruntime(graph: Path, request: Tensors) -> NDArray[Any]:
    return load_onnxruntime(graph.parent)(request)


def run_openvino(graph: Path, request: Tensors) -> NDArray[Any]:
    import openvino

    # Otherwise it calculates in BF16 whatever it can.
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    served: NDArray[Any] = openvino.Core().compile_model(graph, "CPU", hint)(request)["logits"]
    return served


GRAPHS: dict[GraphKind, tuple[float, float]] = {
    # Kind: smallest cosine of a request, and share of equal argmax.
    "fp16": (0.9999, 0.98),
    "bf16": (0.998, 0.95),
    "int8_s8s8": (0.99, 0.95),
    "int8_u8s8": (0.99, 0.95),
    "int8_u8s7": (0.97, 0.9),
    "int8_trt": (0.99, 0.95),
    # 0.987 on a processor with AMX, above 0.99 on others.
    "int8_trt_attention": (0.98, 0.95),
}
GRAPH_RUNS = [
    (kind, run)
    for kind in GRAPHS
    for run in (run_onnxruntime, run_openvino)
    # ONNX Runtime's CPU provider has no BF16 kernels.
    if (kind, run) != ("bf16", run_onnxruntime)
    if kind not in int8_graphs.OVERFLOWING
]


@pytest.mark.slow
def test_it_tells_how_far_it_is_and_listeners_that_fail_cost_the_job(tmp_path: Path) -> None:
    told: list[str] = []

    def interrupted(text: str) -> None:
        told.append(text)
        raise KeyboardInterrupt

    with BuildProcess(ArtifactCache(tmp_path / "cache"), tmp_path / "log", threads=2) as builds:
        with pytest.raises(KeyboardInterrupt):
            builds.prepare_model(MODEL, interrupted)
        assert builds.prepare_model(MODEL).references[0].outputs["logits"].shape == (8, 3)
        assert told == ["its FP32 outputs"]


def test_prepared_model(prepared: PreparedModel, fp32_graph: Path) -> None:
    assert prepared.outputs == (OutputTensor("logits", "FP32", (3,)),)
    assert len(prepared.evaluation) == 8
    reference = prepared.references[0].outputs["logits"]
    assert reference.shape == (8, 3)
    assert prepared.evaluation[0]["input_ids"].shape == (1, LONGEST)
    run = load_onnxruntime(fp32_graph.parent)
    served = np.concatenate([run(row) for row in prepared.evaluation])
    assert compare(reference, served).max_abs_error < 1e-4


@pytest.mark.parametrize(("kind", "run"), GRAPH_RUNS)
def test_every_graph_agrees_with_fp32(
    fp32_graph: Path,
    cache_root: Path,
    kind: GraphKind,
    run: Callable[[Path, Tensors], NDArray[Any]],
) -> None:
    graphs = PrecisionGraphs(MODEL, ArtifactCache(cache_root))
    inputs = stack(MODEL.payloads.sample(64, np.random.default_rng(7)))
    reference = run_onnxruntime(fp32_graph, inputs)
    accuracy = compare(reference, run(graphs.entry(kind).path / "model.onnx", inputs))
    min_cosine, argmax_agreement = GRAPHS[kind]
    assert accuracy.min_cosine >= min_cosine, accuracy
    assert accuracy.argmax_agreement >= argmax_agreement, accuracy
    assert accuracy.min_cosine < 1 - 1e-7, "the same numbers are no lower precision"


@pytest.mark.parametrize(
    "kind", ["fp32", "fp16", "bf16", "int8_s8s8", "int8_trt", "int8_trt_attention"]
)
def test_graphs_made_for_tensorrt_meet_its_rules(
    fp32_graph: Path, cache_root: Path, kind: GraphKind
) -> None:
    graphs = PrecisionGraphs(MODEL, ArtifactCache(cache_root))
    assert broken_rules(graphs.entry(kind).path / "model.onnx") == []


def test_openvino_calculates_with_int8(builds: BuildProcess) -> None:
    import openvino

    made = builds.build(artifact("openvino", "int8"), MODEL)
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(made.path / "model.xml", "CPU", hint)
    precisions = [
        info["runtimePrecision"].astype(str)
        for info in (op.get_rt_info() for op in compiled.get_runtime_model().get_ops())
        if info["layerType"].astype(str) == "FullyConnected"
    ]
    # Six products of weights in each of two layers, pooler and classifier.
    assert precisions.count("u8") == 14, precisions
    assert made.int8_share is not None
    assert 0.8 < made.int8_share < 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch and its exporter, which run here for once
def test_gpt2_whose_weights_are_those_of_gemm_is_in_int8(tmp_path: Path) -> None:
    config = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": VOCABULARY}
    source = TransformersSource("GPT2Model", config=json.dumps(config))
    spec = replace(MODEL, source=source, outputs=("last_hidden_state",))
    graphs = PrecisionGraphs(spec, ArtifactCache(tmp_path))
    kinds: list[GraphKind] = ["int8_u8s8", "int8_u8s7", "int8_trt"]
    entries = {kind: graphs.entry(kind) for kind in kinds}
    for entry in entries.values():
        assert entry.facts["int8_share"] > 0.8
    # Four products with weights in each of two layers.
    path = entries["int8_u8s8"].path / "model.onnx"
    served = int8_graphs.copied(path, tmp_path / "served")
    executed = int8_graphs.operators_of_onnxruntime(served)
    assert executed["QGemm"] + executed["MatMulIntegerToFloat"] == 8, executed
    assert int8_graphs.products_of_openvino(served)["u8"] == 8
    assert broken_rules(entries["int8_trt"].path / "model.onnx") == []


def test_what_is_cached_is_found_without_torch(
    builds: BuildProcess, cache_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = [builds.build(artifact(*pair), MODEL) for pair in PAIRS]
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    log = tmp_path / "log"
    with BuildProcess(ArtifactCache(cache_root), log, threads=1) as fresh:
        assert not fresh.prepare_model(MODEL).built
        again = [fresh.build(artifact(*pair), MODEL) for pair in PAIRS]
    assert all(made.cached for made in again)
    assert again == [replace(made, cached=True) for made in first]
    imported = {line.rsplit("|", 1)[-1].strip() for line in log.read_text().splitlines()}
    assert "numpy" in imported
    assert not imported & {"torch", "transformers", "onnx", "onnxruntime", "openvino"}


def test_artifacts_say_what_they_are(builds: BuildProcess) -> None:
    from importlib.metadata import version

    made = builds.build(artifact("openvino", "bf16"), MODEL)
    assert isinstance(made, ModelArtifact)
    assert made.spec == artifact("openvino", "bf16")
    assert made.builder == f"openvino {version('openvino')}"
    assert made.path == builds.build(artifact("openvino", "fp32"), MODEL).path
    assert len(made.sha256) == 64
    assert made.build_seconds > 0


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"outputs": ("scores",)}, UsageError, "no output 'scores'; it has logits"),
        (
            {"source": TransformersSource("NoSuchModel")},
            UsageError,
            "transformers has no class 'NoSuchModel'",
        ),
        (
            {"source": TransformersSource("BertModel", config='{"dimm": 64}')},
            UsageError,
            "models.tiny.source.config.dimm: BertConfig has no such key",
        ),
        (
            {"source": TransformersSource("BertModel", config='{"hidden_sise": 64}')},
            UsageError,
            "hidden_sise: BertConfig has no such key; did you mean hidden_size",
        ),
        (
            {"source": TransformersSource("AutoModel")},
            UsageError,
            "AutoModel chooses its architecture from a checkpoint",
        ),
        (
            {
                "payloads": replace(
                    MODEL.payloads, tensors=(TensorSpec("x", "INT64", (None,), 1, 99),)
                )
            },
            BuildFailure,
            "^tiny: ValueError: You must specify exactly one of input_ids",
        ),
    ],
)
def test_models_that_cannot_be_exported(
    builds: BuildProcess,
    changes: dict[str, Any],
    kind: type[Exception],
    message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(kind, match=message):
        builds.prepare_model(replace(MODEL, **changes))
    assert capfd.readouterr() == ("", "")


def test_a_hub_checkpoint_that_is_out_of_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = TransformersSource("BertModel", checkpoint="nobody/no-such-model")
    with (
        BuildProcess(ArtifactCache(tmp_path / "cache"), tmp_path / "log", threads=1) as builds,
        pytest.raises(BuildFailure, match=r"checkpoint 'nobody/no-such-model' .* from the hub"),
    ):
        builds.prepare_model(replace(MODEL, source=source))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch and its exporter, which run here for once
def test_weights_too_large_for_one_file_lie_beside_it(
    prepared: PreparedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: list[GraphKind] = ["fp32", "fp16", "bf16", "int8_s8s8", "int8_u8s7", "int8_trt"]
    kinds += ["int8_weights", "int8_dynamic_s7"]
    monkeypatch.setattr(transformers_model, "INLINE_LIMIT_BYTES", 1000)
    graphs = PrecisionGraphs(MODEL, ArtifactCache(tmp_path))
    for kind in kinds:
        directory = graphs.entry(kind).path
        assert {path.name for path in directory.iterdir()} == {"model.onnx", "model.onnx.data"}
        assert (
            kind.startswith(("int8_u8", "int8_dyn", "int8_w"))
            or broken_rules(directory / "model.onnx") == []
        )
        run = run_onnxruntime if kind == "int8_dynamic_s7" else run_openvino
        served = run(directory / "model.onnx", prepared.evaluation[0])
        if kind in int8_graphs.OVERFLOWING:
            continue
        assert compare(prepared.references[0].outputs["logits"][:1], served).min_cosine > 0.98


def test_a_reply_names_the_innermost_cause(tmp_path: Path) -> None:
    def reply(cause: Exception) -> OptimizerError | None:
        def fail(cache: ArtifactCache, report_progress: ReportProgress) -> None:
            raise RuntimeError("failed at step 2 of 3\nNext steps: ...") from cause

        return answer(Job("ONNX export of tiny", fail), ArtifactCache(tmp_path), no_progress).error

    error = reply(ValueError("cannot view a tensor\nlong traceback"))
    assert isinstance(error, BuildFailure)
    assert str(error) == "ONNX export of tiny: ValueError: cannot view a tensor"
    # What a person did wrong stays that, though a library has wrapped it.
    mistake = UsageError("the model has no output 'scores'")
    assert reply(mistake) is mistake


def building_pid(cache: Path) -> int:
    """Process that is building something in `cache`, awaited."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for path in cache.glob(".building-*"):
            return int(path.name.rsplit("-", 2)[1])
        time.sleep(0.01)
    raise AssertionError("nothing was built")


def test_a_killed_build_is_a_build_failure_and_the_next_one_works(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    killer = threading.Thread(target=lambda: os.kill(building_pid(cache), signal.SIGKILL))
    with BuildProcess(ArtifactCache(cache), tmp_path / "log", threads=1) as builds:
        killer.start()
        with pytest.raises(BuildFailure, match=r"tiny: the build was killed by SIGKILL; see .*log"):
            builds.prepare_model(MODEL)
        killer.join()
        assert [path.name[:10] for path in cache.iterdir()] == [".building-"]
        with pytest.raises(UsageError, match="no class"):
            builds.prepare_model(replace(MODEL, source=TransformersSource("NoSuchModel")))
        assert list(cache.iterdir()) == []


def test_a_build_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with (
        BuildProcess(
            ArtifactCache(tmp_path / "cache"), tmp_path / "log", threads=1, timeout_s=0.05
        ) as builds,
        pytest.raises(BuildFailure, match=r"tiny: not built after 0\.05 s"),
    ):
        builds.prepare_model(MODEL)


def test_closing_twice_is_fine_and_does_not_start_anything(tmp_path: Path) -> None:
    builds = BuildProcess(ArtifactCache(tmp_path / "cache"), tmp_path / "log", threads=1)
    builds.close()
    builds.close()
    assert list(tmp_path.iterdir()) == []


def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from optimizer.artifacts.build_process import BuildProcess
from optimizer.artifacts.cache import ArtifactCache
from tests.unit.tiny_bert import MODEL
folder = Path({str(tmp_path)!r})
BuildProcess(ArtifactCache(folder / "cache"), folder / "log", 1).prepare_model(MODEL)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", script], env=environment) as parent:
        child = building_pid(tmp_path / "cache")
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while running(child):
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.05)


def running(pid: int) -> bool:
    """Whether the process lives; an orphan that nobody has reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
