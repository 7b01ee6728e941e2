"""model.tar.gz as SageMaker unpacks it: the models' folders, and nothing else at the top."""

from __future__ import annotations

import gzip
import hashlib
import tarfile
from collections.abc import Sequence
from pathlib import Path

from optimizer.errors import storage_errors


def write_model_archive(repository: Path, models: Sequence[str], target: Path) -> str:
    """Pack the models of a repository; the same files always give the same bytes.

    No time, owner or path of this machine gets into it.

    Returns:
        The archive's SHA-256, in hex digits.

    Raises:
        StorageError: when it cannot be written.
    """
    with storage_errors(target):
        with (
            target.open("wb") as written,
            gzip.GzipFile("", "wb", fileobj=written, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for model in sorted(models):
                for path in (repository / model, *sorted((repository / model).rglob("*"))):
                    _add(archive, path, path.relative_to(repository).as_posix())
        with target.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    entry = tarfile.TarInfo(name)
    if path.is_dir():
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(entry)
        return
    entry.size, entry.mode = path.stat().st_size, 0o644
    with path.open("rb") as content:
        archive.addfile(entry, content)
