"""The ONNX graphs of one model, one for each precision, shared by the runtimes."""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path

from optimizer.artifacts.cache import ArtifactCache, CacheEntry, Facts, Key, key_digest, versions
from optimizer.artifacts.datasets import ModelInputs, model_inputs, rows_digest
from optimizer.artifacts.graphs.half_precision import to_bf16, to_fp16
from optimizer.artifacts.graphs.int8 import (
    SIGNED,
    SIGNED_ATTENTION,
    UNSIGNED,
    UNSIGNED_7_BITS,
    to_int8,
    to_int8_tensorrt,
)
from optimizer.artifacts.graphs.int8_dynamic import to_int8_dynamic, to_int8_weights
from optimizer.artifacts.graphs.quantisation import Int8Scheme
from optimizer.artifacts.model_source import source_of
from optimizer.configuration.runtimes.spec import GraphKind
from optimizer.workload.model_spec import ModelSpec
from optimizer.workload.streams import LENGTH, Tensors, TensorSpec

_RECIPES: dict[GraphKind, int] = {
    "fp32": 2,
    "fp16": 2,
    "bf16": 2,
    "int8_s8s8": 3,
    "int8_s8s8_attention": 1,
    "int8_u8s8": 3,
    "int8_u8s7": 2,
    "int8_trt": 2,
    "int8_trt_attention": 1,
    "int8_weights": 1,
    "int8_dynamic": 1,
    "int8_dynamic_s7": 1,
}
"""Version of how each graph is made: to be raised with every change of the code that changes the
files, so that no cached file of an earlier version is used again."""

_MADE_FROM: dict[GraphKind, GraphKind] = {
    "fp16": "fp32",
    "bf16": "fp32",
    "int8_s8s8": "fp32",
    "int8_s8s8_attention": "fp32",
    "int8_u8s8": "fp32",
    "int8_u8s7": "fp32",
    "int8_trt": "int8_s8s8",
    "int8_trt_attention": "int8_s8s8_attention",
    "int8_weights": "fp32",
    "int8_dynamic": "fp32",
    "int8_dynamic_s7": "fp32",
}
_SCHEMES: dict[GraphKind, Int8Scheme] = {
    "int8_s8s8": SIGNED,
    "int8_s8s8_attention": SIGNED_ATTENTION,
    "int8_u8s8": UNSIGNED,
    "int8_u8s7": UNSIGNED_7_BITS,
}

INT8_SHARE = "int8_share"
"""Fact of an entry: the share of the model's multiply-accumulates in INT8."""


class PrecisionGraphs:
    """Graphs of one model, each a cache entry of model.onnx and its external data, if any.

    Keys follow from the model alone, so a cached graph is used without building those it was made
    from.
    """

    def __init__(self, model: ModelSpec, cache: ArtifactCache) -> None:
        self.cache = cache
        self.source = source_of(model)
        self._model = model

    @cached_property
    def inputs(self) -> ModelInputs:
        """Calibration and evaluation inputs of the model."""
        return model_inputs(self._model)

    @cached_property
    def model_key(self) -> Key:
        """What decides the exported model: source, tensors, and the length of the trace."""
        payloads, outputs = self._model.payloads.as_served(), self._model.outputs
        key: dict[str, object] = {
            "source": self.source.fingerprint(),
            "inputs": [[t.name, t.data_type, _axes(t)] for t in payloads.tensors],
            "longest": payloads.lengths.longest,
            "output": outputs[0] if len(outputs) == 1 else list(outputs),
        }
        if payloads.dimensions:
            key["sizes"] = payloads.largest_sizes()
        return key

    def key(self, kind: GraphKind) -> Key:
        """Return what decides the graph's content."""
        if kind == "fp32":
            recipe = {"recipe": _RECIPES[kind]}
            return {"kind": "graph", "precision": kind, **recipe, **self.model_key}
        key: dict[str, object] = {
            "kind": "graph",
            "precision": kind,
            "recipe": _RECIPES[kind],
            "from": key_digest(self.key(_MADE_FROM[kind])),
            "libraries": versions("onnx", "onnxruntime"),
        }
        if kind in _SCHEMES:
            key["calibration"] = rows_digest(self.inputs.calibration)
            key["percentile"] = self._model.calibration_percentile
            if not self._batched:  # rows were joined along another axis once
                key["batched"] = False
        return key

    def entry(self, kind: GraphKind) -> CacheEntry:
        """Return the graph's files, built where they are missing."""
        return self.cache.get_or_build(self.key(kind), partial(self._write, kind))

    @property
    def _batched(self) -> bool:
        return self._model.payloads.as_served().batched

    @property
    def _request(self) -> Tensors:
        """A request of the shape on which accuracy is judged."""
        return self.inputs.evaluation[0]

    def _write(self, kind: GraphKind, into: Path) -> Facts | None:
        if kind == "fp32":
            self.source.export_onnx(into)
            return None
        source = self.entry(_MADE_FROM[kind])
        if kind in _SCHEMES:
            percentile, batched = self._model.calibration_percentile, self._batched
            rows = self.inputs.calibration
            share = to_int8(source.path, into, rows, _SCHEMES[kind], percentile, batched=batched)
            return {INT8_SHARE: share}
        match kind:
            case "fp16":
                to_fp16(source.path, into)
            case "bf16":
                to_bf16(source.path, into)
            case "int8_weights":
                return {INT8_SHARE: to_int8_weights(source.path, into, self._request)}
            case "int8_dynamic" | "int8_dynamic_s7":
                share = to_int8_dynamic(
                    source.path, into, self._request, seven_bits=kind == "int8_dynamic_s7"
                )
                return {INT8_SHARE: share}
            case "int8_trt" | "int8_trt_attention":
                to_int8_tensorrt(source.path, into)
        return source.facts


def _axes(spec: TensorSpec) -> list[int | str | None]:
    """Return the shape as keys have always had it, without a name for the length."""
    return [None if size == LENGTH else size for size in spec.shape]
