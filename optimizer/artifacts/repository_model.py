"""A model of an existing Triton repository, whose files are served as they are.

A configuration that its owner leaves to the server is completed in the copy. The model that joins
the steps of a generated pipeline is written in the same form.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from optimizer.artifacts.build_context import BuildContext
from optimizer.artifacts.cache import CacheEntry, Key, file_digest
from optimizer.configuration.serving_config import ArtifactSpec
from optimizer.errors import BuildFailure, cause_text
from optimizer.files.shipped import shipped
from optimizer.triton.deployed_config import CONFIG_FILE
from optimizer.triton.model_code import COMPILED, files_below
from optimizer.triton.model_config import to_text
from optimizer.triton.pipeline_config import pipeline_config
from optimizer.workload.model_spec import ModelSpec, PipelineSource, RepositorySource


@dataclass(frozen=True)
class RepositoryBuilder:
    """Copies the model's folder, so that a later change of the repository cannot change a study."""

    def key(self, spec: ArtifactSpec, context: BuildContext) -> Key:
        """Return the digests of all files of the model."""
        if isinstance(context.model.source, PipelineSource):
            files = _generated(context.model, context.model.source)
            return {"kind": "repository", "generated": files}
        source = _source(context)
        try:
            files = {
                path.relative_to(source.folder).as_posix(): file_digest(path)
                for path in _files(source.folder)
            }
        except OSError as error:
            raise BuildFailure(f"{spec.label}: {cause_text(error)}") from error
        completed = {"completed": source.completed} if source.completed else {}
        return {"kind": "repository", "files": files, **completed}

    def entry(self, spec: ArtifactSpec, context: BuildContext) -> CacheEntry:
        """Return a copy of the model's folder, its configuration complete."""

        def build(into: Path) -> None:
            if isinstance(context.model.source, PipelineSource):
                _write(_generated(context.model, context.model.source), into)
            else:
                _copy(_source(context), into)

        return context.cache.get_or_build(self.key(spec, context), build)

    def maker(self, entry: CacheEntry) -> str:
        """Return that the files are the owner's."""
        return "the model repository"


def _generated(model: ModelSpec, source: PipelineSource) -> dict[str, str]:
    """Return the content of each file of the model that joins the steps of a pipeline."""
    files = {CONFIG_FILE: to_text(pipeline_config(model, source))}
    if source.kind == "bls":
        template = shipped("model_repository_templates") / "bls" / "model.py"
        files["1/model.py"] = template.read_text()
    return files


def _write(files: Mapping[str, str], into: Path) -> None:
    for name, content in files.items():
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        (into / name).write_text(content, newline="")


def _source(context: BuildContext) -> RepositorySource:
    source = context.model.source
    assert isinstance(source, RepositorySource), "the runtime belongs to this source"
    return source


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in files_below(folder) if COMPILED not in path.parts)


def _copy(source: RepositorySource, into: Path) -> None:
    for path in _files(source.folder):
        target = into / path.relative_to(source.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    if source.completed:
        (into / CONFIG_FILE).unlink(missing_ok=True)
        (into / CONFIG_FILE).write_text(source.completed, newline="")
