"""The prepare phase: every artefact of the space is built, loaded and gated for accuracy.

What fails leaves the space with its reason, before anything is timed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from optimizer.artifacts.accuracy import Accuracy, misses
from optimizer.artifacts.products import ModelArtifact, PreparedModel
from optimizer.artifacts.workshop import Workshop
from optimizer.errors import EverythingFailedError, SpaceChangedError, TrialFailure
from optimizer.hardware import Hardware, processor_lacks
from optimizer.machine.fingerprint import cpu_flags
from optimizer.model_space import EmptySpaceError
from optimizer.model_spec import ModelSpec
from optimizer.search.accuracy_gate import AccuracyGate, Served, output_of
from optimizer.search.events import ArtifactReady, Note, PhaseStarted, StepStarted, Watcher
from optimizer.search.study_directory import StudyDirectory, write_json
from optimizer.search_space import SearchSpace
from optimizer.serving_config import ArtifactSpec
from optimizer.triton.session import ModelFiles, ServingSession

_LITTLE_INT8 = 0.5


@dataclass(frozen=True)
class GatedArtifact:
    """An artefact and what the gate said of it.

    Attributes:
        instance_mib: memory that one instance takes, None where it was not seen.
        dropped: why it left the space.
        int8_share: of the model's multiply-accumulates that are in INT8; None without INT8.
    """

    spec: ArtifactSpec
    sha256: str | None
    build_seconds: float
    accuracy: Accuracy | None
    instance_mib: float | None
    dropped: str | None
    int8_share: float | None = None


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
    """Builds and gates the artefacts of all models."""

    def __init__(
        self,
        directory: StudyDirectory,
        workshop: Workshop,
        session: ServingSession,
        watch: Watcher,
    ) -> None:
        self._directory = directory
        self._workshop = workshop
        self._session = session
        self._watch = watch

    def run(self, models: Sequence[ModelSpec], space: SearchSpace) -> Prepared:
        """Build and gate everything that the space needs.

        Raises:
            EverythingFailedError: when no artefact of a model is left, with every reason.
            SpaceChangedError: when a model's files are no longer those the study was begun with.
            StorageError: when the study's directory cannot be written.
        """
        self._watch(PhaseStarted("prepare", len(space.artifacts)))
        references = {model.name: self._reference(model, space) for model in models}
        by_name = {model.name: model for model in models}
        known = self._known()
        kind, hardware = space.models[0].kind, space.hardware
        gate = AccuracyGate(self._session, kind, hardware.cores, self._watch)
        gated: list[GatedArtifact] = []
        files: dict[ArtifactSpec, ModelFiles] = {}
        for spec in space.artifacts:
            model, prepared = by_name[spec.model], references[spec.model]
            reason = refusal(spec, model, hardware)
            if reason is not None:
                artifact, result = None, GatedArtifact(spec, None, 0.0, None, None, reason)
            else:
                artifact, result = self._gated(spec, model, prepared, gate, known)
            gated.append(result)
            if artifact is not None and result.dropped is None:
                output = output_of(prepared)
                files[spec] = ModelFiles(artifact.path, model.payloads, output, artifact.engine)
            self._watch(_ready(result))
        built = [reference.seconds for reference in references.values() if reference.built]
        building = known.building_seconds + sum(built) + sum(r.build_seconds for r in gated)
        rows = [_to_json(result) for result in gated]
        write_json(self._directory.prepared, {"building_seconds": building, "artifacts": rows})
        _refuse_if_nothing_is_left(models, gated)
        left = space.without([result.spec for result in gated if result.dropped is not None])
        return Prepared(self._within_memory(left, gated), files, tuple(gated), building)

    def _reference(self, model: ModelSpec, space: SearchSpace) -> PreparedModel:
        self._watch(StepStarted(f"reading {model.name} and its FP32 reference"))
        own = [spec for spec in space.artifacts if spec.model == model.name]
        try:
            prepared = self._workshop.prepare_model(model, self._telling(f"reading {model.name}"))
            self._workshop.require_room(own, model)
            return prepared
        except TrialFailure as error:
            raise EverythingFailedError(f"model {model.name}: {error}") from error

    def _telling(self, step: str) -> Callable[[str], None]:
        """Tells the watcher how far a step is."""
        return lambda progress: self._watch(StepStarted(f"{step}: {progress}"))

    def _known(self) -> _Known:
        if not self._directory.prepared.exists():
            return _Known(0.0, {})
        data = self._directory.read_json(self._directory.prepared)
        return _Known(data["building_seconds"], {row["artifact"]: row for row in data["artifacts"]})

    def _gated(
        self,
        spec: ArtifactSpec,
        model: ModelSpec,
        prepared: PreparedModel,
        gate: AccuracyGate,
        known: _Known,
    ) -> tuple[ModelArtifact | None, GatedArtifact]:
        self._watch(StepStarted(f"building {spec.label}"))
        try:
            artifact = self._workshop.build(spec, model, self._telling(f"building {spec.label}"))
        except TrialFailure as error:
            reason = f"build failed: {error}"
            return None, GatedArtifact(spec, None, 0.0, None, None, reason)
        self._warn_of_little_int8(artifact)
        seconds = 0.0 if artifact.cached else artifact.build_seconds
        before = known.artifacts.get(spec.label)
        if before is not None and before["sha256"] is not None:
            self._hold_to_what_was_begun(artifact, before["sha256"])
            if before["accuracy"] is not None:
                served = Served(_accuracy_from_json(before["accuracy"]), before.get("instance_mib"))
                return artifact, _judged(artifact, seconds, served, model)
        self._watch(StepStarted(f"serving {spec.label} for the accuracy gate"))
        try:
            served = gate.served(artifact, model, prepared)
        except TrialFailure as error:
            reason = f"could not be served: {error}"
            return artifact, GatedArtifact(spec, artifact.sha256, seconds, None, None, reason)
        return artifact, _judged(artifact, seconds, served, model)

    def _warn_of_little_int8(self, artifact: ModelArtifact) -> None:
        share = artifact.int8_share
        if share is not None and share < _LITTLE_INT8:
            text = (
                f"{artifact.spec.label}: INT8 covers {share:.0%} of the multiply-accumulates; the "
                "rest is computed in floating point, so little speed is to be gained"
            )
            self._watch(Note(text, warning=True))

    def _hold_to_what_was_begun(self, artifact: ModelArtifact, sha256: str) -> None:
        if sha256 != artifact.sha256:
            raise SpaceChangedError(
                f"{artifact.spec.label} is no longer the file that study {self._directory.name} "
                f"was begun with (sha256 {sha256[:12]}, now {artifact.sha256[:12]}); "
                "start another study with --study NEW"
            )

    def _within_memory(self, space: SearchSpace, gated: Sequence[GatedArtifact]) -> SearchSpace:
        """The space less what would not fit, judged by what one instance of each took."""
        known = {r.spec: r.instance_mib for r in gated if r.instance_mib is not None}
        available = space.hardware.memory_for_instances_mib
        try:
            fitting = space.within_memory(available, known)
            left = len(space) - len(fitting)
        except EmptySpaceError as error:
            raise EverythingFailedError(str(error)) from error
        if left:
            largest = max(known.values())
            self._watch(
                Note(
                    f"{left} of {len(space)} configurations are left out: their instances (up to "
                    f"{largest:.0f} MiB each) do not fit in {available:.0f} MiB of memory",
                    warning=True,
                )
            )
        return fitting


def refusal(spec: ArtifactSpec, model: ModelSpec, hardware: Hardware) -> str | None:
    """Why an artefact is not even built; None where it may be."""
    if spec.precision == "int8" and model.int8_is_a_guess:
        return (
            "INT8 of trained weights is recommended on real inputs only: give calibration and "
            "evaluation data, or set accuracy.int8_on_generated_data"
        )
    lacking = hardware.lacks(spec.runtime, spec.precision)
    if lacking is None and not hardware.gpus:
        return processor_lacks(spec.runtime, spec.precision, cpu_flags())
    return lacking


def _refuse_if_nothing_is_left(models: Sequence[ModelSpec], gated: Sequence[GatedArtifact]) -> None:
    for model in models:
        own = [result for result in gated if result.spec.model == model.name]
        if all(result.dropped is not None for result in own):
            reasons = "\n".join(f"  {r.spec.label}: {r.dropped}" for r in own)
            raise EverythingFailedError(f"no artefact of the space can be served:\n{reasons}")


def _judged(
    artifact: ModelArtifact, seconds: float, served: Served, model: ModelSpec
) -> GatedArtifact:
    missed = misses(served.accuracy, model.accuracy)
    dropped = "accuracy: " + "; ".join(missed) if missed else None
    return GatedArtifact(
        artifact.spec,
        artifact.sha256,
        seconds,
        served.accuracy,
        served.instance_mib,
        dropped,
        artifact.int8_share,
    )


def _ready(result: GatedArtifact) -> ArtifactReady:
    if result.dropped is not None:
        return ArtifactReady(result.spec.label, result.dropped, dropped=True)
    assert result.accuracy is not None
    detail = (
        f"argmax agreement {result.accuracy.argmax_agreement:.3f}, "
        f"cosine {result.accuracy.mean_cosine:.4f}"
    )
    if result.accuracy.metric is not None:
        detail += f", metric {result.accuracy.metric:.4g}"
    if result.int8_share is not None:
        detail += f", INT8 covers {result.int8_share:.0%} of the multiply-accumulates"
    if result.build_seconds:
        detail += f", built in {result.build_seconds:.1f} s"
    return ArtifactReady(result.spec.label, detail, dropped=False)


def _to_json(result: GatedArtifact) -> dict[str, Any]:
    return {
        "artifact": result.spec.label,
        "sha256": result.sha256,
        "accuracy": accuracy_to_json(result.accuracy),
        "instance_mib": result.instance_mib,
        "dropped": result.dropped,
        "int8_share": result.int8_share,
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
