"""Model files of a study's configurations, in its own folder or in the artefact cache."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.analysis.study_reading import StudyReading
from optimizer.artifacts.cache import ArtifactCache, content_digest
from optimizer.artifacts.engines.builder import read_facts
from optimizer.configuration.serving_config import ArtifactSpec
from optimizer.errors import StorageError, UsageError, storage_errors
from optimizer.study.files import read_prepared
from optimizer.triton.model_config import outputs_of_config
from optimizer.triton.repository import MODEL_CODE, link, read_config
from optimizer.triton.session import ModelFiles
from optimizer.workload.streams import OutputTensor


@dataclass(frozen=True)
class EngineSource:
    """The source of a TensorRT engine: the folder of its graph, and its recipe as JSON."""

    graph: Path
    recipe: Mapping[str, Any]


@dataclass(frozen=True)
class StoredArtifact:
    """The files of one artefact.

    Attributes:
        sha256: digest of their content in the study.
        source: of an engine, if the artefact cache still has it.
    """

    files: ModelFiles
    sha256: str
    source: EngineSource | None


class StudyArtifacts:
    """Finds the model files of a study's configurations.

    Args:
        cache: may differ from the cache of the study's run.
        staging: an empty folder for links to model files.
    """

    def __init__(self, study: StudyReading, cache: ArtifactCache, staging: Path) -> None:
        self._study = study
        self._cache = cache
        self._staging = staging

    def find(self, spec: ArtifactSpec) -> StoredArtifact:
        """Return the files of an artefact, found by their content.

        Raises:
            UsageError: where they are gone, or the study has not finished.
            StorageError: when the study's files are damaged.
        """
        sha256 = self._sha256(spec)
        cached = self._cache.find(sha256)
        path = next(self._exported(spec, sha256), None)
        if path is None and cached is not None:
            path = cached[0].path
        if path is None:
            raise UsageError(
                f"the files of {spec.label} (sha256 {sha256[:12]}) are neither in "
                f"{self._study.directory.root} nor in the artefact cache {self._cache.root}: give "
                "the --cache that the study was run with, or run the study again"
            )
        payloads = self._study.searched.payloads_of(spec.model)
        facts = read_facts(path)
        files = ModelFiles(path, payloads, self._outputs(spec.model), facts)
        source = self._source(cached[1]) if facts is not None and cached is not None else None
        return StoredArtifact(files, sha256, source)

    def _sha256(self, spec: ArtifactSpec) -> str:
        directory = self._study.directory
        try:
            rows = read_prepared(directory)["artifacts"]
            return str({row["artifact"]: row["sha256"] for row in rows}[spec.label])
        except (KeyError, TypeError) as error:
            raise StorageError(
                f"cannot read {directory.prepared}: it does not list {spec.label}"
            ) from error

    def _exported(self, spec: ArtifactSpec, sha256: str) -> Iterator[Path]:
        """Yield a folder of links to an artefact's files in best/ or baseline/, if present."""
        directory = self._study.directory
        for root in (directory.best, directory.baseline):
            version = root / spec.model / "1"
            # A server that was started by hand leaves compiled Python in a folder there.
            files = [path for path in version.glob("*") if path.is_file()]
            own = [path for path in files if path.name not in MODEL_CODE]
            if not own or content_digest(version, own) != sha256:
                continue
            folder = self._staging / spec.model
            with storage_errors(folder):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                for path in own:
                    link(path, folder / path.name)
            yield folder

    def _outputs(self, model: str) -> tuple[OutputTensor, ...]:
        """Return the model's outputs, which are the same in every configuration."""
        path = self._study.directory.baseline / model / "config.pbtxt"
        if not path.exists():
            raise UsageError(
                f"study {self._study.name} has not finished (there is no {path}): "
                "`python -m optimizer run` resumes it"
            )
        return outputs_of_config(read_config(path))

    def _source(self, key: Mapping[str, Any]) -> EngineSource | None:
        """Return what an engine was built from, according to its key in the cache."""
        graph = self._cache.named(key["graph"])
        return EngineSource(graph, key["recipe"]) if graph is not None else None
