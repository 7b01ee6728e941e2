"""The artefact cache that hosts share, on file systems of fsspec."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pytest

from optimizer.artifacts.cache import ArtifactCache, key_digest
from optimizer.artifacts.shared_cache import SharedCache
from optimizer.commands.run_context import artifact_cache
from optimizer.errors import RequirementError, StorageError, UsageError

KEY = {"kind": "test", "number": 1}
DIGEST = key_digest(KEY)


def write_two(into: Path) -> dict[str, float]:
    (into / "a").write_text("one")
    (into / "sub").mkdir()
    (into / "sub" / "b").write_text("two")
    return {"share": 0.5}


def never(into: Path) -> None:
    raise AssertionError(f"{into} must not be built")


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path}/shared"
    fsspec.filesystem("memory").store.clear()
    return "memory://bucket/shared"


def host(folder: Path, url: str) -> ArtifactCache:
    """The cache of a host, with the shared one behind it."""
    return ArtifactCache(folder, SharedCache(url))


def stored(url: str) -> dict[str, bytes]:
    """Every file of a shared cache by its path."""
    files, root = fsspec.core.url_to_fs(url)
    return {path.removeprefix(root): files.cat_file(path) for path in files.find(root)}


def damage(url: str, part: str, content: bytes) -> None:
    files, root = fsspec.core.url_to_fs(url)
    [path] = [each for each in files.find(root) if part in each]
    files.pipe_file(path, content)


def test_what_one_host_built_another_fetches(tmp_path: Path, url: str) -> None:
    built = host(tmp_path / "1", url).get_or_build(KEY, write_two)
    fetched = host(tmp_path / "2", url).get_or_build(KEY, never)
    assert (built.built, fetched.built) == (True, False)
    assert (fetched.path / "sub" / "b").read_text() == "two"
    assert (fetched.sha256, fetched.seconds, fetched.facts) == (
        built.sha256,
        built.seconds,
        {"share": 0.5},
    )
    assert fetched.path.is_relative_to(tmp_path / "2")


def test_what_was_built_before_is_shared_once_it_is_used(tmp_path: Path, url: str) -> None:
    ArtifactCache(tmp_path / "1").get_or_build(KEY, write_two)
    assert not host(tmp_path / "1", url).get_or_build(KEY, never).built
    assert not host(tmp_path / "2", url).get_or_build(KEY, never).built


def test_no_upload_is_left_and_files_are_named_by_content(tmp_path: Path, url: str) -> None:
    host(tmp_path / "1", url).get_or_build(KEY, write_two)
    host(tmp_path / "1", url).get_or_build({"number": 2}, write_two)
    names = [name.split("/")[1] for name in stored(url)]
    assert sorted(names) == ["entries", "entries", "files", "files"]


def test_two_that_build_at_once_leave_one_whole_entry(tmp_path: Path, url: str) -> None:
    """Builds need not be the same to the byte: the files of one of them are what is fetched."""

    def overtaken(into: Path) -> None:
        host(tmp_path / "1", url).get_or_build(KEY, write_two)
        (into / "a").write_text("another")

    own = host(tmp_path / "2", url).get_or_build(KEY, overtaken)
    assert own.built
    third = host(tmp_path / "3", url).get_or_build(KEY, never)
    assert third.sha256 == host(tmp_path / "1", url).get_or_build(KEY, never).sha256


@pytest.mark.parametrize(
    ("part", "content"),
    [
        ("/files/", b"other bytes"),
        ("/entries/", b"{"),
        ("/entries/", b"[]"),
        ("/entries/", json.dumps({"key": {}, "files": {}, "build_seconds": 1}).encode()),
        (
            "/entries/",
            json.dumps({"key": KEY, "files": {"../../x": "0"}, "build_seconds": 1}).encode(),
        ),
        (
            "/entries/",
            json.dumps({"key": KEY, "files": {"x": "absent"}, "build_seconds": 1}).encode(),
        ),
    ],
)
def test_a_damaged_entry_is_built_and_shared_again(
    tmp_path: Path, url: str, part: str, content: bytes
) -> None:
    def write_one(into: Path) -> None:
        (into / "a").write_text("one")

    host(tmp_path / "1", url).get_or_build(KEY, write_one)
    damage(url, part, content)
    again = host(tmp_path / "2", url).get_or_build(KEY, write_one)
    assert again.built
    assert (again.path / "a").read_text() == "one"
    assert sorted(path.name for path in again.path.iterdir()) == ["a"]
    assert [path.name for path in (tmp_path / "2").iterdir()] == [DIGEST]
    assert not host(tmp_path / "3", url).get_or_build(KEY, never).built, "it is whole again"


def test_a_file_system_that_fails_is_named_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise ConnectionRefusedError("no route to ftp://me:s3cret@host")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "exists", fail)
    url = "memory://me:s3cret@bucket"
    with pytest.raises(StorageError) as failed:
        host(tmp_path / "1", url).get_or_build(KEY, write_two)
    message = str(failed.value)
    assert "artefact cache memory://me:***@bucket cannot be used: ConnectionRefusedError" in message
    assert "check its address, the credentials and the network" in message
    assert "s3cret" not in message
    assert "s3cret" not in repr(SharedCache(url))
    assert failed.value.__cause__ is None


def test_a_protocol_that_nobody_knows_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--cache: nowhere://x cannot be used: Protocol not known"):
        host(tmp_path, "nowhere://x").get_or_build(KEY, write_two)


def test_a_protocol_whose_library_is_missing_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(RequirementError, match=r"--cache: oci://x needs .*: .*ocifs"):
        host(tmp_path, "oci://x").get_or_build(KEY, write_two)


def test_a_url_is_shared_behind_the_folder_of_this_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = artifact_cache("s3://bucket/folder")
    assert cache.root == tmp_path / "triton-cost-optimizer"
    assert str(cache) == f"{cache.root}, shared at s3://bucket/folder"
    assert artifact_cache(tmp_path).shared is None
