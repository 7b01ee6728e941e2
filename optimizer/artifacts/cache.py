"""The artefact cache: a directory of builds, each named by the digest of all that decides it.

    ROOT/DIGEST/manifest.json       key, sha256 of every file, seconds that the build took, facts
                                    that it reported; its modification time is that of last use
    ROOT/DIGEST/files/...           what was built
    ROOT/.building-OWNER            a build in progress, or the remains of one that was killed
    ROOT/timings/NAME.cache         TensorRT's timing cache of a GPU model

An entry appears by one rename, after all of it has been flushed to disk: it is whole or absent. One
whose manifest is damaged, or which lacks a file, is built anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from optimizer.artifacts.shared_cache import SharedCache
from optimizer.errors import RequirementError, UsageError, storage_errors
from optimizer.files.owned_names import owned_name, remove_abandoned

_BUILDING = ".building"

Key = Mapping[str, object]
"""Everything that decides the content of an entry, as JSON values."""

Facts = Mapping[str, float]
"""Figures that a build reports about its files, by name."""


@dataclass(frozen=True)
class CacheEntry:
    """Files that were built.

    Attributes:
        path: directory that holds them and nothing else; read-only by convention.
        sha256: digest over the names and digests of all files.
        seconds: that the build took, including what it had to build first.
        built: whether this call built them.
    """

    path: Path
    sha256: str
    seconds: float
    built: bool
    facts: Facts = field(default_factory=dict)


@dataclass(frozen=True)
class StoredEntry:
    """An entry of the cache, or a timing cache.

    Attributes:
        path: the entry's directory, or the file of a timing cache.
        what: kind, precision and the batch sizes of an engine, for people.
        used_at: time of last use, in seconds since the epoch.
    """

    path: Path
    what: str
    size_bytes: int
    build_seconds: float
    used_at: float


class ArtifactCache:
    """Builds what is missing; safe against kills and against concurrent builds of the same entry.

    Args:
        root: directory of the entries; created when needed.
        shared: entries of other hosts, which are fetched before they are built, and receive what is
            built here; None without any.
    """

    def __init__(self, root: Path, shared: SharedCache | None = None) -> None:
        self.root = root
        self.shared = shared

    def __str__(self) -> str:
        shared = f", shared at {self.shared.shown}" if self.shared is not None else ""
        return f"{self.root}{shared}"

    @property
    def timings(self) -> Path:
        """Folder of TensorRT's timing caches."""
        return self.root / "timings"

    def holds(self, key: Key) -> bool:
        """Return whether the entry of `key` is cached."""
        return _is_whole(self.root / key_digest(key))

    def find(self, sha256: str) -> tuple[CacheEntry, Key] | None:
        """Return the entry whose content has this digest, and its key; None where there is none."""
        for path in self._manifests():
            manifest = json.loads(path.read_text())
            if key_digest(manifest["files"]) == sha256:
                return _read(path.parent, built=False), manifest["key"]
        return None

    def named(self, digest: str) -> Path | None:
        """Return the files of the entry whose key has this digest; None where there is none."""
        entry = self.root / digest
        return entry / "files" if _is_whole(entry) else None

    def key_of(self, files: Path) -> Key | None:
        """Return the key of the entry with these files; None where they are not of this cache."""
        entry = files.parent
        if entry.parent != self.root or not _is_whole(entry):
            return None
        key: Key = json.loads((entry / "manifest.json").read_text())["key"]
        return key

    def file_digests(self) -> set[str]:
        """Return the sha256 of every file of every entry. Raises StorageError."""
        with storage_errors(self.root):
            manifests = [json.loads(path.read_text()) for path in self._manifests()]
        return {sha256 for manifest in manifests for sha256 in manifest["files"].values()}

    def require_own(self) -> None:
        """Check that no other user can have written what is in the cache, or change it.

        Raises:
            UsageError: where the cache belongs to another user, or everybody may write to it.
            StorageError: when it cannot be read.
        """
        with storage_errors(self.root):
            for path in (self.root, *self.root.glob("*/")) if self.root.exists() else ():
                _require_own(path, self.root)

    def get_or_build(self, key: Key, build: Callable[[Path], Facts | None]) -> CacheEntry:
        """Return the entry of `key`; where it is missing, have `build(directory)` fill it first.

        The facts that `build` returns are stored with the files.

        Raises:
            StorageError: when the cache, or the shared one, cannot be used.
        """
        final = self.root / key_digest(key)
        with storage_errors(self.root):
            built = not _is_whole(final) and self._add(key, build, final)
            if self.shared is not None:
                self.shared.store(final.name, final)
            with suppress(OSError):  # a read-only cache cannot store the time of use
                os.utime(final / "manifest.json")
            return _read(final, built=built)

    def entries(self) -> list[StoredEntry]:
        """Return all entries, the most recently used first. Raises StorageError."""
        with storage_errors(self.root):
            entries = [_stored(path.parent) for path in self._manifests()]
        return sorted(entries, key=lambda entry: entry.used_at, reverse=True)

    def unused_timings(self, oldest: float) -> list[StoredEntry]:
        """Return timing caches not rewritten by a build since `oldest`, in seconds since the epoch.

        Raises:
            StorageError: when they cannot be read.
        """
        with storage_errors(self.root):
            files = [(path, path.stat()) for path in self.timings.glob("*.cache")]
        return [
            StoredEntry(path, "tensorrt timings", status.st_size, 0.0, status.st_mtime)
            for path, status in files
            if status.st_mtime < oldest
        ]

    def remove(self, entries: Iterable[StoredEntry]) -> None:
        """Remove entries atomically, and the remains of killed builds. Raises StorageError."""
        with storage_errors(self.root):
            for entry in entries:
                self._discard(entry.path)
            remove_abandoned(self.root, _BUILDING)

    def _manifests(self) -> list[Path]:
        """Return the manifests of the entries that can be used."""
        return sorted(p for p in self.root.glob("*/manifest.json") if _is_whole(p.parent))

    def _discard(self, path: Path) -> None:
        """Remove an entry or a timing cache: it is whole until it is gone."""
        discarded = self._temporary_path()
        path.rename(discarded)
        if discarded.is_dir():
            shutil.rmtree(discarded)
        else:
            discarded.unlink()

    def _temporary_path(self) -> Path:
        """Return a name that is recognised as remains once this process has ended."""
        return self.root / owned_name(_BUILDING)

    def _add(self, key: Key, build: Callable[[Path], Facts | None], final: Path) -> bool:
        """Add an entry, in the place of a damaged one; return whether it had to be built."""
        # Whatever the umask is, nobody else gets into a new cache.
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_abandoned(self.root, _BUILDING)
        if final.exists() and not _is_whole(final):
            self._discard(final)
        temporary = self._temporary_path()
        try:
            fetched = self.shared is not None and _fetch(self.shared, key, temporary)
            if not fetched:
                _build(key, build, temporary)
            _publish(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return not fetched


def _require_own(path: Path, root: Path) -> None:
    status = path.stat()
    if status.st_uid not in (os.geteuid(), 0):
        rule = f"must belong to you or to root, and belongs to user {status.st_uid}"
    elif status.st_mode & stat.S_IWOTH and root.stat().st_mode & stat.S_IXOTH:
        rule = f"must not be writable for everybody, and has mode {stat.S_IMODE(status.st_mode):o}"
    else:
        return
    raise UsageError(
        f"artefact cache {root}: {path} {rule}: its files run on this machine; give another folder "
        "with --cache, or correct its owner and mode"
    )


def key_digest(key: Key) -> str:
    """Return the sha256 of the canonical JSON of `key`, as hex digits."""
    text = json.dumps(key, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def content_digest(root: Path, files: Iterable[Path]) -> str:
    """Return `CacheEntry.sha256` of files below `root`."""
    return key_digest({path.relative_to(root).as_posix(): file_digest(path) for path in files})


def versions(*packages: str) -> dict[str, str]:
    """Return the installed version of each package, by name, without importing it.

    Raises:
        RequirementError: when one is not installed.
    """
    try:
        return {package: version(package) for package in packages}
    except PackageNotFoundError as error:
        raise RequirementError(
            f"building artefacts needs {error.name}: install it with pip"
        ) from error


FileState = tuple[int, int, int]


def file_state(path: Path) -> FileState:
    """Return inode, size in bytes and modification time in ns, which change with the content."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's content, as hex digits; an unchanged file is read once."""
    return _digest(path, file_state(path))


@lru_cache(maxsize=1024)
def _digest(path: Path, _state: FileState) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(shared: SharedCache, key: Key, entry: Path) -> bool:
    """Fetch an entry; return False, and leave nothing of it, where that cannot be."""
    (entry / "files").mkdir(parents=True)
    fetched = shared.fetch(key_digest(key), key, entry)
    if not fetched:
        shutil.rmtree(entry)
    return fetched


def _build(key: Key, build: Callable[[Path], Facts | None], entry: Path) -> None:
    (entry / "files").mkdir(parents=True)
    started = time.monotonic()
    facts = build(entry / "files")
    _write_manifest(entry, key, time.monotonic() - started, facts or {})


def _is_whole(entry: Path) -> bool:
    """Return whether an entry can be read and has all of its files; their content is not read."""
    try:
        files = json.loads((entry / "manifest.json").read_text())["files"]
        return all((entry / "files" / name).is_file() for name in files)
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _read(final: Path, *, built: bool) -> CacheEntry:
    manifest = json.loads((final / "manifest.json").read_text())
    sha256 = key_digest(manifest["files"])
    facts = manifest.get("facts", {})
    return CacheEntry(final / "files", sha256, manifest["build_seconds"], built, facts)


def _stored(path: Path) -> StoredEntry:
    manifest = json.loads((path / "manifest.json").read_text())
    key = manifest["key"]
    graph = key.get("graph")
    precision = key.get("precision") or (graph.get("precision") if isinstance(graph, dict) else "")
    return StoredEntry(
        path=path,
        what=" ".join(filter(None, [key.get("kind"), precision, _batch_range(key.get("batch"))])),
        size_bytes=sum(f.stat().st_size for f in path.rglob("*") if f.is_file()),
        build_seconds=manifest["build_seconds"],
        used_at=(path / "manifest.json").stat().st_mtime,
    )


def _batch_range(batch: list[int] | None) -> str | None:
    """Return an engine's optimal and largest batch size, as in `ArtifactSpec.label`."""
    return f"batch {batch[0]}..{batch[1]}" if batch is not None else None


def _write_manifest(entry: Path, key: Key, seconds: float, facts: Facts) -> None:
    root = entry / "files"
    files = sorted(path for path in root.rglob("*") if path.is_file())
    digests = {path.relative_to(root).as_posix(): file_digest(path) for path in files}
    manifest = {
        "key": key,
        "files": digests,
        "build_seconds": round(seconds, 3),
        "facts": dict(facts),
    }
    (entry / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True))


def _publish(temporary: Path, final: Path) -> None:
    for path in [*temporary.rglob("*"), temporary]:
        _sync(path)
    try:
        temporary.rename(final)
    except OSError:
        # Another process was first: its entry has the same key.
        if not final.is_dir():
            raise
    _sync(final.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
