"""A patch of a model repository, as GNU patch and git apply it."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.export.bundle.manifest import Manifest
from optimizer.export.repository_patch import PatchedFile, patch_text
from optimizer.triton.config_text import edited
from tests.unit.config_texts import changed, configs, texts_of
from tests.unit.exported import Exportable
from tests.unit.test_config_text import DEPLOYED, parsed

APPLY = {
    "patch": ["patch", "-p1", "--quiet", "--force", "-i"],
    "git": ["git", "apply", "--whitespace=nowarn"],
}
tools = pytest.mark.parametrize("tool", list(APPLY))

NAMES = [
    "mail",
    "mail.v2",
    "mail room",
    " mail ",
    'a"b',
    "a\\b",
    "a\tb",
    "a\nb",
    "é",
    "-a",
    "a ",
    "#",
]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = tmp_path_factory.mktemp("study")
    return Exportable(root).export(root / "to").manifest


def repository(root: Path, name: str, text: str | None) -> Path:
    """Write a repository of two models; only the first one is patched."""
    for model in (name, "other"):
        (root / model / "3").mkdir(parents=True)
        (root / model / "3" / "model.onnx").write_bytes(b"\r\nweights\x00")
        (root / model / "labels.txt").write_text("yes\r\nno")
    (root / "other" / "config.pbtxt").write_text(DEPLOYED)
    if text is not None:
        (root / name / "config.pbtxt").write_bytes(text.encode())
    return root


def contents(root: Path) -> dict[Path, bytes]:
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def applied(tool: str, root: Path, patch: str) -> subprocess.CompletedProcess[bytes]:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    file = root.parent / "the.patch"
    file.write_bytes(patch.encode())
    return subprocess.run([*APPLY[tool], str(file)], cwd=root, capture_output=True, check=False)


def check(tool: str, root: Path, patch: str, file: PatchedFile) -> None:
    """Apply a patch and check that it changes this file as it should, and no other byte."""
    expected = {**contents(root), Path(file.path): file.after.encode()}
    done = applied(tool, root, patch)
    assert done.returncode == 0, done.stderr + done.stdout
    assert contents(root) == expected


def tuned(text: str | None) -> str:
    target = parsed(text or "")
    target.max_batch_size = 32
    target.response_cache.enable = True
    return edited(text or "", target)


@tools
@pytest.mark.parametrize("name", NAMES)
def test_any_name(tool: str, name: str, manifest: Manifest, tmp_path: Path) -> None:
    root = repository(tmp_path / "models", name, DEPLOYED)
    file = PatchedFile(PurePosixPath(name, "config.pbtxt"), DEPLOYED, tuned(DEPLOYED))
    check(tool, root, patch_text(manifest, [file]), file)


@tools
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.removesuffix("\n"),
        lambda text: text + "# last",
        lambda text: text.replace("mail", "m\x0ca\x85il\u2028"),
        lambda text: text.replace('"labels.txt"', '"labels.txt"\r'),
    ],
    ids=["CRLF", "no line end", "comment", "other line ends", "one carriage return"],
)
def test_any_line_ends(
    tool: str, change: Callable[[str], str], manifest: Manifest, tmp_path: Path
) -> None:
    text = change(DEPLOYED)
    root = repository(tmp_path / "models", "mail", text)
    file = PatchedFile(PurePosixPath("mail/config.pbtxt"), text, tuned(text))
    check(tool, root, patch_text(manifest, [file]), file)


@tools
@pytest.mark.parametrize("name", NAMES)
def test_a_model_without_a_configuration_gets_one(
    tool: str, name: str, manifest: Manifest, tmp_path: Path
) -> None:
    root = repository(tmp_path / "models", name, None)
    file = PatchedFile(PurePosixPath(name, "config.pbtxt"), None, tuned(None))
    check(tool, root, patch_text(manifest, [file]), file)


@tools
def test_a_repository_within_a_working_tree(tool: str, manifest: Manifest, tmp_path: Path) -> None:
    """Paths count from the folder in which it is applied."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    root = repository(tmp_path / "deploy" / "models", "mail", DEPLOYED)
    file = PatchedFile(PurePosixPath("mail/config.pbtxt"), DEPLOYED, tuned(DEPLOYED))
    check(tool, root, patch_text(manifest, [file]), file)


@tools
def test_a_changed_base_is_refused(tool: str, manifest: Manifest, tmp_path: Path) -> None:
    root = repository(tmp_path / "models", "mail", DEPLOYED.replace(": 8;", ": 4;"))
    before = contents(root)
    file = PatchedFile(PurePosixPath("mail/config.pbtxt"), DEPLOYED, tuned(DEPLOYED))
    assert applied(tool, root, patch_text(manifest, [file])).returncode != 0
    if tool == "git":  # GNU patch applies the other parts of the file
        assert contents(root) == before


def test_several_files_and_the_header(manifest: Manifest) -> None:
    files = [
        PatchedFile(PurePosixPath("mail/config.pbtxt"), DEPLOYED, tuned(DEPLOYED)),
        PatchedFile(PurePosixPath("new/config.pbtxt"), None, 'name: "new"\n'),
        PatchedFile(PurePosixPath("bare/config.pbtxt"), None, tuned(DEPLOYED), completed=DEPLOYED),
    ]
    manifest = replace(manifest, description="--- a/x\n+++ b/x\n@@ -1 +1 @@\n")
    patch = patch_text(manifest, files)
    header = patch[: patch.index("--- a/mail")]
    assert all(line.startswith("#") for line in header.splitlines())
    for text in (
        "# Capacity of one replica: 280 requests/s (95 % interval ",
        "p95 ",
        "# Cost: $",
        "2 replicas for ",
        f"# mail/config.pbtxt, base: sha256 {hashlib.sha256(DEPLOYED.encode()).hexdigest()}\n",
        "#     max_batch_size: 8 -> 32\n",
        "#     response_cache.enable: none -> True\n",
        "# new/config.pbtxt, base: no file\n#     name: none -> new\n",
        "# bare/config.pbtxt, base: no file; what the server completes is written out\n"
        "#     max_batch_size: 8 -> 32\n",
        "# Not changed: every other field, comment and file.",
    ):
        assert text in header
    assert patch[len(header) :].startswith(
        "--- a/mail/config.pbtxt\n+++ b/mail/config.pbtxt\n@@ -1,7 +1,7 @@\n"
    )


@settings(max_examples=25, deadline=None)
@given(data=st.data())
@tools
def test_any_text(
    data: st.DataObject, tool: str, manifest: Manifest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = data.draw(configs())
    text = data.draw(texts_of(config))
    file = PatchedFile(
        PurePosixPath("a b.c/config.pbtxt"), text, edited(text, data.draw(changed(config)))
    )
    if file.before == file.after:
        return
    root = repository(tmp_path_factory.mktemp("any") / "models", "a b.c", text)
    check(tool, root, patch_text(manifest, [file]), file)
