"""Model repositories on disk: NAME/config.pbtxt and NAME/1/ with the model file and model.py."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from optimizer.configuration.serving_config import ModelServing
from optimizer.errors import storage_errors
from optimizer.files.untrusted import read_text
from optimizer.runtimes import session_file
from optimizer.triton.model_config import model_config, to_text
from optimizer.workload.streams import OutputTensor, Payloads

MODEL_CODE = ("model.py", "session.py")
"""What of a version's files belongs to a Python-hosted runtime, and not to the model."""

Place = Callable[[Path, Path], object]
"""Puts a file at a second path: by symbolic link for a trial, by copy for what is handed out."""


def link(source: Path, target: Path) -> None:
    """Place a file by a symbolic link: gigabytes of weights are not copied for a trial."""
    target.symlink_to(source.resolve())


class WritesModels(Protocol):
    """Puts models where a server looks for them."""

    def write(
        self, model: ModelServing, artifact: Path, payloads: Payloads, output: OutputTensor
    ) -> model_config_pb2.ModelConfig:
        """Put one model there, replacing it as a whole where it is there already.

        Args:
            artifact: directory of the files that version 1 holds.

        Returns:
            The configuration that was written.

        Raises:
            StorageError: when it cannot be written.
        """


class ModelRepository:
    """A directory that tritonserver serves, written from templates.

    Args:
        root: the repository; made where it is missing.
        templates: folder with one folder per backend.
        place: how model files get there.
    """

    def __init__(self, root: Path, templates: Path, place: Place = link) -> None:
        self.root = root
        self._templates = templates
        self.place = place

    def write(
        self, model: ModelServing, artifact: Path, payloads: Payloads, output: OutputTensor
    ) -> model_config_pb2.ModelConfig:
        """See `WritesModels`."""
        template = self._templates / model.artifact.backend
        config = model_config(model, payloads, output, template / "config.pbtxt")
        final, fresh = self.root / model.name, self.root / f".{model.name}.new"
        with storage_errors(final):
            shutil.rmtree(fresh, ignore_errors=True)
            version = fresh / "1"
            version.mkdir(parents=True)
            (fresh / "config.pbtxt").write_text(to_text(config))
            if model.artifact.backend == "python":
                sources = template / "model.py", session_file(model.artifact.runtime)
                for source, name in zip(sources, MODEL_CODE, strict=True):
                    shutil.copyfile(source, version / name)
            for file in sorted(artifact.iterdir()):
                self.place(file, version / file.name)
            shutil.rmtree(final, ignore_errors=True)
            fresh.rename(final)
        return config


def read_config(path: Path) -> model_config_pb2.ModelConfig:
    """Read a config.pbtxt.

    Raises:
        UnreadableError: where it is no file of text.
        google.protobuf.text_format.ParseError: where it says something else.
    """
    try:
        return text_format.Parse(read_text(path), model_config_pb2.ModelConfig())
    except RecursionError as error:
        raise text_format.ParseError("nested too deeply") from error
