"""Models of a bundle, served as they are."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from optimizer.artifacts.engines.builder import read_facts
from optimizer.configuration.serving_config import ModelServing
from optimizer.errors import ModelLoadFailure, storage_errors
from optimizer.export.bundle.manifest import GRAPH
from optimizer.files.untrusted import UnreadableError
from optimizer.triton.model_config import outputs_of_config
from optimizer.triton.repository import ModelRepository, read_config
from optimizer.triton.session import ModelFiles
from optimizer.workload.streams import OutputTensor, Payloads


class BundleRepository:
    """Copies models of a bundle into the repository of a server.

    Args:
        bundle: folder of the bundle.
        repository: of the server.
    """

    def __init__(self, bundle: Path, repository: ModelRepository) -> None:
        self._bundle = bundle
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
        source, target = self._bundle / model.name, self._repository.root / model.name
        with storage_errors(target):
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(
                source,
                target,
                ignore=shutil.ignore_patterns(GRAPH),
                copy_function=lambda old, new: self._repository.place(Path(old), Path(new)),
            )
        return _config(self._bundle, model.name)


def files_in(bundle: Path, model: str, payloads: Payloads) -> ModelFiles:
    """Return the files and tensors of a model of a bundle.

    Raises:
        ModelLoadFailure: where its config.pbtxt is invalid.
    """
    version = bundle / model / "1"
    try:
        outputs = outputs_of_config(_config(bundle, model))
    except ValueError as error:
        raise ModelLoadFailure(f"{model}/config.pbtxt: {error}") from error
    return ModelFiles(version, payloads, outputs, read_facts(version))


def _config(bundle: Path, model: str) -> model_config_pb2.ModelConfig:
    try:
        return read_config(bundle / model / "config.pbtxt")
    except (UnreadableError, text_format.ParseError) as error:
        raise ModelLoadFailure(
            f"{model}/config.pbtxt is not a Triton model configuration: {error}"
        ) from error
