"""Where a model comes from: one seam, and which implementation a source value means."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from optimizer.artifacts.build_results import OpenedModel
from optimizer.artifacts.onnx_model import OnnxModel
from optimizer.artifacts.transformers_model import TransformersModel
from optimizer.runtimes.spec import Precision
from optimizer.workload.model_spec import ModelSpec, TransformersSource


class ModelSource(Protocol):
    """A model that can be named, opened in FP32, and exported."""

    def fingerprint(self) -> dict[str, object]:
        """Everything that decides what is exported, as JSON values; cheap, loads no library."""

    def export_onnx(self, into: Path) -> None:
        """Write `into`/model.onnx in FP32 with dynamic batch and length axes.

        Weights that do not fit in one file lie beside it.
        """

    def export_torch(self, into: Path, precision: Precision) -> None:
        """Write `into`/model.pt2, a `torch.export` program with the same axes and FP32 output."""

    def open(self) -> OpenedModel:
        """Load the model itself, without an export.

        Raises:
            UsageError: when it does not fit the model's payloads or output.
        """


def source_of(model: ModelSpec) -> ModelSource:
    """The implementation for `model.source`."""
    if isinstance(model.source, TransformersSource):
        return TransformersModel(model, model.source)
    return OnnxModel(model, model.source)
