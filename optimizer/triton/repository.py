"""Write model repositories: NAME/config.pbtxt, and NAME/1/ with model file and model.py."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from optimizer.configuration.runtimes import session_file
from optimizer.configuration.serving_config import ModelServing
from optimizer.errors import storage_errors
from optimizer.files.untrusted import read_text
from optimizer.triton.config_text import edited
from optimizer.triton.deployed_config import (
    CONFIG_FILE,
    read_deployed,
    served_text,
    versions_without_files,
)
from optimizer.triton.model_config import model_config, to_text
from optimizer.workload.streams import OutputTensor, Payloads

MODEL_CODE = ("model.py", "session.py")
"""Files of a version that belong to the Python backend and not to the model."""

PlaceFile = Callable[[Path, Path], object]
"""Creates a file from another: a symbolic link for a trial, a copy for an export."""


def link(source: Path, target: Path) -> None:
    """Create a symbolic link, so that gigabytes of weights are not copied for a trial."""
    target.symlink_to(source.resolve())


class ModelWriter(Protocol):
    """Writes models to where a server loads them from."""

    def write(
        self,
        model: ModelServing,
        artifact: Path,
        payloads: Payloads,
        outputs: Sequence[OutputTensor],
    ) -> model_config_pb2.ModelConfig:
        """Write one model; an existing one is replaced as a whole.

        Args:
            artifact: directory of the files of version 1.

        Returns:
            The configuration that was written.

        Raises:
            StorageError: when it cannot be written.
        """


class ModelRepository:
    """A directory that tritonserver serves, written from templates.

    Args:
        root: the repository; created when needed.
        templates: folder with one folder per backend.
        place: creates the model files.
    """

    def __init__(self, root: Path, templates: Path, place: PlaceFile = link) -> None:
        self.root = root
        self._templates = templates
        self.place = place

    def write(
        self,
        model: ModelServing,
        artifact: Path,
        payloads: Payloads,
        outputs: Sequence[OutputTensor],
    ) -> model_config_pb2.ModelConfig:
        """Write one model under a temporary name and rename it."""
        text, config = config_of(model, artifact, payloads, outputs, self._templates)
        with self._replacing(model.name) as folder:
            if model.artifact.backend == "repository":
                self._add_deployed_files(folder, artifact)
                _keep_versions(folder, config)
            else:
                self._add_own_files(folder / "1", model, artifact)
            (folder / CONFIG_FILE).write_text(text, newline="")
        return config

    def write_deployed(self, name: str, source: Path) -> None:
        """Write a model of another repository as it is there, perhaps without a config.pbtxt.

        Raises:
            StorageError: when it cannot be written.
        """
        with self._replacing(name) as folder:
            self._add_deployed_files(folder, source)
            if (source / CONFIG_FILE).exists():
                text, config = read_deployed(source)
                config.name = name if config.name else ""
                _keep_versions(folder, config)
                (folder / CONFIG_FILE).write_text(edited(text, config), newline="")

    @contextmanager
    def _replacing(self, name: str) -> Iterator[Path]:
        """Yield a folder that takes a model's place when it is complete."""
        final, temporary = self.root / name, self.root / f".{name}.new"
        with storage_errors(final):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            yield temporary
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)

    def _add_own_files(self, version: Path, model: ModelServing, artifact: Path) -> None:
        template = self._templates / model.artifact.backend
        version.mkdir()
        if model.artifact.backend == "python":
            sources = template / "model.py", session_file(model.artifact.runtime)
            for source, name in zip(sources, MODEL_CODE, strict=True):
                shutil.copyfile(source, version / name)
        for file in sorted(artifact.iterdir()):
            self.place(file, version / file.name)

    def _add_deployed_files(self, folder: Path, artifact: Path) -> None:
        """Add all but the configuration of a model of another repository."""
        for source in sorted(path for path in artifact.rglob("*") if path.is_file()):
            target = folder / source.relative_to(artifact)
            target.parent.mkdir(parents=True, exist_ok=True)
            if target != folder / CONFIG_FILE:
                self.place(source, target)


def _keep_versions(folder: Path, config: model_config_pb2.ModelConfig) -> None:
    """Add the folders of versions without files; Git and archives keep one only with a file."""
    for version in versions_without_files(config):
        if not (folder / str(version)).is_dir():
            (folder / str(version)).mkdir()
            (folder / str(version) / ".gitkeep").touch()


def config_of(
    model: ModelServing,
    artifact: Path,
    payloads: Payloads,
    outputs: Sequence[OutputTensor],
    templates: Path,
) -> tuple[str, model_config_pb2.ModelConfig]:
    """Return the text of a model's config.pbtxt, and its content.

    Args:
        artifact: directory of the model's files; of a model of another repository, its folder.
        templates: folder with one folder per backend.
    """
    if model.artifact.backend == "repository":
        return served_text(artifact, model)
    template = templates / model.artifact.backend / CONFIG_FILE
    config = model_config(model, payloads, outputs, template)
    return to_text(config), config


def read_config(path: Path) -> model_config_pb2.ModelConfig:
    """Read a config.pbtxt.

    Raises:
        UnreadableError: when it is no text file.
        google.protobuf.text_format.ParseError: when it is no ModelConfig.
    """
    try:
        return text_format.Parse(read_text(path), model_config_pb2.ModelConfig())
    except RecursionError as error:
        raise text_format.ParseError("nested too deeply") from error
