"""A directory of things built once, each named by the digest of everything that decides it.

    ROOT/DIGEST/manifest.json       key, sha256 of every file, seconds that the build took, facts
                                    that it reported; its time of change is when the entry was
                                    last asked for
    ROOT/DIGEST/files/...           what was built
    ROOT/.building-HOST-PID-RANDOM  a build under way, or the remains of one that was killed
    ROOT/timings/NAME.cache         what TensorRT has timed on a GPU model, for its next builds

An entry appears by one rename, after everything in it has reached the disk: it is whole or absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from optimizer.errors import RequirementError, storage_errors

Key = Mapping[str, object]
"""Everything that decides the content of an entry, as JSON values."""

Facts = Mapping[str, float]
"""Figures that a build reports of its files, by name."""


@dataclass(frozen=True)
class CacheEntry:
    """Files that were built.

    Attributes:
        path: directory that holds them and nothing else; read only by convention.
        sha256: digest over the names and digests of all files.
        seconds: that the build took, including what it had to build first.
        built: whether this call built them; False when they were there already.
        facts: figures that the build reported.
    """

    path: Path
    sha256: str
    seconds: float
    built: bool
    facts: Facts = field(default_factory=dict)


@dataclass(frozen=True)
class StoredEntry:
    """An entry as it lies in the cache.

    Attributes:
        path: its directory, named by its digest; of a timing cache, its file.
        what: kind, precision and, of an engine, its batch sizes; for people.
        size_bytes: of all its files.
        build_seconds: that the build took.
        used_at: when it was last asked for, in seconds since the epoch.
    """

    path: Path
    what: str
    size_bytes: int
    build_seconds: float
    used_at: float


class ArtifactCache:
    """Builds what is missing; safe against kills and against other processes building the same.

    Args:
        root: directory of the entries; made where it is missing.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def timings(self) -> Path:
        """Folder of TensorRT's timing caches; not made here."""
        return self.root / "timings"

    def holds(self, key: Key) -> bool:
        """Whether the entry of `key` is there."""
        return (self.root / key_digest(key) / "manifest.json").exists()

    def find(self, sha256: str) -> tuple[CacheEntry, Key] | None:
        """The entry whose content has this digest, and its key; None where there is none."""
        for path in sorted(self.root.glob("*/manifest.json")):
            manifest = json.loads(path.read_text())
            if key_digest(manifest["files"]) == sha256:
                return _read(path.parent, built=False), manifest["key"]
        return None

    def named(self, digest: str) -> Path | None:
        """The files of the entry whose key has this digest; None where there is none."""
        entry = self.root / digest
        return entry / "files" if (entry / "manifest.json").exists() else None

    def get_or_build(self, key: Key, build: Callable[[Path], Facts | None]) -> CacheEntry:
        """Return the entry of `key`, after `build(directory)` has filled it where it is missing.

        What `build` returns is kept beside the files.

        Raises:
            StorageError: when the cache cannot be written.
        """
        final = self.root / key_digest(key)
        with storage_errors(self.root):
            built = not (final / "manifest.json").exists()
            if built:
                self._build(key, build, final)
            with suppress(OSError):  # one that may only be read keeps no time
                os.utime(final / "manifest.json")
            return _read(final, built=built)

    def entries(self) -> list[StoredEntry]:
        """Everything that is stored, the latest used first. Raises StorageError."""
        with storage_errors(self.root):
            found = [_stored(path.parent) for path in self.root.glob("*/manifest.json")]
        return sorted(found, key=lambda entry: entry.used_at, reverse=True)

    def unused_timings(self, oldest: float) -> list[StoredEntry]:
        """Timing caches that no build has written since `oldest`, in seconds since the epoch.

        Every build writes its own anew. Raises StorageError.
        """
        with storage_errors(self.root):
            found = [_stored_timing(path) for path in self.timings.glob("*.cache")]
        return [timing for timing in found if timing.used_at < oldest]

    def remove(self, entries: Iterable[StoredEntry]) -> None:
        """Remove entries, each at once, and what killed builds have left. Raises StorageError."""
        with storage_errors(self.root):
            for entry in entries:
                going = self._fresh()
                entry.path.rename(going)
                if going.is_dir():
                    shutil.rmtree(going)
                else:
                    going.unlink()
            self._remove_remains()

    def _fresh(self) -> Path:
        """A name that is taken for the remains of this process once it has ended."""
        return self.root / f"{_prefix()}{os.getpid()}-{uuid.uuid4().hex[:8]}"

    def _build(self, key: Key, build: Callable[[Path], Facts | None], final: Path) -> None:
        self._remove_remains()
        fresh = self._fresh()
        (fresh / "files").mkdir(parents=True)
        try:
            started = time.monotonic()
            facts = build(fresh / "files")
            _write_manifest(fresh, key, time.monotonic() - started, facts or {})
            _publish(fresh, final)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def _remove_remains(self) -> None:
        for path in self.root.glob(f"{_prefix()}*"):
            if not _alive(int(path.name.rsplit("-", 2)[1])):
                shutil.rmtree(path, ignore_errors=True)


def key_digest(key: Key) -> str:
    """Sha256 of the canonical JSON of `key`, as hex digits."""
    text = json.dumps(key, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def content_digest(root: Path, files: Iterable[Path]) -> str:
    """`CacheEntry.sha256` of these files, which lie below `root`."""
    return key_digest({path.relative_to(root).as_posix(): file_digest(path) for path in files})


def versions(*packages: str) -> dict[str, str]:
    """Return the installed version of each package, by name, without importing it.

    Raises:
        RequirementError: when one is not installed.
    """
    return {package: _version(package) for package in packages}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError as error:
        raise RequirementError(
            f"building artefacts needs {package}: install it with pip"
        ) from error


FileState = tuple[int, int, int]


def file_state(path: Path) -> FileState:
    """Inode, size in bytes and time of change in ns: another one means another content."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def file_digest(path: Path) -> str:
    """Sha256 of a file's content, as hex digits; gigabytes are read once, not for every key."""
    return _digest(path, file_state(path))


@lru_cache(maxsize=1024)
def _digest(path: Path, _state: FileState) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _prefix() -> str:
    # A cache may be shared between machines, and a process id means nothing on another one.
    return f".building-{socket.gethostname()}-"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


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
    """Of an engine: the batch that it is fastest for, and the largest; as `ArtifactSpec.label`."""
    return f"batch {batch[0]}..{batch[1]}" if batch is not None else None


def _stored_timing(file: Path) -> StoredEntry:
    status = file.stat()
    return StoredEntry(file, "tensorrt timings", status.st_size, 0.0, status.st_mtime)


def _write_manifest(fresh: Path, key: Key, seconds: float, facts: Facts) -> None:
    root = fresh / "files"
    files = sorted(path for path in root.rglob("*") if path.is_file())
    digests = {path.relative_to(root).as_posix(): file_digest(path) for path in files}
    manifest = {
        "key": key,
        "files": digests,
        "build_seconds": round(seconds, 3),
        "facts": dict(facts),
    }
    (fresh / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True))


def _publish(fresh: Path, final: Path) -> None:
    for path in [*fresh.rglob("*"), fresh]:
        _sync(path)
    try:
        fresh.rename(final)
    except OSError:
        # Another process was first; its entry has the same key, so it will do.
        if not final.is_dir():
            raise
    _sync(final.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
