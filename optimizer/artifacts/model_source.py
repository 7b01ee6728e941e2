"""Where a model comes from: `ModelSource` and its implementations."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from optimizer.artifacts.build_results import OpenedModel
from optimizer.artifacts.generated_steps import PipelineModel, step_of
from optimizer.artifacts.onnx_model import OnnxModel
from optimizer.artifacts.transformers_model import TransformersModel
from optimizer.configuration.runtimes.spec import Precision
from optimizer.errors import BuildFailure
from optimizer.workload.model_spec import (
    ModelSpec,
    OnnxSource,
    PipelineSource,
    RepositorySource,
    TransformersSource,
)


class ModelSource(Protocol):
    """A model that can be identified, opened in FP32, and exported."""

    def fingerprint(self) -> dict[str, object]:
        """Return everything that decides what is exported, as JSON values; import no library.

        Raises:
            UsageError: when the source cannot be read.
            BuildFailure: when a checkpoint on a hub cannot be resolved.
        """

    def export_onnx(self, into: Path) -> None:
        """Write `into`/model.onnx in FP32 with dynamic batch and length axes.

        Weights that do not fit in one file go beside it.

        Raises:
            UsageError: when the model does not fit the payloads or the output.
        """

    def export_torch(self, into: Path, precision: Precision) -> None:
        """Write `into`/model.pt2, a `torch.export` program with the same axes and FP32 output.

        Raises:
            BuildFailure: when the source has no such program.
        """

    def open(self) -> OpenedModel:
        """Load the model itself, without an export.

        Raises:
            UsageError: when the model does not fit the payloads or the output.
        """


def source_of(model: ModelSpec) -> ModelSource:
    """Return the implementation for `model.source`."""
    if isinstance(model.source, TransformersSource):
        return TransformersModel(model, model.source)
    if isinstance(model.source, OnnxSource):
        return OnnxModel(model, model.source)
    if isinstance(model.source, RepositorySource):
        raise BuildFailure(f"{model.name}: graphs cannot be made from a model of a repository")
    if isinstance(model.source, PipelineSource):
        return PipelineModel(model, tuple(map(source_of, model.source.steps)))
    return step_of(model)
