"""The workshop's jobs. They run in its child process; see `optimizer.artifacts.workshop`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from optimizer.artifacts.builders import BUILDERS
from optimizer.artifacts.cache import ArtifactCache, key_digest
from optimizer.artifacts.datasets import rows_digest
from optimizer.artifacts.disk import require_room
from optimizer.artifacts.engines.builder import read_facts
from optimizer.artifacts.graphs import INT8_SHARE, PrecisionGraphs
from optimizer.artifacts.products import ModelArtifact, OutputSpec, PreparedModel
from optimizer.artifacts.versions import RECIPES, versions
from optimizer.artifacts.workbench import Tell, Workbench, in_silence
from optimizer.errors import BuildFailure, UsageError
from optimizer.hosting import EngineSettings
from optimizer.model_spec import ModelSpec
from optimizer.serving_config import PRECISIONS_OF, ArtifactSpec
from optimizer.workload import DataType, Tensors

_TRITON_TYPES: dict[str, DataType] = {"FLOAT": "FP32", "INT32": "INT32", "INT64": "INT64"}
"""Triton's names of the ONNX element types that a model may answer with."""

_MASK = "attention_mask"


def prepare_model(model: ModelSpec, cache: ArtifactCache, tell: Tell = in_silence) -> PreparedModel:
    """Export the model and ask it for its FP32 outputs on the evaluation inputs."""
    graphs = PrecisionGraphs(model, cache)
    graph = graphs.entry("fp32")
    key = {
        "kind": "reference",
        "recipe": RECIPES["reference"],
        "graph": key_digest(graphs.key("fp32")),
        "evaluation": rows_digest(graphs.inputs.evaluation),
        "libraries": versions("onnxruntime"),
    }

    def build(into: Path) -> None:
        output = _output_spec(graph.path / "model.onnx", model.output)
        (into / "output.json").write_text(json.dumps(asdict(output)))
        tell("its FP32 outputs")
        outputs = graphs.source.reference(graphs.inputs.evaluation)
        if not np.isfinite(outputs).all():
            raise BuildFailure(f"{model.name}: its FP32 outputs hold NaN or infinity")
        np.save(into / "reference.npy", outputs)

    reference = cache.get_or_build(key, build)
    stored = json.loads((reference.path / "output.json").read_text())
    output = OutputSpec(stored["name"], stored["data_type"], tuple(stored["shape"]))
    return PreparedModel(
        name=model.name,
        fp32_graph=graph.path / "model.onnx",
        output=output,
        evaluation=graphs.inputs.evaluation,
        reference=np.load(reference.path / "reference.npy"),
        built=graph.built or reference.built,
        seconds=graph.seconds + reference.seconds,
        judged=_own_positions(graphs.inputs.evaluation, output),
    )


def check_room(
    specs: Sequence[ArtifactSpec],
    model: ModelSpec,
    cache: ArtifactCache,
    tell: Tell = in_silence,
    engines: EngineSettings | None = None,
) -> None:
    """Raise RequirementError where the disk has no room for those of `specs` that are missing."""
    bench = Workbench(model, cache, engines, tell)
    graph = bench.graphs.entry("fp32").path
    graph_bytes = sum(file.stat().st_size for file in graph.rglob("*") if file.is_file())
    missing = []
    for spec in specs:
        try:
            _check(spec)
            there = cache.holds(BUILDERS[spec.runtime].key(spec, bench))
        except BuildFailure:  # needs no room; why it cannot be built is told when it is tried
            continue
        if not there:
            missing.append(spec)
    require_room(cache.root, graph_bytes, missing)


def build_artifact(
    spec: ArtifactSpec,
    model: ModelSpec,
    cache: ArtifactCache,
    tell: Tell = in_silence,
    engines: EngineSettings | None = None,
) -> ModelArtifact:
    """Make the files of `spec`, one of the artefacts of `model`."""
    _check(spec)
    builder = BUILDERS[spec.runtime]
    entry = builder.entry(spec, Workbench(model, cache, engines, tell))
    return ModelArtifact(
        spec=spec,
        path=entry.path,
        sha256=entry.sha256,
        builder=builder.maker(entry),
        build_seconds=entry.seconds,
        cached=not entry.built,
        engine=read_facts(entry.path),
        int8_share=entry.facts.get(INT8_SHARE),
    )


def _check(spec: ArtifactSpec) -> None:
    if not any(spec.precision in of.get(spec.runtime, ()) for of in PRECISIONS_OF.values()):
        raise BuildFailure(f"{spec.label}: {spec.runtime} has no way to serve {spec.precision}")
    if (spec.profile is not None and spec.runtime != "tensorrt") or spec.options:
        raise BuildFailure(f"{spec.label}: {spec.runtime} takes no profile and no build options")


def _own_positions(rows: list[Tensors], output: OutputSpec) -> NDArray[np.bool_] | None:
    """See `PreparedModel.judged`; the mask goes by the name that transformers gives it."""
    has_length = len(output.shape) > 1 and output.shape[0] == -1
    if not has_length or any(_MASK not in row or row[_MASK].ndim != 2 for row in rows):
        return None
    own: NDArray[np.bool_] = np.concatenate([row[_MASK] for row in rows]).astype(np.bool_)
    return own if own.any() else None


def _output_spec(graph: Path, name: str) -> OutputSpec:
    import onnx

    header = onnx.load(graph, load_external_data=False)
    tensor = next(v.type.tensor_type for v in header.graph.output if v.name == name)
    onnx_type = onnx.TensorProto.DataType.Name(tensor.elem_type)
    if onnx_type not in _TRITON_TYPES:
        raise UsageError(
            f"output {name!r} must be one of {', '.join(_TRITON_TYPES)}, got {onnx_type}"
        )
    sizes = [axis.dim_value or -1 for axis in tensor.shape.dim]
    return OutputSpec(name, _TRITON_TYPES[onnx_type], tuple(sizes[1:]))
