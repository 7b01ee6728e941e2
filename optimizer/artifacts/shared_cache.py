"""The artefact cache that several hosts share, on any file system of fsspec: S3, GCS, a folder.

    URL/entries/DIGEST.json     manifest of an entry, as in the cache of a host
    URL/files/SHA256            a file, named by its content
    URL/uploads/RANDOM          an upload in progress, or the remains of one that was cut off

Files are uploaded before the manifest that names them, each under another name first, so that
whoever reads a manifest finds whole files. Hosts that build the same entry at once upload different
files, of which the last manifest names one set.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from optimizer.errors import OptimizerError, RequirementError, StorageError, UsageError, cause_text
from optimizer.files.credentials import without_credentials

_SHA256 = re.compile(r"[0-9a-f]{64}")

_log = logging.getLogger(__name__)


class _DamagedEntryError(Exception):
    """An entry is not what its manifest, or its name, says."""


@dataclass(frozen=True)
class SharedCache:
    """Entries of the artefact cache at a URL of fsspec, such as s3://BUCKET/FOLDER.

    Raises:
        RequirementError: by every method, where the library of the URL's protocol is not installed.
        StorageError: by every method, where the file system cannot be used.
    """

    url: str = field(repr=False)

    @property
    def shown(self) -> str:
        """The URL without credentials."""
        return without_credentials(self.url)

    def fetch(self, digest: str, key: Mapping[str, object], entry: Path) -> bool:
        """Copy an entry and verify it; return False where there is none, or a damaged one.

        Args:
            digest: of `key`.
            key: of the entry, as JSON values.
            entry: existing directory, which is incomplete where the result is False.
        """
        with self._errors():
            listed = self._path("entries", f"{digest}.json")
            if not self._files.exists(listed):
                return False
            try:
                manifest = _manifest(self._files.cat_file(listed), key)
                for name, sha256 in manifest["files"].items():
                    self._fetch_file(sha256, entry / "files" / _safe(name))
            except (_DamagedEntryError, FileNotFoundError) as error:
                _log.warning("%s, entry %s: %s; it is built again", self.shown, digest, error)
                # Whoever builds it again uploads it again.
                with suppress(FileNotFoundError):
                    self._files.rm_file(listed)
                return False
        (entry / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True))
        return True

    def store(self, digest: str, entry: Path) -> None:
        """Upload an entry of this host's cache, unless it is there already."""
        with self._errors():
            if self._files.exists(self._path("entries", f"{digest}.json")):
                return
            manifest = json.loads((entry / "manifest.json").read_text())
            for name, sha256 in manifest["files"].items():
                if not self._files.exists(self._path("files", sha256)):
                    self._upload(entry / "files" / name, self._path("files", sha256))
            self._upload(entry / "manifest.json", self._path("entries", f"{digest}.json"))

    def _fetch_file(self, sha256: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._files.get_file(self._path("files", sha256), str(path))
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            self._files.rm_file(self._path("files", sha256))
            raise _DamagedEntryError(f"file {path.name} must have sha256 {sha256}, got {found}")

    def _upload(self, file: Path, target: str) -> None:
        temporary = self._path("uploads", uuid.uuid4().hex)
        for path in (temporary, target):
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._files.put_file(str(file), temporary)
        self._files.mv(temporary, target)

    def _path(self, *parts: str) -> str:
        return "/".join([self._opened[1].rstrip("/"), *parts])

    @property
    def _files(self) -> Any:
        return self._opened[0]

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system, and the path of the cache on it."""
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise RequirementError(
                "an artefact cache at a URL needs fsspec",
                "pip install 'triton-cost-optimizer[cluster]'",
            ) from error
        try:
            files, root = url_to_fs(self.url)
        except ValueError as error:
            reason = without_credentials(str(error))
            raise UsageError(f"--cache: {self.shown} cannot be used: {reason}") from None
        except ImportError as error:
            raise RequirementError(
                f"--cache: {self.shown} needs a further library", without_credentials(str(error))
            ) from None
        return files, str(root)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise errors of any file system as `StorageError`, without what may have credentials."""
        try:
            yield
        except OptimizerError:
            raise
        except Exception as error:  # noqa: BLE001 - any library's, of any protocol
            raise StorageError(
                f"artefact cache {self.shown} cannot be used: "
                f"{without_credentials(cause_text(error))}; check its address, the credentials "
                "and the network, or name a folder of this machine with --cache"
            ) from None


def _manifest(content: bytes, key: Mapping[str, object]) -> Mapping[str, Any]:
    """Return the manifest of the entry of `key`."""
    try:
        manifest = json.loads(content)
        files = {str(name): _digest(sha256) for name, sha256 in manifest["files"].items()}
        seconds, same = float(manifest["build_seconds"]), manifest["key"] == _as_json(key)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _DamagedEntryError(f"the manifest cannot be read: {error!r}") from error
    if not same:
        raise _DamagedEntryError("the manifest is that of another entry")
    return {**manifest, "files": files, "build_seconds": seconds}


def _as_json(key: Mapping[str, object]) -> object:
    """Return a key as it is read back: tuples are lists."""
    return json.loads(json.dumps(key))


def _digest(sha256: object) -> str:
    """Return a digest, which names a file of the cache and must not lead to another."""
    if not isinstance(sha256, str) or _SHA256.fullmatch(sha256) is None:
        raise _DamagedEntryError(f"a sha256 must have 64 hexadecimal digits, got {sha256!r}")
    return sha256


def _safe(name: str) -> PurePosixPath:
    """Return the name of a file, which must not lead out of the entry."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise _DamagedEntryError(f"a file must be below the entry, got {name!r}")
    return path
