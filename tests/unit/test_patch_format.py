"""An exported patch: what is in it, and `verify`, `diff` and `serve` of it; no server runs."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from optimizer.errors import UsageError
from optimizer.export.bundle.examples import draw_requests, write_examples
from optimizer.export.bundle.manifest import EXAMPLES, PATCH, Bundle, read_bundle
from optimizer.export.bundle.study_bundle import ExportSource, PatchBase
from optimizer.export.patch_format import refuse_changed, write_patch
from optimizer.export.repository_patch import PatchedFile
from optimizer.triton.config_text import edited
from optimizer.workload.streams import Tensors
from tests.unit.commands import Commands
from tests.unit.exported import Exportable
from tests.unit.test_config_text import parsed
from tests.unit.test_repository_patch import contents
from tests.unit.test_verification import MadeUp

pytestmark = pytest.mark.usefixtures("fast_disk")

CONFIG = PurePosixPath("bert/config.pbtxt")


def deployed_from(bundle: Bundle, repository: Path) -> PatchedFile:
    """Write a repository with the model as it was deployed before; return what changes in it."""
    shutil.copytree(bundle.root / "bert", repository / "bert")
    (repository / "bert" / "labels.txt").write_text("yes\r\nno")
    weights = repository / "bert" / "1" / "model.bin"
    weights.rename(repository.parent / "weights")
    weights.symlink_to(repository.parent / "weights")
    after = (repository / CONFIG).read_text()
    config = parsed(after)
    config.instance_group[0].count = 4
    before = f"# Ask before you change it!\r\n{edited(after, config)}"
    (repository / CONFIG).write_bytes(before.encode())
    return PatchedFile(CONFIG, before, f"# Ask before you change it!\r\n{after}")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def patch(tmp_path: Path, repository: Path) -> Bundle:
    """The exported patch of `repository`, which is unchanged."""
    bundle = Exportable(tmp_path / "study").export(tmp_path / "bundle")
    file = deployed_from(bundle, repository)
    before = contents(repository)
    (tmp_path / "patch").mkdir()
    patch = write_patch(bundle, repository, [file], tmp_path / "patch")
    assert contents(repository) == before
    return patch


@pytest.fixture
def patched(patch: Bundle, repository: Path) -> Path:
    before = contents(repository)
    command = ["git", "apply", "--whitespace=nowarn", str(patch.root / PATCH)]
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    subprocess.run(command, cwd=repository, check=True)
    after = contents(repository)
    assert {path for path in after if after[path] != before.get(path)} == {Path(CONFIG)}
    return repository


def test_the_folder_holds_the_patch_and_no_model(patch: Bundle) -> None:
    assert set(map(str, contents(patch.root))) == {
        PATCH, "README.md", "manifest.json", "load.json",
    }  # fmt: skip
    assert read_bundle(patch.root) == patch
    assert set(patch.manifest.patched) == {
        "bert/config.pbtxt", "bert/labels.txt", "bert/1/model.xml", "bert/1/model.bin",
        "bert/1/model.py", "bert/1/session.py",
    }  # fmt: skip
    readme = (patch.root / "README.md").read_text()
    for text in (
        "- bert/config.pbtxt: instance_group[0].count 4 -> 1\n",
        "- Capacity of one replica: 280 requests/s",
        "    git apply repository.patch\n",
        "optimizer verify . --patched REPOSITORY",
    ):
        assert text in readme


def test_recorded_examples_go_with_it(tmp_path: Path, repository: Path) -> None:
    bundle = Exportable(tmp_path / "study").export(tmp_path / "bundle")
    file = deployed_from(bundle, repository)
    [model] = bundle.manifest.models
    model = replace(model, examples=f"bert/{EXAMPLES}")
    requests = draw_requests(bundle.load.workload.streams[0].payloads)
    answers: Tensors = {"logits": np.zeros((16, 2))}
    write_examples(bundle.root / "bert" / EXAMPLES, requests, answers, batched=True)
    bundle = replace(bundle, manifest=replace(bundle.manifest, models=(model,)))
    (tmp_path / "patch").mkdir()
    patch = write_patch(bundle, repository, [file], tmp_path / "patch")
    assert f"bert/{EXAMPLES}" in patch.manifest.files
    assert (patch.root / "bert" / EXAMPLES).is_file()


def test_the_configuration_as_deployed_needs_no_patch(tmp_path: Path, repository: Path) -> None:
    bundle = Exportable(tmp_path / "study").export(tmp_path / "bundle")
    file = deployed_from(bundle, repository)
    (tmp_path / "patch").mkdir()
    with pytest.raises(UsageError, match="trial 1 is the configuration as deployed"):
        write_patch(
            bundle, repository, [replace(file, after=file.before or "")], tmp_path / "patch"
        )


def test_a_patched_repository_is_verified(
    patch: Bundle, patched: Path, optimizer: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    MadeUp(patch.manifest).install(monkeypatch)
    verified = optimizer("verify", str(patch.root), "--patched", str(patched))
    assert (verified.code, verified.err) == (0, "")
    assert "files: pass, 9 files are those that were exported" in verified.out
    assert verified.out.splitlines()[-1] == "pass"


def test_a_model_may_have_another_name_in_the_repository(
    tmp_path: Path, repository: Path, optimizer: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Exportable(tmp_path / "study").export(tmp_path / "bundle")
    file = deployed_from(bundle, repository)
    (repository / "bert").rename(repository / "my bert-1.2")
    before = (file.before or "").replace('name: "bert"', 'name: "my bert-1.2"')
    after = file.after.replace('name: "bert"', 'name: "my bert-1.2"')
    path = repository / "my bert-1.2" / "config.pbtxt"
    path.write_bytes(after.encode())
    models = tuple(replace(each, folder="my bert-1.2") for each in bundle.manifest.models)
    named = replace(bundle, manifest=replace(bundle.manifest, models=models))
    changed = PatchedFile(PurePosixPath("my bert-1.2/config.pbtxt"), before, after)
    (tmp_path / "patch").mkdir()
    patch = write_patch(named, repository, [changed], tmp_path / "patch")
    MadeUp(patch.manifest).install(monkeypatch)
    verified = optimizer("verify", str(patch.root), "--patched", str(repository))
    assert (verified.code, verified.err) == (0, "")
    path.write_bytes(before.encode())
    verified = optimizer("verify", str(patch.root), "--patched", str(repository))
    assert "files: fail, my bert-1.2/config.pbtxt differs" in verified.out
    assert "bert: instance_group[0].count: measured 1, the file says 4" in verified.out
    assert "name: measured" not in verified.out


@pytest.mark.parametrize(
    ("now", "same"),
    [
        ("# Ours.\nmax_batch_size: 8\n", True),
        ("# Mine.\nmax_batch_size: 8\n", False),
        ("max_batch_size: many", False),
        (None, False),
    ],
)
def test_a_base_that_was_completed_is_compared_with_what_was_measured(
    tmp_path: Path, now: str | None, same: bool
) -> None:
    studied, base = tmp_path / "artifact", tmp_path / "models" / "mail"
    for folder in (studied, base):
        (folder / "1").mkdir(parents=True)
    completed = '# Ours.\nmax_batch_size: 8\ninput {\n  name: "X"\n  dims: [4]\n}\n'
    (studied / "config.pbtxt").write_text(completed)
    if now is not None:
        (base / "config.pbtxt").write_text(now)
    files = SimpleNamespace(files=SimpleNamespace(artifact=studied))
    patch_base = PatchBase(base.parent, {"m": "mail"})
    source = cast(ExportSource, SimpleNamespace(base=patch_base, artifacts={"m": files}))
    if same:
        refuse_changed(source)
        return
    with pytest.raises(UsageError, match=r"mail has changed since the study: config\.pbtxt"):
        refuse_changed(source)


def test_a_repository_that_was_not_patched_fails(
    patch: Bundle, repository: Path, optimizer: Commands
) -> None:
    (repository / "bert" / "2").mkdir()
    (repository / "bert" / "2" / "model.py").touch()
    verified = optimizer("verify", str(patch.root), "--patched", str(repository))
    assert verified.code == 1
    assert "files: fail, bert/config.pbtxt differs; bert/2/model.py was not in the" in verified.out
    assert "bert: instance_group[0].count: measured 1, the file says 4" in verified.out


def test_other_weights_behind_a_link_fail(
    patch: Bundle, patched: Path, optimizer: Commands
) -> None:
    (patched.parent / "weights").write_bytes(b"others")
    verified = optimizer("verify", str(patch.root), "--patched", str(patched))
    assert verified.code == 1
    assert "files: fail, bert/1/model.bin differs" in verified.out


def test_a_patch_and_a_repository_go_together(
    patch: Bundle, repository: Path, tmp_path: Path, optimizer: Commands
) -> None:
    alone = optimizer("verify", str(patch.root))
    assert alone.code == 2
    assert "name that with --patched" in alone.err
    bundle = tmp_path / "bundle"
    other = optimizer("verify", str(bundle), "--patched", str(repository))
    assert other.code == 2
    assert "contains the models themselves, not a patch" in other.err
    missing = optimizer("verify", str(patch.root), "--patched", str(tmp_path / "none"))
    assert (missing.code, "is no folder" in missing.err) == (2, True)
    inside = optimizer(
        "verify", str(patch.root), "--patched", str(repository), "--json", str(repository / "j")
    )
    assert (inside.code, "must lie outside of" in inside.err) == (2, True)


def test_two_patches_are_compared(patch: Bundle, tmp_path: Path, optimizer: Commands) -> None:
    same = optimizer("diff", str(patch.root), str(patch.root))
    assert (same.code, "the manifests are the same" in same.out) == (0, True)
    assert "differs from its manifest" not in same.out
    other = tmp_path / "other"
    shutil.copytree(patch.root, other)
    manifest = other / "manifest.json"
    digest = patch.manifest.patched["bert/1/model.bin"]
    manifest.write_text(manifest.read_text().replace(digest, "0" * 64))
    compared = optimizer("diff", str(patch.root), str(other))
    assert "file: bert/1/model.bin differs" in compared.out


def test_a_patch_alone_is_not_served(patch: Bundle, optimizer: Commands) -> None:
    refused = optimizer("serve", str(patch.root))
    assert refused.code == 2
    assert "contains a patch and no models" in refused.err
