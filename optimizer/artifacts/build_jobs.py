"""The jobs of `BuildProcess`, which run in its child process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from optimizer.artifacts.build_context import BuildContext, ReportProgress, no_progress
from optimizer.artifacts.build_results import ModelArtifact, PreparedModel, Reference
from optimizer.artifacts.builders import BUILDERS
from optimizer.artifacts.cache import ArtifactCache, CacheEntry, key_digest, versions
from optimizer.artifacts.datasets import rows_by_shape, rows_digest
from optimizer.artifacts.disk import require_room
from optimizer.artifacts.engines.builder import read_facts
from optimizer.artifacts.precision_graphs import INT8_SHARE, PrecisionGraphs
from optimizer.artifacts.references import fp32_outputs, judged_positions
from optimizer.configuration.hosting import EngineSettings
from optimizer.configuration.runtimes import PRECISIONS_OF
from optimizer.configuration.serving_config import ArtifactSpec
from optimizer.errors import BuildFailure, NoBatchAxis
from optimizer.files.tensors import from_npz, to_npz
from optimizer.workload.model_spec import ModelSpec, OnnxSource
from optimizer.workload.streams import OutputTensor

_REFERENCE_RECIPE = 2
"""Version of how references are computed, to be raised with every change of their values."""


def prepare_model(
    model: ModelSpec,
    cache: ArtifactCache,
    report_progress: ReportProgress = no_progress,
    lengths: Sequence[int] = (),
) -> PreparedModel:
    """Compute FP32 outputs for the evaluation inputs by the model itself, not by an export.

    An ONNX model that cannot take batches is executed without.

    Args:
        lengths: in tokens, that requests are padded to besides the longest.
    """
    try:
        return _prepared(model, cache, report_progress, lengths)
    except NoBatchAxis as error:
        if not isinstance(model.source, OnnxSource):
            raise
        reason = str(error)
    alone = replace(model, payloads=replace(model.payloads, one_at_a_time=True))
    return replace(_prepared(alone, cache, report_progress, lengths), no_batching=reason)


def _prepared(
    model: ModelSpec,
    cache: ArtifactCache,
    report_progress: ReportProgress,
    lengths: Sequence[int],
) -> PreparedModel:
    graphs, batched = PrecisionGraphs(model, cache), model.payloads.as_served().batched
    shapes = rows_by_shape(graphs.inputs, lengths, model.payloads)
    key = {
        "kind": "reference",
        "recipe": _REFERENCE_RECIPE,
        "model": key_digest(graphs.model_key),
        "evaluation": {each.name: rows_digest(each.rows) for each in shapes},
        "libraries": versions("onnxruntime"),
    }

    def build(into: Path) -> None:
        opened = graphs.source.open()
        outputs = [asdict(output) for output in opened.outputs]
        facts = {"outputs": outputs, "weight_bytes": opened.weight_bytes}
        (into / "model.json").write_text(json.dumps(facts))
        report_progress("its FP32 outputs")
        for each in shapes:
            at = each.sizes or f"{each.length} tokens"
            name = model.name if len(shapes) == 1 else f"{model.name} at {at}"
            values = fp32_outputs(name, opened, each.rows, batched=batched)
            (into / f"{each.name}.npz").write_bytes(to_npz(values))

    entry = cache.get_or_build(key, build)
    facts = json.loads((entry.path / "model.json").read_text())
    outputs = tuple(OutputTensor(**{**o, "shape": tuple(o["shape"])}) for o in facts["outputs"])
    references = []
    for each in shapes:
        values = from_npz((entry.path / f"{each.name}.npz").read_bytes())
        judged = judged_positions(each.rows, outputs, values, batched=batched)
        references.append(Reference(each.length, each.rows, values, judged, each.sizes))
    return PreparedModel(
        model.name, outputs, tuple(references), facts["weight_bytes"], entry.built, entry.seconds
    )


def export_graph(
    model: ModelSpec, cache: ArtifactCache, report_progress: ReportProgress = no_progress
) -> CacheEntry:
    """Export the model to the FP32 ONNX graph that most artefacts are made from."""
    return PrecisionGraphs(model, cache).entry("fp32")


def check_room(
    specs: Sequence[ArtifactSpec],
    model: ModelSpec,
    weight_bytes: int,
    cache: ArtifactCache,
    report_progress: ReportProgress = no_progress,
    engines: EngineSettings | None = None,
) -> None:
    """Raise RequirementError where the disk has no room for those of `specs` that are missing."""
    context = BuildContext(model, cache, engines, report_progress)
    missing = []
    for spec in specs:
        try:
            _check(spec)
            cached = cache.holds(BUILDERS[spec.runtime].key(spec, context))
        except BuildFailure:  # cannot be built, so it needs no room; its own build says why
            continue
        if not cached:
            missing.append(spec)
    require_room(cache.root, weight_bytes, missing)


def build_artifact(
    spec: ArtifactSpec,
    model: ModelSpec,
    cache: ArtifactCache,
    report_progress: ReportProgress = no_progress,
    engines: EngineSettings | None = None,
) -> ModelArtifact:
    """Build the files of `spec`, an artefact of `model`."""
    _check(spec)
    builder = BUILDERS[spec.runtime]
    entry = builder.entry(spec, BuildContext(model, cache, engines, report_progress))
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
        raise BuildFailure(f"{spec.label}: {spec.runtime} does not serve {spec.precision}")
    if (spec.profile is not None and spec.runtime != "tensorrt") or spec.options:
        raise BuildFailure(f"{spec.label}: {spec.runtime} takes no profile and no build options")
