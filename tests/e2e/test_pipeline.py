"""An ensemble of an existing repository on the real server: searched as one pipeline."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from optimizer.export.bundle.manifest import PATCH
from tests.e2e import pipeline_models, tiny
from tests.e2e.running import Optimizer, run_to_end

pytestmark = pytest.mark.timeout(300)

STEPS = ("tokenizer", "classifier", "labeller")
TEXT = {"TEXT": {"data_type": "BYTES", "shape": [1], "values": ["a", "zzzz", "mmmm", ""]}}


def write_space(folder: Path, parameters: Mapping[str, Any], **keys: Any) -> Path:
    content = tiny.space(**keys)
    content["study"] = "pipeline"
    source = {"repository": "models", "model": "text_classifier"}
    content["models"] = {
        "text_classifier": {"source": source, "inputs": TEXT, "evaluation": {"samples": 6}}
    }
    content["parameters"] = dict(parameters)
    return tiny.write_space(folder, content)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Optimizer]:
    """A folder with a study of four trials, and the command that made it."""
    folder = tmp_path_factory.mktemp("searched")
    pipeline_models.write_pipeline(folder / "models")
    path = write_space(
        folder,
        {"classifier.batching": [False, True], "tokenizer.instance_count": [1, 2]},
        budget={"trials": 4},
    )
    optimizer = run_to_end(folder, "run", path)
    assert optimizer.process.returncode == 0, optimizer.output + optimizer.errors
    return folder, optimizer


def trials(folder: Path) -> list[dict[str, Any]]:
    files = sorted((folder / "results" / "pipeline" / "trials").glob("*.json"))
    return [json.loads(file.read_text()) for file in files]


@pytest.mark.slow
def test_each_step_has_its_own_parameters(searched: tuple[Path, Optimizer]) -> None:
    configs = [
        {model["name"]: model for model in trial["config"]["models"]}
        for trial in trials(searched[0])
    ]
    assert [list(own) for own in configs] == 4 * [[*STEPS, "text_classifier"]]
    tried = {
        (own["classifier"]["batching"] is not None, own["tokenizer"]["groups"][0]["count"])
        for own in configs
    }
    assert tried == {(False, 1), (False, 2), (True, 1), (True, 2)}
    assert all(own["labeller"]["groups"][0]["count"] == 1 for own in configs)


@pytest.mark.slow
def test_every_step_and_the_ensemble_have_statistics(searched: tuple[Path, Optimizer]) -> None:
    for trial in trials(searched[0]):
        for level in trial["measurement"]["levels"]:
            served = {split["model"]: split for split in level["server"]}
            assert list(served) == [*STEPS, "text_classifier"]
            assert [stream["errors"] for stream in level["streams"]] == [0]
            assert all(split["requests"] > 0 for split in served.values())
            compute = {name: split["compute_infer_ms"] for name, split in served.items()}
            assert compute["classifier"] > 5, "it sleeps for 5 ms"
            assert compute["text_classifier"] > compute["classifier"]


@pytest.mark.slow
def test_batches_of_the_slow_step_are_recommended(searched: tuple[Path, Optimizer]) -> None:
    output = searched[1].output
    assert "sampler tpe" not in output
    assert "classifier: as deployed, max_batch_size 8" in output


@pytest.mark.slow
def test_the_study_is_resumed_and_reported(searched: tuple[Path, Optimizer]) -> None:
    folder, _ = searched
    resumed = run_to_end(folder, "run", folder / "space.yaml", "--trials", 4)
    assert resumed.process.returncode == 0, resumed.output + resumed.errors
    report = run_to_end(folder, "report", "pipeline")
    assert report.process.returncode == 0, report.output + report.errors


@pytest.mark.slow
def test_a_configuration_of_the_pipeline_is_simulated(searched: tuple[Path, Optimizer]) -> None:
    folder, _ = searched
    simulated = run_to_end(folder, "simulate", "pipeline", "--set", "classifier.batching=true")
    assert simulated.process.returncode == 0, simulated.output + simulated.errors
    assert "Predicted models at" in simulated.output
    for step in STEPS:
        assert f"\n{step} " in simulated.output
    assert "saturation is reached first by classifier" in simulated.output


@pytest.mark.slow
def test_a_fleet_of_the_pipeline_is_planned(searched: tuple[Path, Optimizer]) -> None:
    folder, _ = searched
    planned = run_to_end(folder, "plan", "pipeline", "--demand", 100)
    assert planned.process.returncode == 0, planned.output + planned.errors


@pytest.mark.slow
def test_the_exported_pipeline_is_verified(searched: tuple[Path, Optimizer]) -> None:
    folder, _ = searched
    exported = run_to_end(folder, "export", "pipeline", "--to", folder / "bundle")
    assert exported.process.returncode == 0, exported.output + exported.errors
    served = {path.parent.name for path in (folder / "bundle").glob("*/config.pbtxt")}
    assert served == {*STEPS, "text_classifier"}
    examples = {path.parent.name for path in (folder / "bundle").glob("*/examples.npz")}
    assert examples == {"text_classifier"}, "requests go to the ensemble"
    verified = run_to_end(folder, "verify", folder / "bundle")
    assert verified.process.returncode in (0, 1, 5), verified.output + verified.errors
    for name in ("files", "configuration", "outputs"):
        assert f"\n{name}: pass, " in f"\n{verified.output}", verified.output


@pytest.mark.slow
def test_the_patch_changes_the_step_and_nothing_else(
    searched: tuple[Path, Optimizer], tmp_path: Path
) -> None:
    folder, _ = searched
    export = ("export", "pipeline", "--format", "patch", "--base", folder / "models")
    exported = run_to_end(folder, *export, "--to", tmp_path / "patch")
    assert exported.process.returncode == 0, exported.output + exported.errors
    patched = tmp_path / "patched"
    shutil.copytree(folder / "models", patched)
    subprocess.run(["git", "apply", tmp_path / "patch" / PATCH], cwd=patched, check=True)
    text = (patched / "classifier" / "config.pbtxt").read_text()
    assert text.startswith(pipeline_models.CLASSIFIER)
    assert "dynamic_batching" in text
    for name, config in (
        ("labeller", pipeline_models.LABELLER),
        ("text_classifier", pipeline_models.ENSEMBLE),
    ):
        assert (patched / name / "config.pbtxt").read_text() == config


@pytest.mark.slow
def test_platforms_are_refused(searched: tuple[Path, Optimizer]) -> None:
    folder, _ = searched
    export = ("export", "pipeline", "--format", "kubernetes", "--to", folder / "platform")
    exported = run_to_end(folder, *export)
    assert exported.process.returncode == 2
    assert "text_classifier is a pipeline, which is exported as repository" in exported.errors


@pytest.mark.slow
def test_a_step_whose_batches_are_wrong_keeps_to_single_requests(tmp_path: Path) -> None:
    pipeline_models.write_pipeline(tmp_path / "models", pipeline_models.WRONG_ROWS_CODE)
    path = write_space(tmp_path, {"batching": [False, True]}, budget={"trials": 2})
    optimizer = run_to_end(tmp_path, "run", path, "--sampler", "grid")
    assert optimizer.process.returncode == 0, optimizer.output + optimizer.errors
    rows = json.loads((tmp_path / "results" / "pipeline" / "prepared.json").read_text())
    failing = {row["artifact"].split("/")[0]: row["failing_batch"] for row in rows["artifacts"]}
    assert failing["classifier"] is not None
    assert [failing[name] for name in ("tokenizer", "labeller", "text_classifier")] == 3 * [None]
    assert {trial["config"]["models"][1]["batching"] is None for trial in trials(tmp_path)} == {
        True
    }
