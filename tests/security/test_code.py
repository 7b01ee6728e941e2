"""Code that comes with models: none runs unannounced, and that of a stranger not at all."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optimizer.artifacts.cache import ArtifactCache
from optimizer.artifacts.transformers_model import TransformersModel
from optimizer.commands import called_models, completed_source
from optimizer.commands.bundle_serving import served_bundle
from optimizer.commands.code_consent import CodeConsent, announce_code
from optimizer.configuration.hosting import EmbeddedHost
from optimizer.configuration.runtimes import HOSTED_PACKAGE, session_file
from optimizer.errors import BuildFailure, UsageError
from optimizer.files.shipped import import_folder, shipped
from optimizer.load.client import LoadClient
from optimizer.study.events import Note
from optimizer.workload.model_spec import (
    AccuracyLimits,
    DataSet,
    ModelSpec,
    RepositorySource,
    Source,
    TaskMetric,
    TransformersSource,
)
from optimizer.workload.request_sizes import LengthDistribution
from optimizer.workload.streams import Payloads, TensorSpec
from tests.unit.fake_runs import FakeRuns
from tests.unit.repositories import write_config
from tests.unit.test_stored_study import runs

__all__ = ["runs"]

ENSEMBLE = 'platform: "ensemble"\nensemble_scheduling { step [ { model_name: "mail" } ] }'


def model_of(source: Source, metric: TaskMetric | None = None) -> ModelSpec:
    payloads = Payloads((TensorSpec("x", "FP32", (2,)),), LengthDistribution((1,), (1.0,)))
    data = DataSet(None, 2, 0)
    return ModelSpec("mail", source, payloads, data, data, AccuracyLimits(1, 1, metric=metric))


def written(path: Path, text: str = "raise SystemExit") -> str:
    """Write a file; return its digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return hashlib.sha256(text.encode()).hexdigest()


def told(models: list[ModelSpec]) -> list[Note]:
    notes: list[Any] = []
    announce_code(models, notes.append)
    return notes


def test_the_file_of_a_task_metric_is_announced_with_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "metrics.py"
    sha256 = written(path)
    metric = TaskMetric(path, "accuracy", 0.9)
    [note] = told([model_of(TransformersSource("BertModel"), metric)])
    assert note == Note(f"code that runs: {path} (sha256 {sha256})", True)


def test_python_models_are_announced_with_their_hash_steps_and_calls_included(
    tmp_path: Path,
) -> None:
    for name, text in {"whole": ENSEMBLE, "mail": 'backend: "python"', "other": ""}.items():
        write_config(tmp_path, text, name)
    step = written(tmp_path / "mail/1/model.py")
    written(tmp_path / "mail/1/__pycache__/model.cpython-311.pyc")
    other = written(tmp_path / "other/1/libtriton_other.so", "a library")
    source = RepositorySource(tmp_path, "whole")
    assert [note.text.rpartition("sha256 ")[2] for note in told([model_of(source)])] == [f"{step})"]
    every = told([model_of(replace(source, calls=None))])
    assert [note.text.rpartition("sha256 ")[2] for note in every] == [f"{step})", f"{other})"]


def test_what_a_configuration_names_as_code_is_announced_whatever_its_name(tmp_path: Path) -> None:
    named = """backend: "python" default_model_filename: "model.txt"
        model_operations { op_library_filename: "ops.bin" }
        parameters { key: "EXECUTION_ENV_PATH" value { string_value: "$$DIR/env.tar.gz" } }"""
    write_config(tmp_path, named)
    for name in ("1/model.txt", "ops.bin", "env.tar.gz", "1/weights.onnx"):
        written(tmp_path / "mail" / name)
    notes = told([model_of(RepositorySource(tmp_path, "mail"))])
    assert [Path(note.text.split()[3]).name for note in notes] == [
        "model.txt",
        "env.tar.gz",
        "ops.bin",
    ]


def test_links_out_of_a_repository_are_announced(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a key")
    folder = write_config(tmp_path / "models", 'backend: "onnxruntime"')
    (folder / "1" / "model.onnx").symlink_to(secret)
    (folder / "1" / "again").symlink_to(folder)  # a ring is not followed
    [note] = told([model_of(RepositorySource(tmp_path / "models", "mail"))])
    assert f"model.onnx is a link to {secret}" in note.text


def test_a_run_announces_code_before_it_prepares(runs: FakeRuns, tmp_path: Path) -> None:
    path = tmp_path / "metrics.py"
    written(path)
    [model] = runs.space.models
    accuracy = replace(model.accuracy, metric=TaskMetric(path, "accuracy", 0.9))
    runs.space = replace(runs.space, models=(replace(model, accuracy=accuracy),))
    events: list[Any] = []
    runs.run(events.append)
    at = next(n for n, each in enumerate(events) if str(path) in getattr(each, "text", ""))
    assert all(isinstance(each, Note) for each in events[:at])
    assert str(path) in (runs.directory / "logs" / "run.log").read_text()


@pytest.mark.parametrize("module", [completed_source, called_models])
def test_code_is_logged_before_a_server_completes_its_model(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_config(tmp_path, 'backend: "python"')
    sha256 = written(tmp_path / "mail/1/model.py")

    def loaded(*_: object) -> Any:
        assert sha256 in caplog.text
        raise UsageError("stop here")

    class Server:
        def __enter__(self) -> tuple[None, None]:
            return None, None

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(module, "loaded_as_it_is", loaded)
    monkeypatch.setattr(module, "require_server", lambda *_: None)
    monkeypatch.setattr(module, "completing_server", lambda *_: Server())
    source = RepositorySource(tmp_path, "mail", calls=None if module is called_models else ())
    with caplog.at_level(logging.WARNING), pytest.raises(UsageError, match="stop here"):
        called_models.source_from_server(model_of(source), EmbeddedHost(), ())


def consent(cache: Path, *, allowed: bool = False) -> tuple[CodeConsent, list[Any]]:
    notes: list[Any] = []
    return CodeConsent(ArtifactCache(cache), allowed, notes.append), notes


@pytest.mark.parametrize("name", ["model.py", "session.pyc", "ops.so.1", "model.plan", "model.pt2"])
def test_the_code_of_a_strangers_bundle_is_refused(name: str, tmp_path: Path) -> None:
    folder = write_config(tmp_path / "bundle", "")
    sha256 = written(folder / "1" / name)
    strict, _ = consent(tmp_path / "cache")
    with pytest.raises(UsageError, match=rf"(?s)would run code.*{name}.*--allow-code"):
        strict.check([folder])
    lax, notes = consent(tmp_path / "cache", allowed=True)
    lax.check([folder])
    assert [note.text for note in notes] == [
        f"code that runs: {folder / '1' / name} (sha256 {sha256})"
    ]


def test_every_file_of_a_backend_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "bundle", 'backend: "strange"')
    written(folder / "1" / "weights.onnx")
    with pytest.raises(UsageError, match=r"weights\.onnx"):
        consent(tmp_path / "cache")[0].check([folder])


def write_program(into: Path) -> None:
    written(into / "a.pt2", "a program")


def test_code_of_this_program_and_of_its_cache_runs_without_a_word(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "bundle", 'backend: "python"')
    template = shipped("model_repository_templates") / "python" / "model.py"
    written(folder / "1" / "model.py", template.read_text())
    written(folder / "1" / "model.pt2", "a program")
    cache = ArtifactCache(tmp_path / "cache")
    cache.get_or_build({"kind": "test"}, write_program)
    for runtime in HOSTED_PACKAGE:
        written(folder / "1" / "session.py", session_file(runtime).read_text())
        own, notes = consent(cache.root)
        own.check([folder])
        assert notes == []


def test_nothing_is_started_for_a_bundle_whose_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_config(tmp_path / "bundle", "")
    written(folder / "1" / "model.py")
    monkeypatch.setattr("optimizer.commands.bundle_serving.launch_with", None)
    any_of_it: Any = None
    with (
        pytest.raises(UsageError, match="would run code"),
        served_bundle(
            folder.parent,
            any_of_it,
            any_of_it,
            any_of_it,
            consent(tmp_path / "cache")[0],
            folders={"mail": folder},
        ),
    ):
        pass


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self._marker), "w")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["weights", "code"])
def test_a_checkpoint_runs_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    marker, folder = tmp_path / "ran", tmp_path / "checkpoint"
    if kind == "code":
        written(folder / "evil.py", f"open({str(marker)!r}, 'w')\nclass Evil: ...\n")
        code = '{"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}'
        written(folder / "config.json", f'{{"model_type": "evil", "auto_map": {code}}}')
    else:
        written(folder / "config.json", '{"model_type": "bert", "num_hidden_layers": 1}')
        torch.save({"evil": Evil(marker)}, folder / "pytorch_model.bin")
    monkeypatch.setattr(sys, "path", [*sys.path])
    source = TransformersSource("AutoModel" if kind == "code" else "BertModel", str(folder))
    with pytest.raises(BuildFailure):
        TransformersModel(model_of(source), source).open()
    assert not marker.exists()


@pytest.fixture
def strangers_folder(runs: FakeRuns) -> tuple[Path, Path]:
    """A finished study with code in it, and the file that its code would write."""
    runs.run(trials=4)
    marker = runs.results / "ran"
    code = f"open({str(marker)!r}, 'w').close()\n"
    for name in ("click.py", "numpy.py", "optuna.py", "sitecustomize.py", "best/bert/1/model.py"):
        written(runs.directory / name, code)
    return runs.directory, marker


@pytest.mark.parametrize("command", ["report one", "export one --to ../to"])
def test_commands_on_a_strangers_study_run_nothing_in_it(
    command: str, strangers_folder: tuple[Path, Path]
) -> None:
    folder, marker = strangers_folder
    results = ["--results", str(folder.parent)]
    ran = subprocess.run(
        [sys.executable, "-m", "optimizer", *command.split(), *results],
        cwd=folder, capture_output=True, text=True, check=False, timeout=60,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )  # fmt: skip
    assert "Traceback" not in ran.stderr
    assert not marker.exists()


def test_no_child_process_imports_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with LoadClient(None) as client:
        folders = {Path(f"/proc/{pid}/cwd").readlink() for pid in client.pids}
    assert folders == {import_folder()}
