"""Pipelines that are generated, on the real server: texts in, labels out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.files.tensors import from_npz
from tests.e2e import tiny
from tests.e2e.running import Optimizer, run_to_end
from tests.sampling import sampled
from tests.tokenizer_files import write_tokenizer

pytestmark = pytest.mark.timeout(300)

LABELS = ["negative", "neutral", "positive"]
STEPS = ("tokenizer", "bert", "labeller")


def space(kind: str, **sections: Any) -> dict[str, Any]:
    """A space of four configurations of a tiny BERT behind a tokeniser."""
    bert = tiny.SPACE["models"]["bert"]
    steps = {
        "tokenizer": {"tokenizer": "tokenizer.json", "max_length": 16},
        "bert": {"source": bert["source"], "accuracy": bert["accuracy"]},
        "labeller": {"labels": LABELS, "top_k": 2},
    }
    text = {"data_type": "BYTES", "shape": [1], "words": [4, 12]}
    content = tiny.space(budget={"trials": 2}, **sections)
    content["study"] = "texts"
    content["models"] = {
        "classifier": {
            "pipeline": {"kind": kind, "steps": steps},
            "inputs": {"TEXT": text},
            "evaluation": {"samples": 8},
        }
    }
    top = {"classifier.instance_count": [2]} if kind == "bls" else {}
    content["parameters"] = {
        "runtime": ["onnxruntime"],
        "precision": ["fp32"],
        "bert.batching": [True],
        "tokenizer.instance_count": [1, 2],
        **top,
    }
    return content


@pytest.fixture(scope="module", params=sampled(["ensemble", "bls"], every=2))
def searched(
    request: pytest.FixtureRequest, artifacts: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Optimizer]:
    """A kind of pipeline, a folder with a study of two trials, and the command that made it."""
    folder = tmp_path_factory.mktemp(request.param)
    write_tokenizer(folder / "tokenizer.json")
    path = tiny.write_space(folder, space(request.param))
    optimizer = run_to_end(folder, "run", path, "--sampler", "grid", "--cache", artifacts / "texts")
    assert optimizer.process.returncode == 0, optimizer.output + optimizer.errors
    return request.param, folder, optimizer


@pytest.mark.slow
def test_each_step_and_the_whole_answer_as_their_references(
    searched: tuple[str, Path, Optimizer],
) -> None:
    _, folder, _ = searched
    rows = json.loads((folder / "results" / "texts" / "prepared.json").read_text())["artifacts"]
    assert [row["dropped"] for row in rows] == 4 * [None]
    accuracies = {row["artifact"].split("/")[0]: row["accuracy"] for row in rows}
    assert [*accuracies] == ["bert", "labeller", "tokenizer", "classifier"]
    assert [accuracies[name]["max_abs_error"] for name in ("tokenizer",)] == [0.0]
    assert accuracies["classifier"]["argmax_agreement"] == 1.0
    assert accuracies["classifier"]["max_abs_error"] < 1e-3


@pytest.mark.slow
def test_the_steps_have_parameters_of_their_own(searched: tuple[str, Path, Optimizer]) -> None:
    kind, folder, _ = searched
    files = sorted((folder / "results" / "texts" / "trials").glob("*.json"))
    trials = [json.loads(file.read_text()) for file in files]
    assert {t["config"]["models"][0]["groups"][0]["count"] for t in trials} == {1, 2}
    for trial in trials:
        [composed] = trial["config"]["graph"]["composed"]
        assert (composed["kind"], [step["model"] for step in composed["steps"]]) == (kind, [*STEPS])
        for level in trial["measurement"]["levels"]:
            served = {split["model"]: split["requests"] for split in level["server"]}
            assert [*served] == [*STEPS, "classifier"]
            assert min(served.values()) > 0
            assert [stream["errors"] for stream in level["streams"]] == [0]


@pytest.mark.slow
def test_the_exported_repository_is_verified(
    searched: tuple[str, Path, Optimizer], artifacts: Path
) -> None:
    _, folder, _ = searched
    options = ("--to", folder / "bundle", "--cache", artifacts / "texts")
    exported = run_to_end(folder, "export", "texts", *options)
    assert exported.process.returncode == 0, exported.output + exported.errors
    bundle = folder / "bundle"
    assert {p.parent.name for p in bundle.glob("*/config.pbtxt")} == {*STEPS, "classifier"}
    needed = {line.split("==")[0] for line in (bundle / "requirements.txt").read_text().split()}
    assert needed == {"numpy", "onnxruntime", "tokenizers"}
    for code in bundle.rglob("*.py"):
        assert "import optimizer" not in code.read_text()
    answers = from_npz((bundle / "classifier" / "examples.npz").read_bytes())
    labels, scores = (
        next(v for k, v in answers.items() if name in k) for name in ("label", "score")
    )
    assert {text.decode() for text in labels.ravel()} <= {*LABELS}
    assert np.all(scores[..., 0] >= scores[..., 1])
    verified = run_to_end(folder, "verify", bundle)
    assert verified.process.returncode in (0, 1, 5), verified.output + verified.errors
    for name in ("files", "configuration", "outputs"):
        assert f"\n{name}: pass, " in f"\n{verified.output}", verified.output
