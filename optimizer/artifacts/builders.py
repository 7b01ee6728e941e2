"""From a model's graphs to the files that each runtime loads."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from optimizer.artifacts.cache import CacheEntry
from optimizer.artifacts.graphs import GraphKind, PrecisionGraphs
from optimizer.artifacts.versions import versions
from optimizer.serving_config import Precision, Runtime

_ONNXRUNTIME_GRAPHS: dict[Precision, GraphKind] = {
    "fp32": "fp32",
    "fp16": "fp16",
    "int8": "int8_u8s8",
}
_OPENVINO_GRAPHS: dict[Precision, GraphKind] = {
    "fp32": "fp32",
    "bf16": "fp32",
    "int8": "int8_s8s8",
}


class ArtifactBuilder(Protocol):
    """Makes the files of one runtime."""

    @property
    def package(self) -> str:
        """Library that makes them."""

    def entry(self, precision: Precision, graphs: PrecisionGraphs) -> CacheEntry:
        """The files for `precision`, built where they are missing."""


class OnnxRuntimeBuilder:
    """Serves the graphs as they are: model.onnx, and its external data if any."""

    package = "onnxruntime"

    def entry(self, precision: Precision, graphs: PrecisionGraphs) -> CacheEntry:
        """See `ArtifactBuilder`."""
        return graphs.entry(_ONNXRUNTIME_GRAPHS[precision])


class OpenVinoBuilder:
    """OpenVINO's own format: model.xml and model.bin.

    FP32 and BF16 are the same files: there the precision is chosen when the model is compiled
    (INFERENCE_PRECISION_HINT).
    """

    package = "openvino"

    def entry(self, precision: Precision, graphs: PrecisionGraphs) -> CacheEntry:
        """See `ArtifactBuilder`."""
        kind = _OPENVINO_GRAPHS[precision]
        key = {
            "kind": "openvino",
            "graph": graphs.key(kind),
            "libraries": versions(self.package),
        }
        return graphs.cache.get_or_build(
            key, lambda into: _convert_to_openvino(graphs.entry(kind).path, into)
        )


class PyTorchBuilder:
    """A `torch.export` program, model.pt2: needs torch to run, but not transformers."""

    package = "torch"

    def entry(self, precision: Precision, graphs: PrecisionGraphs) -> CacheEntry:
        """See `ArtifactBuilder`."""
        key = {"kind": "torch", "precision": precision, **graphs.model_key}
        return graphs.cache.get_or_build(
            key, lambda into: graphs.source.export_torch(into, precision)
        )


BUILDERS: dict[Runtime, ArtifactBuilder] = {
    "onnxruntime": OnnxRuntimeBuilder(),
    "openvino": OpenVinoBuilder(),
    "pytorch": PyTorchBuilder(),
}


def _convert_to_openvino(graph: Path, into: Path) -> None:
    import openvino

    # Not openvino.convert_model, which writes telemetry files to the home directory.
    model = openvino.Core().read_model(graph / "model.onnx")
    openvino.save_model(model, into / "model.xml", compress_to_fp16=False)
