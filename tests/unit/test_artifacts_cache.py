"""The artefact cache: an entry is whole or absent, whoever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from optimizer.artifacts.cache import ArtifactCache, key_digest
from optimizer.cli import commands
from optimizer.errors import BuildFailure, StorageError

KEY = {"kind": "test", "number": 1}


def write_two(into: Path) -> None:
    (into / "a").write_text("one")
    (into / "sub").mkdir()
    (into / "sub" / "b").write_text("two")


def never(into: Path) -> None:
    raise AssertionError(f"{into} must not be built")


def test_builds_once(tmp_path: Path) -> None:
    first = ArtifactCache(tmp_path / "cache").get_or_build(KEY, write_two)
    second = ArtifactCache(tmp_path / "cache").get_or_build(dict(reversed(KEY.items())), never)
    assert first.built
    assert not second.built
    assert (second.path / "sub" / "b").read_text() == "two"
    assert (first.path, first.sha256, first.seconds) == (
        second.path,
        second.sha256,
        second.seconds,
    )


def test_content_decides_the_sha256(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path)
    same = cache.get_or_build({"number": 2}, write_two)
    other = cache.get_or_build({"number": 3}, lambda into: (into / "a").touch())
    assert cache.get_or_build(KEY, write_two).sha256 == same.sha256 != other.sha256


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(into: Path) -> None:
        (into / "half").write_text("x")
        raise BuildFailure("no")

    with pytest.raises(BuildFailure):
        ArtifactCache(tmp_path).get_or_build(KEY, fail)
    assert list(tmp_path.iterdir()) == []


def test_an_entry_that_another_process_finished_first_is_used(tmp_path: Path) -> None:
    def overtaken(into: Path) -> None:
        ArtifactCache(tmp_path).get_or_build(KEY, write_two)
        (into / "late").touch()

    entry = ArtifactCache(tmp_path).get_or_build(KEY, overtaken)
    assert not (entry.path / "late").exists()
    assert (entry.path / "a").exists()
    assert [path.name for path in tmp_path.iterdir()] == [key_digest(KEY)]


def test_a_killed_build_leaves_no_entry_and_its_remains_go_at_the_next_build(
    tmp_path: Path,
) -> None:
    script = f"""
import sys, time
from pathlib import Path
from optimizer.artifacts.cache import ArtifactCache
def build(into):
    (into / "half").write_text("x")
    print("building", flush=True)
    time.sleep(600)
ArtifactCache(Path({str(tmp_path)!r})).get_or_build({KEY!r}, build)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"building\n"
        alive = ArtifactCache(tmp_path).get_or_build({"number": 2}, write_two)
        assert [p for p in tmp_path.iterdir() if p.name.startswith(".")], "removed a live build"
        child.send_signal(signal.SIGKILL)
    assert ArtifactCache(tmp_path).get_or_build(KEY, write_two).built
    assert {p.name for p in tmp_path.iterdir()} == {key_digest(KEY), alive.path.parent.name}


@pytest.mark.parametrize("damage", ["truncated", "no JSON", "no object", "no file"])
def test_a_damaged_entry_is_built_anew(tmp_path: Path, damage: str) -> None:
    cache = ArtifactCache(tmp_path)
    entry = cache.get_or_build(KEY, write_two).path.parent
    manifest = entry / "manifest.json"
    if damage == "no file":
        (entry / "files" / "a").unlink()
    else:
        text = manifest.read_text()
        manifest.write_text({"truncated": text[:40], "no JSON": "\0" * 9, "no object": "7"}[damage])
    assert not cache.holds(KEY)
    assert cache.named(entry.name) is None
    assert cache.key_of(entry / "files") is None
    assert cache.entries() == []
    again = cache.get_or_build(KEY, write_two)
    assert again.built
    assert sorted(path.name for path in again.path.iterdir()) == ["a", "sub"]
    assert [path.name for path in tmp_path.iterdir()] == [entry.name]


def test_a_root_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    root = tmp_path / "file"
    root.touch()
    with pytest.raises(StorageError, match=str(root)):
        ArtifactCache(root).get_or_build(KEY, write_two)


def test_entries_say_what_they_are_and_the_latest_used_come_first(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path)
    graph = {"kind": "graph", "precision": "int8"}
    cache.get_or_build(graph, write_two)
    cache.get_or_build({"kind": "openvino", "graph": graph}, write_two)
    reference = cache.get_or_build({"kind": "reference", "graph": "ab12"}, write_two)
    for number, path in enumerate(tmp_path.glob("*/manifest.json")):
        os.utime(path, (number, number))
    cache.get_or_build(graph, never)
    latest, *others = cache.entries()
    assert latest.what == "graph int8"
    assert {entry.what for entry in others} == {"openvino int8", "reference"}
    assert all(entry.size_bytes > len("onetwo") for entry in [latest, *others])
    assert {entry.path for entry in others} > {reference.path.parent}
    assert ArtifactCache(tmp_path / "none").entries() == []


def test_a_cache_that_may_only_be_read_serves_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ArtifactCache(tmp_path)
    cache.get_or_build(KEY, write_two)

    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "utime", refused)
    assert not cache.get_or_build(KEY, never).built


def test_what_is_removed_is_built_anew_and_the_rest_stays(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path)
    cache.get_or_build(KEY, write_two)
    kept = cache.get_or_build({"number": 2}, write_two)
    cache.remove(entry for entry in cache.entries() if entry.path != kept.path.parent)
    assert list(tmp_path.iterdir()) == [kept.path.parent]
    assert cache.get_or_build(KEY, write_two).built
    assert not cache.get_or_build({"number": 2}, never).built


def test_the_command_lists_and_prunes(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path)
    old = cache.get_or_build({"kind": "torch", "precision": "bf16"}, write_two)
    os.utime(old.path.parent / "manifest.json", (0, 0))
    cache.get_or_build({"kind": "graph", "precision": "fp32"}, write_two)

    def said(*arguments: str) -> str:
        ended = CliRunner().invoke(commands, ["cache", "--cache", str(tmp_path), *arguments])
        assert ended.exit_code == 0, ended.output
        return ended.output

    assert "torch bf16" in said()
    assert "1970-01-01 00:00" in said()
    assert f"{tmp_path}: 2 entries, 0.0 MiB" in said()
    pruned = said("--prune", "1h")
    assert pruned.startswith("removed 1 entry, 0.0 MiB\n")
    assert "graph fp32" in pruned
    assert "torch" not in pruned
    assert not old.path.exists()
    assert "removed 0 entries" in said("--prune", "1h")
