"""Code that comes with models: it is announced with its hash, and that of strangers is refused."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from optimizer.artifacts.cache import ArtifactCache, file_digest
from optimizer.configuration.runtimes import HOSTED_PACKAGE, session_file
from optimizer.errors import UsageError
from optimizer.files.shipped import shipped
from optimizer.study.events import Note, Watcher
from optimizer.triton.deployed_config import model_folders
from optimizer.triton.deployed_pipeline import composing_models
from optimizer.triton.model_code import code_files, files_below
from optimizer.workload.model_spec import ModelSpec, RepositorySource

_log = logging.getLogger(__name__)

_MAX_NAMED_FILES = 5
"""Files that a message names; it counts the others."""


def announce_code(models: Iterable[ModelSpec], watch: Watcher) -> None:
    """Tell every file that a run executes for these models, with its hash, before it does so.

    These are the files of task metrics, and the code of models in an existing repository. Files
    that such a repository takes from elsewhere are told too: the study gets a copy of them.
    """
    code = dict.fromkeys(path for model in models for path in _code_of(model))
    links = dict.fromkeys(text for model in models for text in _links_of(model))
    for text in (*map(_text, code), *links):
        watch(Note(text, True))


def log_code(folder: Path) -> None:
    """Log the code of a model that is loaded before a run tells anything."""
    for path in code_files(folder):
        _log.warning("%s", _text(path))


def _code_of(model: ModelSpec) -> Iterator[Path]:
    if model.accuracy.metric is not None:
        yield model.accuracy.metric.file
    if isinstance(model.source, RepositorySource):
        for folder in _folders(model.source):
            yield from code_files(folder)


def _links_of(model: ModelSpec) -> Iterator[str]:
    if isinstance(model.source, RepositorySource):
        repository = model.source.repository.resolve()
        for path in files_below(model.source.folder):
            if not (target := path.resolve()).is_relative_to(repository):
                yield f"{path} is a link to {target}, outside of the repository, and is copied"


def _folders(source: RepositorySource) -> Iterator[Path]:
    """Yield the folders of the models that a source is composed of, or that may be called."""
    if source.calls is None:  # every model of the repository is loaded to observe the calls
        yield from model_folders(source.repository)
        return
    called = (call.model for _, calls in source.calls for call in calls)
    yield from (part.folder for part in composing_models(source))
    yield from (source.repository / name for name in called)


def _text(path: Path) -> str:
    return f"code that runs: {path} (sha256 {file_digest(path)})"


@dataclass(frozen=True)
class CodeConsent:
    """What code of a bundle may run here: what was made here, or all of it.

    Attributes:
        cache: artefact cache; its files were built here, or copied from a repository that a run
            named.
        allowed: whether the code of others may run too.
        watch: is told each file of theirs before it runs.
    """

    cache: ArtifactCache
    allowed: bool
    watch: Watcher

    def check(self, folders: Iterable[Path]) -> None:
        """Check the code in the folders of models.

        Raises:
            UsageError: where some is of others and not allowed.
        """
        code = [path for folder in folders for path in code_files(folder)]
        known = {*_own_digests(), *self.cache.file_digests()} if code else set()
        foreign = [path for path in code if file_digest(path) not in known]
        if foreign and not self.allowed:
            named = [str(path) for path in foreign[:_MAX_NAMED_FILES]]
            if len(foreign) > _MAX_NAMED_FILES:
                named.append(f"and {len(foreign) - _MAX_NAMED_FILES} more")
            listed = "\n  ".join(named)
            raise UsageError(
                "serving these models would run code that is neither this program's nor in the "
                f"artefact cache {self.cache.root}:\n  {listed}\nset OPTIMIZER_CACHE to the cache "
                "of the run that built it, or read the code and give --allow-code to run it"
            )
        for path in foreign:
            self.watch(Note(_text(path), True))


def _own_digests() -> set[str]:
    """Return the digests of the code that this program writes into model repositories."""
    templates = shipped("model_repository_templates").rglob("*.py")
    return {file_digest(path) for path in (*templates, *map(session_file, HOSTED_PACKAGE))}
