"""NVIDIA's own parser and builder on every graph that is made for TensorRT, by our builder's code.

They are TensorRT for RTX, which needs no GPU. Nothing here shows that an engine runs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from ml_dtypes import bfloat16

from optimizer.artifacts.engines import build_script
from optimizer.artifacts.graphs.tensorrt_rules import broken_rules
from optimizer.configuration.runtimes.spec import Precision
from optimizer.errors import BuildFailure
from tests.e2e import tensorrt_rtx
from tests.e2e.engine_bench import ENGINES, GPUS, EngineBench, Gpus, engine_bench
from tests.sampling import sampled
from tests.unit.engines import recipe
from tests.unit.test_tensorrt_rules import (
    BROKEN,
    Edit,
    convolution,
    good,
    put,
    size_the_batch,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    # TensorRT for RTX has timing caches without content, and says so.
    pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning"),
]


@dataclass(frozen=True)
class Expected:
    """What the builder makes of a model's graphs.

    Attributes:
        attentions: that are fused in FP16, BF16 and INT8; in FP32 none is.
        products: products with constant weights, all of which are in INT8.
        on_t4: how many of them on a T4, where TensorRT for RTX has no INT8 convolutions.
        refused: part of the message, by precision.
    """

    attentions: int = 0
    products: int = 0
    on_t4: int | None = None
    refused: Mapping[Precision, str] = field(default_factory=dict)


_NO_BRANCH: Mapping[Precision, str] = dict.fromkeys(
    ("fp32", "fp16", "bf16"), "tScope.getType() != ScopeType::kUNDEFINED"
)

EXPECTED: Mapping[str, Expected] = {
    "BERT": Expected(4, 26),
    "BERT-large, 2 of 24 layers": Expected(2, 14),
    "DistilBERT": Expected(2, 14),
    "RoBERTa": Expected(1, 8),
    "DistilGPT-2": Expected(2, 9),
    "ViT": Expected(1, 8, on_t4=7),
    "ResNet": Expected(0, 7, on_t4=1),
    "file type": Expected(0, 3, on_t4=2),
    "detector": Expected(0, 64, on_t4=0),
    "text direction": Expected(0, 54, on_t4=1),
    "text recognition": Expected(2, 47, on_t4=9),
    # Its branches; and its products are in them, where none is quantised.
    "voice activity": Expected(refused={**_NO_BRANCH, "int8": "the graph must have a Conv, Gemm"}),
    "voice activity without a rate": Expected(0, 6, on_t4=0),
    "MiniLM, trained weights": Expected(6, 36),
}


SAMPLE = [
    *(engine for engine in ENGINES if engine[0] == "BERT"),
    *sampled([engine for engine in ENGINES if engine[0] != "BERT"], every=6),
]
"""Engines of BERT in every precision, and one in six of the others'; with CASES=all every one."""


@pytest.fixture(scope="module")
def bench(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineBench]:
    folder = tmp_path_factory.mktemp("engines")
    with engine_bench(folder, artifacts / "models") as bench:
        yield bench


@pytest.mark.parametrize(
    ("name", "precision", "gpus"),
    SAMPLE,
    ids=[f"{name}-{precision}-{gpus[0]}" for name, precision, gpus in SAMPLE],
)
def test_an_engine_is_built_or_refused(
    bench: EngineBench, name: str, precision: Precision, gpus: Gpus
) -> None:
    expected = EXPECTED[name]
    if precision in expected.refused:
        with pytest.raises(BuildFailure) as refused:
            bench.build(name, precision, gpus)
        assert expected.refused[precision] in str(refused.value)
        return
    engine = bench.build(name, precision, gpus)
    assert not engine.may_overflow
    assert engine.attentions == (0 if precision == "fp32" else expected.attentions)
    assert engine.int8_attentions == 0
    if precision == "int8":
        on_t4 = gpus == ("T4",) and expected.on_t4 is not None
        in_int8 = expected.on_t4 if on_t4 else expected.products
        assert (engine.int8_products, engine.products) == (in_int8, expected.products)


def test_an_attention_in_int8_is_fused_too(bench: EngineBench) -> None:
    engine = bench.build("BERT", "int8_attention", tuple(GPUS))
    assert engine.int8_attentions == engine.attentions == EXPECTED["BERT"].attentions


class Script:
    """The build script, in this process, on a graph."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folders = [folder / name for name in ("graph", "plans", "timings")]
        for each in self.folders:
            each.mkdir()
        self.timings = self.folders[2] / recipe().timing_cache
        self._log = folder / tensorrt_rtx.LOG_FILE
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(build_script, "visible_gpu", lambda: None)

    def build(self, model: onnx.ModelProto, least: int = 1, gpu: str = "A10G") -> int:
        """Build an engine for batches from `least` to 4, and return the exit code."""
        package = tensorrt_rtx.as_tensorrt([GPUS[gpu]], self._log)
        self._monkeypatch.setitem(sys.modules, "tensorrt", package)
        onnx.save(model, self.folders[0] / "model.onnx")
        shapes = {
            "name": "x",
            **{bound: (n, 4, 8) for bound, n in (("least", least), ("optimal", 2), ("most", 4))},
        }
        text = json.dumps({**json.loads(recipe().to_json()), "inputs": [shapes]})
        return build_script.main([text, *map(str, self.folders)])


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    return Script(tmp_path, monkeypatch)


def messages(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_build_reports_progress_and_writes_plan_and_timings(
    script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.build(good()) == 0
    progress = messages(capsys)
    assert progress.pop()["facts"]["compute_capability"] == list(GPUS["A10G"])
    assert progress.pop(0) == {"progress": f"TensorRT {tensorrt_rtx.VERSION} reads the graph"}
    assert all("/" in message["progress"] for message in progress)
    assert progress
    assert (script.folders[1] / "model.plan").stat().st_size > 0
    assert script.timings.stat().st_size > 0


def test_timings_that_do_not_fit_hide_no_cause(
    script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    """It logs an error for them, and this graph has four rows where the profile has one."""
    script.timings.write_bytes(b"timings of 9.0")
    model = good()
    size_the_batch(4)(model)
    assert script.build(model) == 1
    reason = messages(capsys)[-1]["failure"]
    cause = "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (Dimension mismatch"
    assert reason.startswith(f"TensorRT found no engine for this graph; {cause}")


def test_a_node_that_is_not_parsed_is_named_once(
    script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    model = good()
    put("s_h", 0)(model)
    assert script.build(model) == 1
    rule = "Scale coefficients must all be positive"
    reason = messages(capsys)[-1]["failure"]
    assert reason.startswith("node 'q_h' (QuantizeLinear): ")
    assert reason.count(rule) == 1


def test_a_profile_that_is_not_valid_is_refused_with_its_rule(
    script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.build(good(), least=3) == 1
    reason = messages(capsys)[-1]["failure"]
    assert reason.startswith("the optimisation profile is not valid: [{'name': 'x', 'least': [3,")
    assert "MIN<=OPT<=MAX" in reason


@pytest.mark.parametrize(
    ("model", "reason"),
    [(good(), "FP32 GEMM is not supported"), (good(bfloat16), "HW-specific datatypes: b16")],
    ids=["fp32", "bf16"],
)
def test_what_cannot_be_built_for_a_t4(
    script: Script, model: onnx.ModelProto, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """FP32 is a limit of TensorRT for RTX alone."""
    assert script.build(model, gpu="T4") == 1
    assert reason in messages(capsys)[-1]["failure"]


_HEADER = '<ir_version: 9, opset_import: ["": 20]> '
NONZERO = "graph (float[batch, 4, 8] x) => (int64[3, n] y) { y = NonZero(x) }"
NMS = """graph (float[batch, 4, 8] x) => (int64[n, 3] y) {
    sizes = Constant<value_ints = [4, 4]>()
    boxes, turned = Split<axis = 2>(x, sizes)
    scores = Transpose<perm = [0, 2, 1]>(turned)
    most = Constant<value_int = 2>()
    y = NonMaxSuppression(boxes, scores, most)
}"""


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (NONZERO, "NonZero plugin creator version 1 was not found"),
        (NMS, "has no runners that implement it"),
    ],
    ids=["NonZero", "NMS"],
)
def test_what_tensorrt_for_rtx_alone_cannot_build(
    script: Script, graph: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.build(onnx.parser.parse_model(_HEADER + graph)) == 1
    assert reason in messages(capsys)[-1]["failure"]
    assert broken_rules(script.folders[0] / "model.onnx") == []


STRICTER: Mapping[str, str] = {
    "UINT8": "it reads UINT8 as INT8, with a warning",
    "UINT8 unsaid": "it takes no zero-point for INT8, ONNX and other runtimes for UINT8",
    "infinity": "it builds an engine that returns infinities",
    "computed": "it folds what is computed from constants",
    "half an MLP block": "it has given NaN on GPUs",
    "half an attention": "it is slower than all or none",
}
"""Graphs that we refuse and NVIDIA's builder builds, each with the reason."""


@pytest.mark.parametrize(
    ("case", "edit"), [each[:2] for each in BROKEN], ids=[each[0] for each in BROKEN]
)
def test_what_is_refused_before_a_build_fails_in_it(script: Script, case: str, edit: Edit) -> None:
    model = good()
    edit(model)
    assert script.build(model) == (0 if case in STRICTER else 1)


def of_any_batch() -> onnx.ModelProto:
    """A graph whose batch axis is written as -1."""
    model = good()
    size_the_batch(-1)(model)
    return model


@pytest.mark.parametrize(
    ("model", "code"),
    [
        (good(np.float16, opset=13), 0),
        (of_any_batch(), 0),
        (convolution("Conv", bfloat16, opset=20), 0),
        (convolution("ConvTranspose", bfloat16, opset=20), 1),
        (convolution("ConvTranspose", bfloat16, opset=22), 1),
    ],
    ids=["fp16 scales of opset 13", "batch of -1", "Conv", "ConvTranspose", "of opset 22"],
)
def test_a_build_fails_where_the_rules_say_so(
    script: Script, model: onnx.ModelProto, code: int
) -> None:
    assert script.build(model) == code
    assert bool(broken_rules(script.folders[0] / "model.onnx")) == bool(code)
