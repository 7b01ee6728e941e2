"""From a model's graphs to the files that each runtime loads."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from optimizer.artifacts.build_context import BuildContext
from optimizer.artifacts.cache import CacheEntry, Facts, Key
from optimizer.artifacts.engines.builder import TensorRtBuilder
from optimizer.artifacts.graphs.precision_graphs import GraphKind
from optimizer.artifacts.versions import RECIPES, versions
from optimizer.configuration.hardware import overflows_in_int8
from optimizer.configuration.serving_config import ArtifactSpec, Precision, Runtime
from optimizer.machine.fingerprint import cpu_flags

_ONNXRUNTIME_GRAPHS: dict[Precision, GraphKind] = {
    "fp32": "fp32",
    "fp16": "fp16",
    "int8": "int8_u8s8",
}
_OPENVINO_GRAPHS: dict[Precision, GraphKind] = {
    "fp32": "fp32",
    "bf16": "fp32",
    "int8": "int8_u8s8",
}


class ArtifactBuilder(Protocol):
    """Makes the files of one runtime."""

    def key(self, spec: ArtifactSpec, bench: BuildContext) -> Key:
        """What decides the files of `spec`; builds nothing."""

    def entry(self, spec: ArtifactSpec, bench: BuildContext) -> CacheEntry:
        """The files of `spec`, built where they are missing."""

    def maker(self, entry: CacheEntry) -> str:
        """The library that made the files, and its version."""


class OnnxRuntimeBuilder:
    """Serves the graphs as they are: model.onnx, and its external data if any."""

    def key(self, spec: ArtifactSpec, bench: BuildContext) -> Key:
        """See `ArtifactBuilder`."""
        return bench.graphs.key(_for_this_cpu(_ONNXRUNTIME_GRAPHS[spec.precision]))

    def entry(self, spec: ArtifactSpec, bench: BuildContext) -> CacheEntry:
        """See `ArtifactBuilder`."""
        return bench.graphs.entry(_for_this_cpu(_ONNXRUNTIME_GRAPHS[spec.precision]))

    def maker(self, entry: CacheEntry) -> str:
        """See `ArtifactBuilder`."""
        return _installed("onnxruntime")


class OpenVinoBuilder:
    """OpenVINO's own format: model.xml and model.bin.

    FP32 and BF16 are the same files: there the precision is chosen when the model is compiled
    (INFERENCE_PRECISION_HINT).
    """

    def key(self, spec: ArtifactSpec, bench: BuildContext) -> Key:
        """See `ArtifactBuilder`."""
        graph = bench.graphs.key(_for_this_cpu(_OPENVINO_GRAPHS[spec.precision]))
        own = {"recipe": RECIPES["openvino"], "libraries": versions("openvino")}
        return {"kind": "openvino", "graph": graph, **own}

    def entry(self, spec: ArtifactSpec, bench: BuildContext) -> CacheEntry:
        """See `ArtifactBuilder`."""
        kind = _for_this_cpu(_OPENVINO_GRAPHS[spec.precision])
        return bench.cache.get_or_build(
            self.key(spec, bench),
            lambda into: _convert_to_openvino(bench.graphs.entry(kind), into),
        )

    def maker(self, entry: CacheEntry) -> str:
        """See `ArtifactBuilder`."""
        return _installed("openvino")


class PyTorchBuilder:
    """A `torch.export` program, model.pt2: needs torch to run, but not transformers."""

    def key(self, spec: ArtifactSpec, bench: BuildContext) -> Key:
        """See `ArtifactBuilder`."""
        recipe = {"recipe": RECIPES["torch"]}
        return {"kind": "torch", "precision": spec.precision, **recipe, **bench.graphs.model_key}

    def entry(self, spec: ArtifactSpec, bench: BuildContext) -> CacheEntry:
        """See `ArtifactBuilder`."""
        return bench.cache.get_or_build(
            self.key(spec, bench),
            lambda into: bench.graphs.source.export_torch(into, spec.precision),
        )

    def maker(self, entry: CacheEntry) -> str:
        """See `ArtifactBuilder`."""
        return _installed("torch")


BUILDERS: dict[Runtime, ArtifactBuilder] = {
    "onnxruntime": OnnxRuntimeBuilder(),
    "openvino": OpenVinoBuilder(),
    "pytorch": PyTorchBuilder(),
    "tensorrt": TensorRtBuilder(),
}


def _installed(package: str) -> str:
    return f"{package} {versions(package)[package]}"


def _for_this_cpu(kind: GraphKind) -> GraphKind:
    """Return the graph whose weights have a bit less where INT8 would overflow."""
    return "int8_u8s7" if kind == "int8_u8s8" and overflows_in_int8(cpu_flags()) else kind


def _convert_to_openvino(graph: CacheEntry, into: Path) -> Facts:
    import openvino

    # Not openvino.convert_model, which writes telemetry files to the home directory.
    model = openvino.Core().read_model(graph.path / "model.onnx")
    openvino.save_model(model, into / "model.xml", compress_to_fp16=False)
    return graph.facts
