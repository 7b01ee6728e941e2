from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import given, settings

from optimizer.configuration.runtimes import RUNTIME_PACKAGE, session_file
from optimizer.configuration.serving_config import ModelServing
from optimizer.errors import StorageError
from optimizer.files.shipped import shipped
from optimizer.triton.repository import ModelRepository, link, read_config
from tests.unit.test_model_config import MODEL, OUTPUT, PAYLOADS, built, servable

TEMPLATES = shipped("model_repository_templates")


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "model.xml").write_text("graph")
    (folder / "model.bin").write_bytes(b"weights")
    return folder


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def write(
    root: Path, artifact: Path, model: ModelServing = MODEL, place: Callable[..., object] = link
) -> None:
    ModelRepository(root, TEMPLATES, place).write(model, artifact, PAYLOADS, [OUTPUT])


def test_a_model_is_its_configuration_its_code_and_its_files(
    tmp_path: Path, artifact: Path
) -> None:
    root = tmp_path / "made" / "repository"
    asked = ModelRepository(root, TEMPLATES).write(MODEL, artifact, PAYLOADS, [OUTPUT])
    template = TEMPLATES / "python"
    found = files_in(root)
    assert found == {
        "bert/config.pbtxt": (root / "bert" / "config.pbtxt").read_bytes(),
        "bert/1/model.py": (template / "model.py").read_bytes(),
        "bert/1/session.py": session_file("openvino").read_bytes(),
        "bert/1/model.xml": b"graph",
        "bert/1/model.bin": b"weights",
    }
    assert read_config(root / "bert" / "config.pbtxt") == asked == built(MODEL)


@pytest.mark.parametrize("runtime", sorted(RUNTIME_PACKAGE))
def test_every_runtime_has_its_session(tmp_path: Path, artifact: Path, runtime: str) -> None:
    spec = replace(MODEL.artifact, runtime=runtime, precision="fp32")
    write(tmp_path, artifact, replace(MODEL, artifact=spec))
    assert (tmp_path / "bert" / "1" / "session.py").read_bytes() == session_file(
        runtime
    ).read_bytes()


def test_weights_are_linked_for_a_trial_and_copied_where_asked(
    tmp_path: Path, artifact: Path
) -> None:
    write(tmp_path / "trial", artifact)
    write(tmp_path / "handed out", artifact, place=shutil.copyfile)
    linked = tmp_path / "trial" / "bert" / "1" / "model.bin"
    copied = tmp_path / "handed out" / "bert" / "1" / "model.bin"
    assert linked.resolve() == artifact / "model.bin"
    assert not copied.is_symlink()
    shutil.rmtree(artifact)
    assert copied.read_bytes() == b"weights"


def test_a_link_does_not_depend_on_where_the_program_was_started(
    tmp_path: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("repository"), Path("artifact"))
    monkeypatch.chdir("/")
    assert (tmp_path / "repository" / "bert" / "1" / "model.xml").read_text() == "graph"


def test_nothing_of_the_model_before_is_left(tmp_path: Path, artifact: Path) -> None:
    root = tmp_path / "repository"
    write(root, artifact)
    (root / "bert" / "1" / "stray").touch()
    (artifact / "model.bin").rename(artifact / "model.onnx")
    write(root, artifact)
    assert {path.name for path in (root / "bert" / "1").iterdir()} == {
        "model.py", "session.py", "model.xml", "model.onnx",
    }  # fmt: skip
    assert [path.name for path in root.iterdir()] == ["bert"]


def test_other_models_stay(tmp_path: Path, artifact: Path) -> None:
    root = tmp_path / "repository"
    write(root, artifact, replace(MODEL, name="other"))
    before = files_in(root / "other")
    write(root, artifact)
    assert files_in(root / "other") == before


def disk_full(_: Path, target: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", str(target))


def test_a_write_that_fails_in_the_middle_leaves_the_model_before(
    tmp_path: Path, artifact: Path
) -> None:
    root = tmp_path / "repository"
    write(root, artifact)
    before = files_in(root / "bert")
    with pytest.raises(StorageError, match=r"^cannot write .*model\.bin: No space left on device"):
        write(root, artifact, replace(MODEL, max_batch_size=1, batching=None), place=disk_full)
    assert files_in(root / "bert") == before


def test_a_write_after_a_failed_one_is_whole(tmp_path: Path, artifact: Path) -> None:
    root = tmp_path / "repository"
    with pytest.raises(StorageError):
        write(root, artifact, place=disk_full)
    assert not (root / "bert").exists()
    write(root, artifact)
    assert [path.name for path in root.iterdir()] == ["bert"]
    assert len(files_in(root)) == 5


def test_a_repository_that_cannot_be_made_is_named(tmp_path: Path, artifact: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"^cannot write .*/file/.*: Not a directory$"):
        write(tmp_path / "file", artifact)


@settings(max_examples=15)
@given(servable)
def test_what_is_read_back_is_what_was_asked(model: ModelServing) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, artifact = Path(folder) / "repository", Path(folder) / "artifact"
        artifact.mkdir()
        repository = ModelRepository(root, TEMPLATES)
        asked = repository.write(model, artifact, PAYLOADS, [OUTPUT])
        assert read_config(root / model.name / "config.pbtxt") == asked


def test_what_is_no_configuration_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.pbtxt"
    path.write_text("name: bert")
    with pytest.raises(text_format.ParseError):
        read_config(path)
