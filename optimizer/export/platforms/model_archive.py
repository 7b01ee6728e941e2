"""model.tar.gz as SageMaker unpacks it: the folders of the models, and what Triton reads there."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from optimizer.errors import storage_errors
from optimizer.export.bundle.engine_sources import GRAPH, RECIPE
from optimizer.export.bundle.manifest import EXAMPLES

_NOT_SERVED = {GRAPH, RECIPE, EXAMPLES}
"""What lies in a model's folder for whoever checks it, or builds its engine anew."""


def write_model_archive(repository: Path, models: Sequence[str], target: Path) -> None:
    """Pack the models of a repository; the same files always give the same bytes.

    No time, owner or path of this machine gets into it.

    Raises:
        StorageError: when it cannot be written.
    """
    with (
        storage_errors(target),
        target.open("wb") as written,
        gzip.GzipFile("", "wb", fileobj=written, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for model in sorted(models):
            for path in _served(repository / model):
                _add(archive, path, path.relative_to(repository).as_posix())


def _served(model: Path) -> Iterator[Path]:
    """The model's folder, and everything in it that Triton reads, in the order of their paths."""
    yield model
    for path in sorted(model.iterdir()):
        if path.name not in _NOT_SERVED:
            yield path
            yield from sorted(path.rglob("*"))


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    entry = tarfile.TarInfo(name)
    if path.is_dir():
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(entry)
        return
    entry.size, entry.mode = path.stat().st_size, 0o644
    with path.open("rb") as content:
        archive.addfile(entry, content)
