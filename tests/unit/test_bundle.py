from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from optimizer.configuration.serving_config import InstanceGroup, ModelServing, ServingConfig
from optimizer.errors import StorageError
from optimizer.export.bundle.repository import Provenance, write_model_repository
from optimizer.files.shipped import shipped
from optimizer.triton.session import ModelFiles
from tests.unit.test_model_config import MODEL, OUTPUT, PAYLOADS
from tests.unit.test_repository import files_in

TEMPLATES = shipped("model_repository_templates")


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    """An artefact that is links into a cache, as it may be."""
    cached = tmp_path / "cached.bin"
    cached.write_bytes(b"weights")
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    (artifact / "model.bin").symlink_to(cached)
    return ModelFiles(artifact, PAYLOADS, (OUTPUT,))


PACKAGES = {"numpy": "2.5", "openvino": "2026.4", "torch": "2.5+cpu"}


def write(target: Path, files: ModelFiles, model: ModelServing = MODEL) -> None:
    provenance = Provenance({}, PACKAGES)
    write_model_repository(
        target, TEMPLATES, ServingConfig((model,)), {model.name: files}, provenance
    )


def test_a_bundle_is_a_repository_with_two_notes(tmp_path: Path, files: ModelFiles) -> None:
    best = tmp_path / "study" / "best"
    write(best, files)
    assert set(files_in(best)) == {
        "README.md",
        "requirements.txt",
        "bert/config.pbtxt",
        "bert/1/model.py",
        "bert/1/session.py",
        "bert/1/model.bin",
    }
    assert [path.name for path in best.parent.iterdir()] == ["best"]


def test_a_bundle_needs_nothing_that_it_does_not_hold(tmp_path: Path, files: ModelFiles) -> None:
    best = tmp_path / "best"
    write(best, files)
    assert not any(path.is_symlink() for path in best.rglob("*"))
    (tmp_path / "cached.bin").unlink()
    assert (best / "bert" / "1" / "model.bin").read_bytes() == b"weights"


def test_the_notes_say_how_to_start_it_and_what_it_needs(tmp_path: Path, files: ModelFiles) -> None:
    best = tmp_path / "best"
    write(best, files)
    packages = ["numpy==2.5", "openvino==2026.4"]
    assert (best / "requirements.txt").read_text() == "".join(f"{p}\n" for p in packages)
    readme = (best / "README.md").read_text()
    assert readme.startswith(
        "# bert: openvino int8, max_batch_size 16, preferred 8/16, queue delay 500 us, "
        '2 x 1 thread, padded to 32/64, parameters.num_streams.string_value "1"\n'
    )
    assert 'tritonserver --model-repository="$PWD" --disable-auto-complete-config' in readme
    assert f"(requirements.txt):\n{' '.join(packages)}\n" in readme


def test_a_version_that_only_one_index_has_is_not_asked_for(
    tmp_path: Path, files: ModelFiles
) -> None:
    spec = replace(MODEL.artifact, runtime="pytorch", precision="fp32")
    write(tmp_path / "best", files, replace(MODEL, artifact=spec))
    assert (tmp_path / "best" / "requirements.txt").read_text() == "numpy==2.5\ntorch==2.5\n"


def test_on_gpus_the_build_for_cuda_is_asked_for(tmp_path: Path, files: ModelFiles) -> None:
    spec = replace(MODEL.artifact, runtime="onnxruntime", precision="fp32")
    on_gpu = replace(MODEL, artifact=spec, groups=(InstanceGroup("KIND_GPU", 1, (0,)),))
    write(tmp_path / "best", files, on_gpu)
    wanted = (tmp_path / "best" / "requirements.txt").read_text().splitlines()
    assert [line.partition("==")[0] for line in wanted] == ["numpy", "onnxruntime-gpu"]


def test_a_bundle_replaces_the_one_before_as_a_whole(tmp_path: Path, files: ModelFiles) -> None:
    best = tmp_path / "best"
    write(best, files)
    (best / "stray").touch()
    write(best, files, replace(MODEL, name="other"))
    assert {path.name for path in best.iterdir()} == {"README.md", "requirements.txt", "other"}
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def failing_copy_of_weights(copy: Callable[..., object]) -> Callable[..., object]:
    def place(source: Path, target: Path) -> object:
        if source.suffix == ".bin":
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        return copy(source, target)

    return place


@pytest.mark.parametrize("there", [True, False])
def test_a_bundle_is_whole_or_what_it_was(
    tmp_path: Path, files: ModelFiles, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    best = tmp_path / "study" / "best"
    if there:
        write(best, files)
    before = files_in(tmp_path / "study")
    monkeypatch.setattr(shutil, "copyfile", failing_copy_of_weights(shutil.copyfile))
    with pytest.raises(StorageError, match=r"model\.bin: No space left on device$"):
        write(best, files, replace(MODEL, name="other"))
    assert best.exists() == there
    assert files_in(tmp_path / "study") == before


def test_what_a_killed_run_left_is_cleared(tmp_path: Path, files: ModelFiles) -> None:
    for word in ("new", "old"):
        (tmp_path / f".best.{word}" / "bert").mkdir(parents=True)
    write(tmp_path / "best", files)
    assert (tmp_path / "best" / "bert" / "config.pbtxt").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
