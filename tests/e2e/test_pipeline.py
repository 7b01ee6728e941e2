"""An ensemble of an existing repository on the real server: searched as one pipeline."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from optimizer.api import Study
from optimizer.cli import commands
from optimizer.export.bundle.manifest import PATCH
from optimizer.export.platforms.formats import PLATFORMS
from optimizer.search.recorded.table_file import read_table
from optimizer.triton.launcher import free_ports
from tests.e2e import pipeline_models, tiny
from tests.e2e.running import RECORDING_ONCE, Optimizer, run_to_end, wait_until
from tests.e2e.test_production import answers, started

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
        price={"instance_type": "ml.c5.large"},
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
    for text in (
        searched[1].output,
        (folder / "results" / "pipeline" / "report.md").read_text().replace("\\_", "_"),
        (folder / "results" / "pipeline" / "report.html").read_text(),
    ):
        assert "teps of text_classifier at saturation" in text
        assert "The slowest step alone, " in text
        assert re.search("The bottleneck is |step is the bottleneck: ", text)


@pytest.mark.slow
def test_studies_of_pipelines_are_compared_by_what_limits_them(
    searched: tuple[Path, Optimizer], tmp_path: Path
) -> None:
    results = searched[0] / "results"
    shutil.copytree(results / "pipeline", tmp_path / "again")
    arguments = ["compare", "pipeline", str(tmp_path / "again"), "--results", str(results)]
    compared = CliRunner().invoke(commands, arguments)
    assert compared.exit_code == 0, compared.output
    assert "Pipelines of the best: what limits them at saturation" in compared.output


@pytest.mark.slow
def test_a_study_in_python_has_the_times_of_each_step(searched: tuple[Path, Optimizer]) -> None:
    study = Study("pipeline", results=searched[0] / "results")
    steps, levels = study.steps(), study.levels()
    assert set(steps.model) == {*STEPS}
    assert len(steps) == len(STEPS) * len(levels)
    assert (steps.groupby(["trial", "level"]).share.sum() <= 1.0).all()
    assert (levels.compute_ms > 5).all(), "the steps' own, of which one sleeps for 5 ms"


@pytest.mark.slow
def test_memory_of_the_pipeline_is_divided_among_its_steps(
    searched: tuple[Path, Optimizer],
) -> None:
    path = searched[0] / "results" / "pipeline" / "prepared.json"
    rows = json.loads(path.read_text())["artifacts"]
    mib = {row["artifact"].split("/")[0]: row["instance_mib"] for row in rows}
    # The others have one instance in every configuration.
    assert (mib["classifier"], mib["labeller"]) == (None, None)
    assert 5 < mib["tokenizer"] < mib["text_classifier"], "a process of Python each"


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
def test_the_exported_pipeline_is_verified(searched: tuple[Path, Optimizer]) -> None:
    folder, _ = searched
    exported = run_to_end(folder, "export", "pipeline", "--to", folder / "bundle")
    assert exported.process.returncode == 0, exported.output + exported.errors
    served = {path.parent.name for path in (folder / "bundle").glob("*/config.pbtxt")}
    assert served == {*STEPS, "text_classifier"}
    examples = {path.parent.name for path in (folder / "bundle").glob("*/examples.npz")}
    assert examples == {"text_classifier"}, "requests go to the ensemble"
    verified = run_to_end(folder, "verify", folder / "bundle", "--allow-code")
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
def test_every_platform_takes_the_pipeline_and_its_archive_answers(
    searched: tuple[Path, Optimizer], tmp_path: Path
) -> None:
    folder, _ = searched
    for name in PLATFORMS:
        arguments = ["export", "pipeline", "--results", str(folder / "results"), "--no-examples"]
        arguments += ["--cache", str(folder / "cache"), "--format", name]
        exported = CliRunner().invoke(commands, [*arguments, "--to", str(tmp_path / name)])
        assert exported.exit_code == 0, exported.output
    rules = (tmp_path / "kubernetes" / "monitoring" / "triton-rules.yaml").read_text()
    watched = set(re.findall(r'(nv_\w+){model="(\w+)"', rules))
    assert {model for _, model in watched} == {*STEPS, "text_classifier"}
    with tarfile.open(tmp_path / "sagemaker" / "model.tar.gz") as archive:
        archive.extractall(tmp_path / "models", filter="data")
    model = json.loads((tmp_path / "sagemaker" / "create-model.json").read_text())
    port, metrics = free_ports(2)
    shown = [f"--metrics-port={metrics}", "--metrics-address=127.0.0.1", "--allow-metrics=true"]
    shown += ["--metrics-config=summary_latencies=true"]
    serve = str(tmp_path / "sagemaker" / "image" / "serve")
    with started(
        ["sh", serve, *shown],
        tmp_path,
        **model["PrimaryContainer"]["Environment"],
        MODEL_REPOSITORY=str(tmp_path / "models"),
        SAGEMAKER_BIND_TO_PORT=str(port),
    ):
        address = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(f"{address}/ping") is not None, "an answer to /ping")
        text = {"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "data": ["zzzz"]}
        reply = answers(f"{address}/invocations", {"inputs": [text]})
        figures = answers(f"http://127.0.0.1:{metrics}/metrics")
    assert reply is not None
    assert json.loads(reply)["outputs"][0]["data"] == ["long"]
    assert figures is not None
    for metric, name in watched:
        assert f'{metric}{{model="{name}"' in figures, "Triton shows it of every step"


@pytest.mark.slow
def test_a_pipeline_is_recorded_and_its_table_is_searched(tmp_path: Path) -> None:
    pipeline_models.write_pipeline(tmp_path / "models")
    space = write_space(tmp_path, {"classifier.batching": [True]})
    cache = ("--cache", tmp_path / "cache")
    recorded = run_to_end(tmp_path, "record", space, *cache, python=RECORDING_ONCE)
    assert recorded.process.returncode == 0, recorded.output + recorded.errors
    path = tmp_path / "results" / "pipeline" / "recorded" / "table.csv"
    table = read_table(path)
    assert table.space.search_space.graph is not None
    for row in table.rows:
        assert row.saturation is not None
        *steps, top = row.saturation.servers
        assert [split.model for split in steps] == [*STEPS]
        assert all(split.step and split.batches for split in steps)
        assert top.ensemble
        assert top.request_ms is not None
        assert top.request_ms > max(split.total_ms for split in steps)
    replayed = CliRunner().invoke(commands, ["replay", str(path), "--sampler", "random"])
    assert replayed.exit_code == 0, replayed.output
    assert "100.0% of the table's best" in replayed.output


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
