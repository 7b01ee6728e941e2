"""Write a configuration of a study as a bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from optimizer.analysis.study_reading import StudyReading
from optimizer.artifacts.engines import build_script
from optimizer.artifacts.source_card import SourceCard
from optimizer.configuration.hardware import counted_gpus
from optimizer.configuration.serving_config import ModelServing, describe
from optimizer.errors import storage_errors
from optimizer.export.bundle import rebuild_script
from optimizer.export.bundle.commented_config import origins_in, with_hits
from optimizer.export.bundle.manifest import (
    GRAPH,
    REBUILD,
    RECIPE,
    UNKNOWN,
    ExportedModel,
    Limit,
    Manifest,
    MeasuredFigures,
    Recommended,
    Versions,
)
from optimizer.export.bundle.repository import (
    Provenance,
    labels_in,
    required_packages,
    server_arguments,
    write_model_repository,
)
from optimizer.export.bundle.study_artifacts import StoredArtifact
from optimizer.export.rendering import render
from optimizer.measurement.level import LoadLevel
from optimizer.study.decision import ConfirmedCapacity, levels_near
from optimizer.triton.repository import read_config
from optimizer.workload.model_spec import AccuracyLimits


@dataclass(frozen=True)
class PatchBase:
    """A model repository that a patch is for.

    Attributes:
        folders: of the models in it, by their names in the space file.
    """

    repository: Path
    folders: Mapping[str, str]


@dataclass(frozen=True)
class ExportSource:
    """A configuration of a study, with everything that it is exported from.

    Attributes:
        artifacts: by model.
        tolerances: by model; how much outputs may differ from the recorded ones.
        versions: of the software and hardware that measured it.
        cards: licences and class names from the models' sources, by model.
        made_by: name and version of this program.
        base: what the format `patch` is for.
    """

    study: StudyReading
    finding: ConfirmedCapacity
    artifacts: Mapping[str, StoredArtifact]
    tolerances: Mapping[str, AccuracyLimits]
    versions: Versions
    cards: Mapping[str, SourceCard]
    made_by: str
    base: PatchBase | None = None


def write_study_bundle(root: Path, templates: Path, source: ExportSource) -> Manifest:
    """Write a bundle without its examples, the measurements in its README, and its JSON files.

    Returns:
        The manifest of what was written, without the digests of the files.

    Raises:
        StorageError: when it cannot be written.
    """
    config = source.finding.candidate.config
    cold_start = source.study.directory.cold_start.read(config)
    origins = with_hits(
        origins_in(source.study.searched.search_space, cold_start),
        source.finding.candidate.measurement,
    )
    provenance = Provenance(origins, source.versions.packages, labels_in(source.cards))
    files = {name: artifact.files for name, artifact in source.artifacts.items()}
    write_model_repository(root, templates, config, files, provenance)
    with storage_errors(root):
        _ship_engine_sources(root, source.artifacts)
    models = tuple(_model(root, source, model) for model in config.models)
    return Manifest(
        study=source.study.name,
        trial=source.finding.trial.number,
        description=describe(config),
        made_by=source.made_by,
        config=config,
        server_arguments=server_arguments(config),
        models=models,
        versions=source.versions,
        limits=_limits(source.study),
        measured=_measured(source),
        recommended=_recommended(source),
        files={},
        missing=tuple(
            f"{model.name}/{GRAPH}: the artefact cache no longer contains the graph that the "
            "engine was built from, so the engine cannot be rebuilt from this bundle"
            for model in models
            if model.engine is not None and model.graph is None
        ),
    )


def append_readme(root: Path, manifest: Manifest) -> None:
    """Add the measurements and how to verify them to the README. Raises StorageError."""
    values = {**measurement_values(manifest), "rebuild": REBUILD}
    with storage_errors(root), (root / "README.md").open("a") as readme:
        readme.write(render("bundle/measurements.md.jinja", values))


def measurement_values(manifest: Manifest) -> dict[str, Any]:
    """Return what templates need to describe the measurements of a manifest."""
    limits = (
        f"p{each.percentile:g} of {each.stream} within {each.latency_ms:g} ms"
        for each in manifest.limits
    )
    measured = manifest.measured
    high = measured.capacity_high_per_second
    return {
        "manifest": manifest,
        "machine": _machine(manifest.versions),
        "limits": "; ".join(limits),
        "interval": f"{measured.capacity_low_per_second:,.0f} "
        + (f"to {high:,.0f}" if high is not None else "or more"),
    }


def _ship_engine_sources(root: Path, artifacts: Mapping[str, StoredArtifact]) -> None:
    """Write the graphs, recipes and scripts that TensorRT engines are rebuilt from."""
    sources = {name: each.source for name, each in artifacts.items() if each.source is not None}
    for model, source in sources.items():
        shutil.copytree(source.graph, root / model / GRAPH)
        (root / model / RECIPE).write_text(json.dumps(source.recipe, indent=2) + "\n")
    if sources:
        for script, name in ((rebuild_script, REBUILD), (build_script, rebuild_script.BUILDER)):
            shutil.copyfile(str(script.__file__), root / name)


def _model(root: Path, source: ExportSource, model: ModelServing) -> ExportedModel:
    artifact = source.artifacts[model.name]
    written = read_config(root / model.name / "config.pbtxt")
    return ExportedModel(
        name=model.name,
        # The order of protobuf's maps differs between processes.
        config=json.loads(
            json_format.MessageToJson(written, preserving_proto_field_name=True, sort_keys=True)
        ),
        artifact_sha256=artifact.sha256,
        licence=source.cards.get(model.name, SourceCard()).licence or UNKNOWN,
        tolerance=source.tolerances[model.name],
        engine=artifact.files.engine,
        graph=f"{model.name}/{GRAPH}" if artifact.source is not None else None,
        packages=required_packages([model], source.versions.packages),
    )


def _limits(study: StudyReading) -> tuple[Limit, ...]:
    return tuple(
        Limit(
            stream.name,
            stream.target,
            stream.limit.percentile,
            stream.limit.latency_ms,
            stream.demand_per_second,
        )
        for stream in study.searched.workload.streams
    )


def _measured(source: ExportSource) -> MeasuredFigures:
    measurement = source.finding.candidate.measurement
    # The level at the load of one replica that came nearest to its limits.
    levels = levels_near(measurement, _replica_load_factor(source))
    at_demand = max(levels, key=lambda level: level.limit_overshoot, default=None)
    return MeasuredFigures(
        confirmed=source.finding.confirmed,
        capacity_per_second=measurement.capacity_per_second,
        capacity_low_per_second=measurement.capacity_low_per_second,
        capacity_high_per_second=measurement.capacity_high_per_second,
        at_capacity=_without_machine(measurement.level_at_capacity),
        at_demand=_without_machine(at_demand),
    )


def _without_machine(level: LoadLevel | None) -> LoadLevel | None:
    """Remove what identifies the machine: its GPUs' identities, and its errors."""
    if level is None:
        return None
    streams = tuple(replace(stream, first_error=None) for stream in level.streams)
    return replace(level, machine=None, streams=streams)


def _replica_load_factor(source: ExportSource) -> float:
    """Return the load factor of one recommended replica, at most its capacity."""
    candidate = source.finding.candidate
    share = (1 + source.study.searched.demand.headroom) / candidate.score.replicas
    return min(candidate.measurement.load_factor, share)


def _recommended(source: ExportSource) -> Recommended:
    demand = source.study.searched.demand
    return Recommended(
        demand_per_second=demand.requests_per_second,
        headroom=demand.headroom,
        per_replica_per_second=_replica_load_factor(source) * demand.requests_per_second,
        price=source.study.searched.price,
        score=source.finding.candidate.score,
    )


def _machine(versions: Versions) -> str:
    gpus = f"{counted_gpus(versions.gpus)}, " if versions.gpus else ""
    triton = f", Triton {versions.triton}" if versions.triton is not None else ""
    return f"{gpus}{versions.cpu}, {versions.cores} cores{triton}, Python {versions.python}"
