"""The model files of a study's configurations: in its own folder, or in the artefact cache."""

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
from optimizer.triton.model_config import output_of_config
from optimizer.triton.repository import MODEL_CODE, link, read_config
from optimizer.triton.session import ModelFiles
from optimizer.workload.streams import OutputTensor


@dataclass(frozen=True)
class EngineSource:
    """What a TensorRT engine is built from: its graph's folder, and its recipe as JSON has it."""

    graph: Path
    recipe: Mapping[str, Any]


@dataclass(frozen=True)
class StoredArtifact:
    """The files of one artefact.

    Attributes:
        sha256: digest of their content, which the study was begun with.
        source: of an engine, where the artefact cache still has it.
    """

    files: ModelFiles
    sha256: str
    source: EngineSource | None


class StudyArtifacts:
    """Finds what the configurations of a study are served from.

    Args:
        cache: may be another than the one that the study was run with.
        staging: an empty folder for links to files that lie among others.
    """

    def __init__(self, study: StudyReading, cache: ArtifactCache, staging: Path) -> None:
        self._study = study
        self._cache = cache
        self._staging = staging

    def find(self, spec: ArtifactSpec) -> StoredArtifact:
        """The files of an artefact, by their content.

        Raises:
            UsageError: where they are gone, or the study has not come to its end.
            StorageError: when the study's files are damaged.
        """
        sha256 = self._sha256(spec)
        cached = self._cache.find(sha256)
        path = next(self._handed_out(spec, sha256), None)
        if path is None and cached is not None:
            path = cached[0].path
        if path is None:
            raise UsageError(
                f"the files of {spec.label} (sha256 {sha256[:12]}) are neither in "
                f"{self._study.directory.root} nor in the artefact cache {self._cache.root}: give "
                "the --cache that the study was run with, or run the study again"
            )
        streams = self._study.searched.workload.streams
        payloads = next(stream.payloads for stream in streams if stream.target == spec.model)
        facts = read_facts(path)
        files = ModelFiles(path, payloads, self._output(spec.model), facts)
        source = self._source(cached[1]) if facts is not None and cached is not None else None
        return StoredArtifact(files, sha256, source)

    def _sha256(self, spec: ArtifactSpec) -> str:
        directory = self._study.directory
        try:
            rows = read_prepared(directory)["artifacts"]
            return str({row["artifact"]: row["sha256"] for row in rows}[spec.label])
        except (KeyError, TypeError) as error:
            raise StorageError(
                f"cannot read {directory.prepared}: it knows no {spec.label}"
            ) from error

    def _handed_out(self, spec: ArtifactSpec, sha256: str) -> Iterator[Path]:
        """A folder of links to the artefact's files in best/ or baseline/, where they lie there."""
        directory = self._study.directory
        for root in (directory.best, directory.baseline):
            version = root / spec.model / "1"
            # A server that was started by hand leaves a folder of compiled Python there.
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

    def _output(self, model: str) -> OutputTensor:
        """The model's output, which is the same in every configuration."""
        path = self._study.directory.baseline / model / "config.pbtxt"
        if not path.exists():
            raise UsageError(
                f"study {self._study.name} has not come to its end yet (there is no {path}): "
                "`run` goes on with it"
            )
        return output_of_config(read_config(path))

    def _source(self, key: Mapping[str, Any]) -> EngineSource | None:
        """What the cache's key of an engine tells of its making."""
        graph = self._cache.named(key["graph"])
        return EngineSource(graph, key["recipe"]) if graph is not None else None
