"""A model of an existing Triton repository, whose files are served as they are."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from optimizer.artifacts.build_context import BuildContext
from optimizer.artifacts.cache import CacheEntry, Key, file_digest
from optimizer.configuration.serving_config import ArtifactSpec
from optimizer.errors import BuildFailure, cause_text
from optimizer.workload.model_spec import RepositorySource

_COMPILED = "__pycache__"


@dataclass(frozen=True)
class RepositoryBuilder:
    """Copies the model's folder, so that a later change of the repository cannot change a study."""

    def key(self, spec: ArtifactSpec, context: BuildContext) -> Key:
        """Return the digests of all files of the model."""
        folder = _folder(context)
        try:
            files = {p.relative_to(folder).as_posix(): file_digest(p) for p in _files(folder)}
        except OSError as error:
            raise BuildFailure(f"{spec.label}: {cause_text(error)}") from error
        return {"kind": "repository", "files": files}

    def entry(self, spec: ArtifactSpec, context: BuildContext) -> CacheEntry:
        """Return a copy of the model's folder."""
        return context.cache.get_or_build(
            self.key(spec, context), lambda into: _copy(_folder(context), into)
        )

    def maker(self, entry: CacheEntry) -> str:
        """Return that the files are the owner's."""
        return "the model repository"


def _folder(context: BuildContext) -> Path:
    source = context.model.source
    assert isinstance(source, RepositorySource), "the runtime belongs to this source"
    return source.folder


def _files(folder: Path) -> list[Path]:
    # A version may be a link to a folder, which rglob does not enter.
    walked = os.walk(folder, followlinks=True)
    files = (Path(parent) / name for parent, _, names in walked for name in names)
    return sorted(path for path in files if path.is_file() and _COMPILED not in path.parts)


def _copy(folder: Path, into: Path) -> None:
    for path in _files(folder):
        target = into / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
