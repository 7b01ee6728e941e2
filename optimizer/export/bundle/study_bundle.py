"""A configuration of a study as a bundle: what is served, and what it says of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from google.protobuf import json_format

from optimizer.analysis.study_reading import StudyReading
from optimizer.artifacts.source_card import SourceCard
from optimizer.configuration.hardware import counted_gpus
from optimizer.configuration.serving_config import ModelServing, describe
from optimizer.errors import storage_errors
from optimizer.export.bundle.commented_config import origins_in
from optimizer.export.bundle.engine_sources import ship_engine_sources
from optimizer.export.bundle.manifest import (
    GRAPH,
    REBUILD,
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
from optimizer.measurement.level import LoadLevel, Measurement
from optimizer.study.decision import ConfirmedCapacity, levels_near
from optimizer.triton.repository import read_config
from optimizer.workload.model_spec import AccuracyLimits


@dataclass(frozen=True)
class ExportSource:
    """A configuration of a study, with everything that it is exported from.

    Attributes:
        artifacts, tolerances: by model; how close outputs must come to those that are recorded.
        versions: what the study measured with.
        cards: what the sources say, by model.
        made_by: the program that exports it, with its version.
    """

    study: StudyReading
    finding: ConfirmedCapacity
    artifacts: Mapping[str, StoredArtifact]
    tolerances: Mapping[str, AccuracyLimits]
    versions: Versions
    cards: Mapping[str, SourceCard]
    made_by: str

    @property
    def models(self) -> tuple[ModelServing, ...]:
        """Of the configuration."""
        return self.finding.candidate.config.models


def write_study_bundle(root: Path, templates: Path, winner: ExportSource) -> Manifest:
    """Write all of a bundle but its examples, its notes, its load and its manifest.

    Returns:
        The manifest of what was written, without the digests of the files.

    Raises:
        StorageError: when it cannot be written.
    """
    config = winner.finding.candidate.config
    files = {name: found.files for name, found in winner.artifacts.items()}
    packages = winner.versions.packages
    origins = origins_in(winner.study.searched.search_space)
    provenance = Provenance(origins, packages, labels_in(winner.cards))
    write_model_repository(root, templates, config, files, provenance)
    sources = {name: found.source for name, found in winner.artifacts.items()}
    with storage_errors(root):
        shipped = ship_engine_sources(root, {n: s for n, s in sources.items() if s is not None})
    models = tuple(_model(root, winner, model) for model in winner.models)
    return Manifest(
        study=winner.study.name,
        trial=winner.finding.trial.number,
        description=describe(config),
        made_by=winner.made_by,
        config=config,
        server_arguments=server_arguments(config),
        models=models,
        versions=winner.versions,
        limits=_limits(winner.study),
        measured=_measured(winner),
        recommended=_recommended(winner),
        files={},
        missing=tuple(
            f"{model.name}/{GRAPH}: the graph that the engine was built from is in no artefact "
            "cache that was looked into, so it cannot be built anew from this bundle"
            for model in models
            if model.engine is not None and model.name not in shipped
        ),
    )


def append_readme(root: Path, manifest: Manifest) -> None:
    """Add to the README what was measured, and how it is checked. Raises StorageError."""
    with storage_errors(root), (root / "README.md").open("a") as readme:
        readme.write(_notes(manifest))


def _model(root: Path, winner: ExportSource, model: ModelServing) -> ExportedModel:
    found = winner.artifacts[model.name]
    asked = read_config(root / model.name / "config.pbtxt")
    return ExportedModel(
        name=model.name,
        # Protobuf's maps come in another order in every process.
        config=json.loads(
            json_format.MessageToJson(asked, preserving_proto_field_name=True, sort_keys=True)
        ),
        output=found.files.output.name,
        artifact_sha256=found.sha256,
        licence=winner.cards.get(model.name, SourceCard()).licence or UNKNOWN,
        tolerance=winner.tolerances[model.name],
        engine=found.files.engine,
        graph=f"{model.name}/{GRAPH}" if found.source is not None else None,
        packages=required_packages([model], winner.versions.packages),
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


def _measured(winner: ExportSource) -> MeasuredFigures:
    finding = winner.finding
    measurement = finding.candidate.measurement
    return MeasuredFigures(
        confirmed=finding.confirmed,
        capacity_per_second=measurement.capacity_per_second,
        capacity_low_per_second=measurement.capacity_low_per_second,
        capacity_high_per_second=measurement.capacity_high_per_second,
        at_capacity=_shown(measurement.level_at_capacity),
        at_demand=_shown(_worst_near(measurement, _per_replica(winner))),
    )


def _worst_near(measurement: Measurement, load_factor: float) -> LoadLevel | None:
    """Of the levels at this load, the one that came nearest to its limits; None without one."""
    return max(
        levels_near(measurement, load_factor), key=lambda level: level.limit_overshoot, default=None
    )


def _shown(level: LoadLevel | None) -> LoadLevel | None:
    """A level without what only its machine knows: the identities of its GPUs, and its errors."""
    if level is None:
        return None
    streams = tuple(replace(stream, first_error=None) for stream in level.streams)
    return replace(level, machine=None, streams=streams)


def _per_replica(winner: ExportSource) -> float:
    """Load factor of one of the recommended replicas, at most what it serves."""
    candidate = winner.finding.candidate
    share = (1 + winner.study.searched.demand.headroom) / candidate.score.replicas
    return min(candidate.measurement.load_factor, share)


def _recommended(winner: ExportSource) -> Recommended:
    searched = winner.study.searched
    demand = searched.demand
    return Recommended(
        demand_per_second=demand.requests_per_second,
        headroom=demand.headroom,
        per_replica_per_second=_per_replica(winner) * demand.requests_per_second,
        price=searched.price,
        score=winner.finding.candidate.score,
    )


_REBUILDING = f"""
## On another GPU, or with another TensorRT

    python3 {REBUILD}

builds the engines anew from the graphs that are here, inside NVIDIA's tensorrt image of the
server's release and on the GPU that will serve. manifest.json then names the new engines; verify
them before they serve.
"""


def _machine(versions: Versions) -> str:
    gpus = f"{counted_gpus(versions.gpus)}, " if versions.gpus else ""
    triton = f", Triton {versions.triton}" if versions.triton is not None else ""
    return f"{gpus}{versions.cpu}, {versions.cores} cores{triton}, Python {versions.python}"


def _notes(manifest: Manifest) -> str:
    """What the README says beside how it is started."""
    measured, recommended = manifest.measured, manifest.recommended
    score = recommended.score
    limits = "; ".join(
        f"p{each.percentile:g} of {each.stream} within {each.latency_ms:g} ms"
        for each in manifest.limits
    )
    high = measured.capacity_high_per_second
    interval = f"{measured.capacity_low_per_second:,.0f} " + (
        f"to {high:,.0f}" if high is not None else "or more"
    )
    how = "confirmed by measuring again" if measured.confirmed else "unconfirmed, of one trial"
    engines = _REBUILDING if any(model.graph is not None for model in manifest.models) else ""
    licences = "".join(f"\n- {model.name}: {model.licence}" for model in manifest.models)
    return f"""
## What was measured

Trial {manifest.trial} of study {manifest.study}: one replica serves
{measured.capacity_per_second:,.0f} requests/s (95 % interval {interval}; {how}) with {limits}.
That was on {_machine(manifest.versions)}: on another, verify it.
The demand of {recommended.demand_per_second:,.6g} requests/s (headroom {recommended.headroom:.0%})
needs {score.replicas} of them at {recommended.per_replica_per_second:,.6g} requests/s each:
${score.fleet_usd_per_hour:.3f} an hour, each at the price of {recommended.price.instance_type}.
All of it, with versions and the hash of every file, is in manifest.json; how it is loaded, in
load.json.

## Check it

    python -m optimizer verify .

starts it in a clean server and compares files, configuration and outputs with what was measured,
then loads it. Exit code 0: it is what was measured, and holds the limit at its share of the demand;
1: it is not, or does not; 5: it does, but its capacity is another. Where a server has run on this
very folder, delete what Python left in it (`__pycache__`): that would be run, and was not exported.
{engines}
## Roll back

Keep the directory that was served before, and serve that: a bundle needs nothing outside itself.
`python -m optimizer diff BEFORE .` says what changes between the two, and what that costs.

## Licences of the models, as their sources state them
{licences}
"""
