"""Models of a bundle, served as they are."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from optimizer.artifacts.engines.builder import read_facts
from optimizer.configuration.serving_config import ModelServing
from optimizer.errors import ModelLoadFailure, storage_errors
from optimizer.export.bundle.manifest import GRAPH
from optimizer.files.untrusted import UnreadableError, read_text
from optimizer.triton.config_text import edited
from optimizer.triton.deployed_config import CONFIG_FILE
from optimizer.triton.model_code import COMPILED
from optimizer.triton.model_config import outputs_of_config
from optimizer.triton.repository import ModelRepository, read_config
from optimizer.triton.session import ModelFiles
from optimizer.workload.streams import OutputTensor, Payloads, Stream


class BundleRepository:
    """Copies models of a bundle into the repository of a server.

    Args:
        folders: of the models, by the names that they are served under.
        repository: of the server.
    """

    def __init__(self, folders: Mapping[str, Path], repository: ModelRepository) -> None:
        self._folders = folders
        self._repository = repository

    def write(
        self,
        model: ModelServing,
        artifact: Path,
        payloads: Payloads,
        outputs: Sequence[OutputTensor],
    ) -> model_config_pb2.ModelConfig:
        """Copy a model of the bundle, replacing one of the same name.

        Raises:
            ModelLoadFailure: where its config.pbtxt is invalid.
        """
        del artifact, payloads, outputs  # the bundle has the whole model
        source, target = self._folders[model.name], self._repository.root / model.name
        text, config = _config(source)
        if config.name:
            config.name = model.name
        with storage_errors(target):
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(
                source,
                target,
                ignore=shutil.ignore_patterns(GRAPH, CONFIG_FILE, COMPILED),
                copy_function=lambda old, new: self._repository.place(Path(old), Path(new)),
            )
            (target / CONFIG_FILE).write_text(edited(text, config), newline="")
        return config


def files_in(folder: Path, stream: Stream | None) -> ModelFiles:
    """Return the files of a model of a bundle, and the tensors of the requests to it.

    Args:
        folder: of the model.
        stream: the requests; None for a step, which gets them from its ensemble.

    Raises:
        ModelLoadFailure: where its config.pbtxt is invalid.
    """
    version = folder / "1"
    _, config = _config(folder)
    try:
        outputs = outputs_of_config(config)
    except ValueError as error:
        raise ModelLoadFailure(f"{folder.name}/{CONFIG_FILE}: {error}") from error
    facts = read_facts(version)
    if stream is None:
        return ModelFiles(version, Payloads(()), outputs, facts)
    return ModelFiles(version, stream.payloads, outputs, facts, stream.version)


def _config(folder: Path) -> tuple[str, model_config_pb2.ModelConfig]:
    """Return the text and the content of a model's config.pbtxt."""
    path = folder / CONFIG_FILE
    try:
        return read_text(path), read_config(path)
    except (UnreadableError, text_format.ParseError) as error:
        raise ModelLoadFailure(
            f"{folder.name}/{CONFIG_FILE} is not a Triton model configuration: {error}"
        ) from error
