"""The accuracy gate: one artefact served, its answers compared with the FP32 reference.

Held-out inputs go to the running server all at once, so that they are answered in batches. What the
loaded instance takes of memory is seen on the way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from optimizer.artifacts.accuracy import Accuracy, compare
from optimizer.artifacts.products import ModelArtifact, PreparedModel
from optimizer.artifacts.task_metric import evaluate_metric
from optimizer.errors import TrialFailure
from optimizer.model_spec import ModelSpec
from optimizer.search.events import Note, Watcher
from optimizer.serving_config import (
    ArtifactSpec,
    Batching,
    InstanceGroup,
    Kind,
    ModelServing,
    ServingConfig,
)
from optimizer.triton.model_config import OutputTensor
from optimizer.triton.session import ModelFiles, ServingSession

_GATE_BATCH = 8
_ANSWER_SECONDS = 120.0


@dataclass(frozen=True)
class Served:
    """What one instance showed: how accurate it is, and the memory that it takes (if seen)."""

    accuracy: Accuracy
    instance_mib: float | None


class AccuracyGate:
    """Serves artefacts one after the other and judges their answers.

    Args:
        kind: where instances run; one runs at a time, on the slot's first GPU or on all cores.
        cores: that the instance may use.
    """

    def __init__(self, session: ServingSession, kind: Kind, cores: int, watch: Watcher) -> None:
        self._session = session
        self._kind = kind
        self._cores = cores
        self._watch = watch

    def served(self, artifact: ModelArtifact, model: ModelSpec, prepared: PreparedModel) -> Served:
        """Serve an artefact and compare; what may pass is tried once more.

        An artefact that is left out is missed all night.

        Raises:
            TrialFailure: when it cannot be served.
            UsageError: when the task's metric cannot be calculated.
        """
        try:
            return self._served(artifact, model, prepared)
        except TrialFailure as error:
            if not error.transient:
                raise
            self._watch(Note(f"{artifact.spec.label}: {error}; trying once more", True))
        return self._served(artifact, model, prepared)

    def _served(self, artifact: ModelArtifact, model: ModelSpec, prepared: PreparedModel) -> Served:
        output = output_of(prepared)
        files = {model.name: ModelFiles(artifact.path, model.payloads, output, artifact.engine)}
        config = ServingConfig((self._serving(artifact.spec),))
        served = self._session.serve(config, files)
        try:
            answers = served.control.infer(
                model.name, prepared.evaluation, output.name, _ANSWER_SECONDS
            )
        except TrialFailure as error:
            raise self._session.failure(error) from error
        instance_mib = self._session.memory_of_models_mib()
        # The next one's memory is told from that of an empty server.
        self._session.retire(wait=True)
        accuracy = compare(prepared.reference, answers, prepared.judged)
        if model.accuracy.metric is not None:
            figure = evaluate_metric(model.accuracy.metric, prepared.evaluation, answers)
            accuracy = replace(accuracy, metric=figure)
        return Served(accuracy, instance_mib)

    def _serving(self, spec: ArtifactSpec) -> ModelServing:
        """One instance that batches, as far as an engine's profile lets it."""
        largest = _GATE_BATCH
        if spec.profile is not None:
            largest = min(largest, spec.profile.max_batch_size)
        on_cpu = InstanceGroup("KIND_CPU", 1, (), self._cores)
        return ModelServing(
            name=spec.model,
            artifact=spec,
            max_batch_size=largest,
            batching=Batching() if largest > 1 else None,
            groups=(on_cpu if self._kind == "KIND_CPU" else InstanceGroup(self._kind, 1, (0,)),),
        )


def output_of(prepared: PreparedModel) -> OutputTensor:
    """The tensor that a prepared model answers with, as Triton is told."""
    output = prepared.output
    return OutputTensor(output.name, output.data_type, output.shape)
