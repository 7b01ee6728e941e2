"""A model of an existing repository that calls others, on the real server: searched with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import pipeline_models, tiny
from tests.e2e.running import Optimizer, run_to_end
from tests.e2e.test_pipeline import STEPS, TEXT

pytestmark = pytest.mark.timeout(300)

MODELS = (*STEPS, "text_bls")
AUTO_COMPLETE = """\
    @staticmethod
    def auto_complete_config(config):
        config.set_max_batch_size(8)
        config.add_input({"name": "SCORES", "data_type": "TYPE_FP32", "dims": [2]})
        config.add_output({"name": "NAME", "data_type": "TYPE_STRING", "dims": [1]})
        return config

    def execute("""
RAISES = """
        raise RuntimeError("no weights")
"""


def write_space(folder: Path, source: dict[str, Any]) -> Path:
    content = tiny.space(budget={"trials": 2})
    content["study"] = "calls"
    source = {"repository": "models", **source}
    model = {"source": source, "inputs": TEXT, "evaluation": {"samples": 6}}
    content["models"] = {source["model"]: model}
    content["parameters"] = {"text_bls.instance_count": [1, 2], "classifier.batching": [False]}
    if source["model"] != "text_bls":
        content["parameters"] = {"classifier.batching": [False]}
    return tiny.write_space(folder, content)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Optimizer]:
    """A folder with a study of two trials, whose server counted the calls."""
    folder = tmp_path_factory.mktemp("searched")
    labeller = pipeline_models.write_bls(folder / "models") / "labeller"
    (labeller / "config.pbtxt").write_text('backend: "python"  # the rest is in model.py\n')
    code = labeller / "1" / "model.py"
    code.write_text(code.read_text().replace("    def execute(", AUTO_COMPLETE, 1))
    path = write_space(folder, {"model": "text_bls", "calls": "auto"})
    optimizer = run_to_end(folder, "run", path, "--sampler", "grid")
    assert optimizer.process.returncode == 0, optimizer.output + optimizer.errors
    return folder, optimizer


def trials(folder: Path) -> list[dict[str, Any]]:
    files = sorted((folder / "results" / "calls" / "trials").glob("*.json"))
    return [json.loads(file.read_text()) for file in files]


@pytest.mark.slow
def test_the_called_models_are_served_with_their_caller(searched: tuple[Path, Optimizer]) -> None:
    steps = [
        {"model": name, "after": [n - 1] if n else [], "calls": 1.0} for n, name in enumerate(STEPS)
    ]
    graph = {"composed": [{"name": "text_bls", "kind": "bls", "steps": steps}]}
    configs = [trial["config"] for trial in trials(searched[0])]
    assert [config["graph"] for config in configs] == [graph, graph]
    assert [[model["name"] for model in config["models"]] for config in configs] == 2 * [[*MODELS]]
    assert {config["models"][-1]["groups"][0]["count"] for config in configs} == {1, 2}


@pytest.mark.slow
def test_the_time_in_the_steps_is_told_from_the_callers_own(
    searched: tuple[Path, Optimizer],
) -> None:
    for trial in trials(searched[0]):
        for level in trial["measurement"]["levels"]:
            served = {split["model"]: split for split in level["server"]}
            assert [*served] == [*MODELS]
            assert [stream["errors"] for stream in level["streams"]] == [0]
            assert [split["step"] for split in served.values()] == [True, True, True, False]
            top = served["text_bls"]
            assert 5 < top["waiting_ms"] <= top["compute_infer_ms"], "a step sleeps for 5 ms"
            assert all(served[name]["waiting_ms"] == 0 for name in STEPS)


@pytest.mark.slow
def test_the_exported_models_are_verified(searched: tuple[Path, Optimizer]) -> None:
    folder, _ = searched
    exported = run_to_end(folder, "export", "calls", "--to", folder / "bundle")
    assert exported.process.returncode == 0, exported.output + exported.errors
    assert {path.parent.name for path in (folder / "bundle").glob("*/config.pbtxt")} == {*MODELS}
    completed = (folder / "bundle" / "labeller" / "config.pbtxt").read_text()
    assert completed.startswith('backend: "python"  # the rest is in model.py\n')
    assert "SCORES" in completed
    verified = run_to_end(folder, "verify", folder / "bundle", "--allow-code")
    assert verified.process.returncode in (0, 1, 5), verified.output + verified.errors
    for name in ("files", "configuration", "outputs"):
        assert f"\n{name}: pass, " in f"\n{verified.output}", verified.output


@pytest.mark.slow
def test_a_model_that_calls_one_that_calls_others_is_measured_with_all(tmp_path: Path) -> None:
    pipeline_models.write_nested_bls(tmp_path / "models")
    calls = {"front_bls": ["text_bls"], "text_bls": [*STEPS]}
    path = write_space(tmp_path, {"model": "front_bls", "calls": calls})
    optimizer = run_to_end(tmp_path, "measure", path, "--rate", "20")
    assert optimizer.process.returncode == 0, optimizer.output + optimizer.errors
    [file] = (tmp_path / "results" / "calls" / "measured").glob("*/measured.json")
    measured = json.loads(file.read_text())
    composed = {own["name"]: own["steps"] for own in measured["config"]["graph"]["composed"]}
    assert [step["model"] for step in composed["front_bls"]] == ["text_bls"]
    assert [step["model"] for step in composed["text_bls"]] == [*STEPS]
    for level in measured["levels"]:
        assert [stream["errors"] for stream in level["streams"]] == [0]
        served = {split["model"]: split for split in level["server"]}
        assert [name for name, split in served.items() if not split["step"]] == ["front_bls"]
        front, inner = served["front_bls"], served["text_bls"]
        assert 5 < inner["waiting_ms"] <= inner["compute_infer_ms"], "a step sleeps for 5 ms"
        assert inner["waiting_ms"] < front["waiting_ms"] <= front["compute_infer_ms"]
        assert inner["requests"] == pytest.approx(front["requests"], abs=16)


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    [{"model": "text_bls", "calls": [*STEPS]}, {"model": "text_classifier"}],
    ids=lambda source: source["model"],
)
def test_a_step_that_answers_nothing_is_named(tmp_path: Path, source: dict[str, Any]) -> None:
    pipeline_models.write_bls(tmp_path / "models", RAISES)
    config = tmp_path / "models" / "classifier" / "config.pbtxt"
    config.write_text(config.read_text() + 'instance_group [ { name: "main" kind: KIND_CPU } ]\n')
    optimizer = run_to_end(tmp_path, "run", write_space(tmp_path, source))
    assert optimizer.process.returncode == 4, optimizer.output + optimizer.errors
    name = source["model"]
    message = f"model {name} as deployed: {name} did not answer: step classifier: RuntimeError: "
    assert f"error: {message}no weights" in optimizer.errors
