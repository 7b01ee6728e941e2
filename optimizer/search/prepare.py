"""The prepare phase: every artefact of the space is built, loaded and gated for accuracy.

What fails leaves the space with its reason, before anything is timed. The gate sends held-out
inputs to the running server, all at once so that they are served in batches, and compares the
answers with the FP32 reference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from optimizer.artifacts.accuracy import Accuracy, compare, misses
from optimizer.artifacts.products import ModelArtifact, PreparedModel
from optimizer.artifacts.workshop import Workshop
from optimizer.errors import EverythingFailedError, SpaceChangedError, TrialFailure
from optimizer.model_spec import ModelSpec
from optimizer.search.events import ArtifactReady, Note, PhaseStarted, StepStarted, Watcher
from optimizer.search.study_directory import StudyDirectory, write_json
from optimizer.search_space import SearchSpace
from optimizer.serving_config import (
    ArtifactSpec,
    Batching,
    InstanceGroup,
    ModelServing,
    ServingConfig,
)
from optimizer.triton.model_config import OutputTensor
from optimizer.triton.session import ModelFiles, ServingSession

_GATE_BATCH = 8
_ANSWER_SECONDS = 120.0


@dataclass(frozen=True)
class GatedArtifact:
    """An artefact and what the gate said of it; `dropped` is why it left the space."""

    spec: ArtifactSpec
    sha256: str | None
    build_seconds: float
    accuracy: Accuracy | None
    dropped: str | None


@dataclass(frozen=True)
class Prepared:
    """What the prepare phase leaves.

    Attributes:
        space: the space less the artefacts that were dropped.
        files: what serving needs, by artefact.
        gated: every artefact of the space in its order.
        building_seconds: spent on building in all runs of the study; 0 when all was cached.
    """

    space: SearchSpace
    files: Mapping[ArtifactSpec, ModelFiles]
    gated: tuple[GatedArtifact, ...]
    building_seconds: float


@dataclass(frozen=True)
class _Known:
    """What earlier runs of this study wrote: their building time, and a row by artefact label."""

    building_seconds: float
    artifacts: Mapping[str, dict[str, Any]]


class PreparePhase:
    """Builds and gates the artefacts of one model.

    Args:
        cores: of the slot, which the gate's single instance may use.
    """

    def __init__(
        self,
        directory: StudyDirectory,
        workshop: Workshop,
        session: ServingSession,
        cores: int,
        watch: Watcher,
    ) -> None:
        self._directory = directory
        self._workshop = workshop
        self._session = session
        self._cores = cores
        self._watch = watch

    def run(self, model: ModelSpec, space: SearchSpace) -> Prepared:
        """Build and gate everything that the space needs.

        Raises:
            EverythingFailedError: when no artefact is left, with every reason.
            SpaceChangedError: when the model's files are no longer those the study was begun with.
            StorageError: when the study's directory cannot be written.
        """
        self._watch(PhaseStarted("prepare", len(space.artifacts)))
        self._watch(StepStarted(f"reading {model.name} and its FP32 reference"))
        try:
            prepared = self._workshop.prepare_model(model)
        except TrialFailure as error:
            raise EverythingFailedError(f"model {model.name}: {error}") from error
        building = prepared.seconds if prepared.built else 0.0
        output = OutputTensor(
            prepared.output.name, prepared.output.data_type, prepared.output.shape
        )
        known = self._known()
        gated: list[GatedArtifact] = []
        files: dict[ArtifactSpec, ModelFiles] = {}
        for spec in space.artifacts:
            artifact, result = self._gate(spec, model, prepared, output, known)
            gated.append(result)
            building += result.build_seconds
            if artifact is not None and result.dropped is None:
                files[spec] = ModelFiles(artifact.path, model.payloads, output)
            self._watch(_ready(result))
        self._session.retire()
        building += known.building_seconds
        rows = [_to_json(result) for result in gated]
        write_json(self._directory.prepared, {"building_seconds": building, "artifacts": rows})
        dropped = [result for result in gated if result.dropped is not None]
        if not files:
            reasons = "\n".join(f"  {r.spec.label}: {r.dropped}" for r in dropped)
            raise EverythingFailedError(f"no artefact of the space can be served:\n{reasons}")
        return Prepared(
            space.without([result.spec for result in dropped]), files, tuple(gated), building
        )

    def _known(self) -> _Known:
        if not self._directory.prepared.exists():
            return _Known(0.0, {})
        data = self._directory.read_json(self._directory.prepared)
        return _Known(data["building_seconds"], {row["artifact"]: row for row in data["artifacts"]})

    def _gate(
        self,
        spec: ArtifactSpec,
        model: ModelSpec,
        prepared: PreparedModel,
        output: OutputTensor,
        known: _Known,
    ) -> tuple[ModelArtifact | None, GatedArtifact]:
        self._watch(StepStarted(f"building {spec.label}"))
        try:
            artifact = self._workshop.build(spec, model)
        except TrialFailure as error:
            return None, GatedArtifact(spec, None, 0.0, None, f"build failed: {error}")
        seconds = 0.0 if artifact.cached else artifact.build_seconds
        before = known.artifacts.get(spec.label)
        if before is not None and before["sha256"] is not None:
            if before["sha256"] != artifact.sha256:
                raise SpaceChangedError(
                    f"{spec.label} is no longer the file that study {self._directory.name} was "
                    f"begun with (sha256 {before['sha256'][:12]}, now {artifact.sha256[:12]}); "
                    "start another study with --study NEW"
                )
            if before["accuracy"] is not None:
                accuracy = _accuracy_from_json(before["accuracy"])
                return artifact, _judged(spec, artifact, seconds, accuracy, model)
        self._watch(StepStarted(f"serving {spec.label} for the accuracy gate"))
        try:
            accuracy = self._accuracy_or_again(spec, artifact, model, prepared, output)
        except TrialFailure as error:
            reason = f"could not be served: {error}"
            return artifact, GatedArtifact(spec, artifact.sha256, seconds, None, reason)
        return artifact, _judged(spec, artifact, seconds, accuracy, model)

    def _accuracy_or_again(
        self,
        spec: ArtifactSpec,
        artifact: ModelArtifact,
        model: ModelSpec,
        prepared: PreparedModel,
        output: OutputTensor,
    ) -> Accuracy:
        """What may pass is tried once more: an artefact that is left out is missed all night."""
        try:
            return self._accuracy(spec, artifact, model, prepared, output)
        except TrialFailure as error:
            if not error.transient:
                raise
            self._watch(Note(f"{spec.label}: {error}; trying once more"))
        return self._accuracy(spec, artifact, model, prepared, output)

    def _accuracy(
        self,
        spec: ArtifactSpec,
        artifact: ModelArtifact,
        model: ModelSpec,
        prepared: PreparedModel,
        output: OutputTensor,
    ) -> Accuracy:
        serving = ModelServing(
            name=model.name,
            artifact=spec,
            max_batch_size=_GATE_BATCH,
            batching=Batching(),
            groups=(InstanceGroup("KIND_CPU", 1, (), self._cores),),
        )
        files = {model.name: ModelFiles(artifact.path, model.payloads, output)}
        served = self._session.serve(ServingConfig((serving,)), files)
        try:
            answers = served.control.infer(
                model.name, prepared.evaluation, output.name, _ANSWER_SECONDS
            )
        except TrialFailure as error:
            raise self._session.failure(error) from error
        return compare(prepared.reference, answers, prepared.judged)


def _judged(
    spec: ArtifactSpec,
    artifact: ModelArtifact,
    seconds: float,
    accuracy: Accuracy,
    model: ModelSpec,
) -> GatedArtifact:
    missed = misses(accuracy, model.accuracy)
    dropped = "accuracy: " + "; ".join(missed) if missed else None
    return GatedArtifact(spec, artifact.sha256, seconds, accuracy, dropped)


def _ready(result: GatedArtifact) -> ArtifactReady:
    if result.dropped is not None:
        return ArtifactReady(result.spec.label, result.dropped, dropped=True)
    assert result.accuracy is not None
    detail = (
        f"argmax agreement {result.accuracy.argmax_agreement:.3f}, "
        f"cosine {result.accuracy.mean_cosine:.4f}"
    )
    if result.build_seconds:
        detail += f", built in {result.build_seconds:.1f} s"
    return ArtifactReady(result.spec.label, detail, dropped=False)


def _to_json(result: GatedArtifact) -> dict[str, Any]:
    return {
        "artifact": result.spec.label,
        "sha256": result.sha256,
        "accuracy": accuracy_to_json(result.accuracy),
        "dropped": result.dropped,
    }


def accuracy_to_json(accuracy: Accuracy | None) -> dict[str, Any] | None:
    """JSON has no infinity: the error of outputs that are not finite becomes null."""
    if accuracy is None:
        return None
    error = accuracy.max_abs_error
    return {**asdict(accuracy), "max_abs_error": error if math.isfinite(error) else None}


def _accuracy_from_json(data: Mapping[str, Any]) -> Accuracy:
    error = data["max_abs_error"]
    return Accuracy(**{**data, "max_abs_error": error if error is not None else math.inf})
