"""A server with one instance of an artefact, for the accuracy gate's requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from optimizer.artifacts.build_results import ModelArtifact
from optimizer.configuration.model_graph import NO_GRAPH
from optimizer.configuration.runtimes.spec import Kind
from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import (
    Batching,
    InstanceGroup,
    ModelServing,
    ServingConfig,
)
from optimizer.errors import ConfigMismatch, TrialFailure
from optimizer.measurement.level import ServerSplit
from optimizer.measurement.model_memory import ModelMemory
from optimizer.study.events import Note, Watcher
from optimizer.triton.session import ModelFiles, ServingSession
from optimizer.triton.session import ServedConfiguration as ServedModel
from optimizer.triton.tensors import inferences_of
from optimizer.workload.data_types import concatenated
from optimizer.workload.model_spec import ModelSpec
from optimizer.workload.streams import OutputTensor, Tensors

_CALL_SECONDS, _ROW_SECONDS = 120.0, 5.0
STEP_DELAY_US = 20_000
"""A step's requests come one after the other, as the steps before it answer them."""


@dataclass(frozen=True)
class DeployedPipeline:
    """A composed model and its steps as they are deployed.

    Attributes:
        files: by the name of the model; the artefact that is judged may be left out.
        merged: of a generated pipeline, the largest batch of a step, which single requests are
            merged into; 1 where the steps are judged in the pipeline.
    """

    config: ServingConfig
    files: Mapping[str, ModelFiles]
    merged: int = 1

    def with_most_instances(self, space: SearchSpace) -> DeployedPipeline:
        """Return the pipeline with the most instances that a space has of each BLS model.

        One instance calls its steps for one execution at a time, so that fewer instances would not
        show the batches that are merged from the calls of several.
        """
        bls = (self.config.graph or NO_GRAPH).bls_names
        most = {m.model: int(m.instances.max()) for m in space.models if m.model in bls}
        models = tuple(
            replace(model, groups=tuple(replace(g, count=most[model.name]) for g in model.groups))
            if model.name in bls
            else model
            for model in self.config.models
        )
        return replace(self, config=replace(self.config, models=models))


@dataclass(frozen=True)
class GateSubject:
    """An artefact, and how its answers are got.

    Attributes:
        target: the model that requests go to: the artefact's own, or the composed model that it is
            part of, whose answers show whether its parts answer correctly.
        outputs: of the target.
        pipeline: of the target; None for a model that is served alone.
        graph_lengths: lengths in tokens that CUDA graphs are recorded for; empty without graphs.
    """

    artifact: ModelArtifact
    target: ModelSpec
    outputs: tuple[OutputTensor, ...]
    pipeline: DeployedPipeline | None = None
    graph_lengths: tuple[int, ...] = ()


class GateServer:
    """Serves one instance of an artefact, again after a failure.

    Args:
        placement: the instance kind, and the number of cores that it may use.
    """

    def __init__(
        self,
        session: ServingSession,
        subject: GateSubject,
        placement: tuple[Kind, int],
        watch: Watcher,
    ) -> None:
        self._session = session
        self._artifact = subject.artifact
        self._model = subject.target
        self._outputs = subject.outputs
        self._pipeline = subject.pipeline
        self._graph_lengths = subject.graph_lengths
        self._placement = placement
        self._watch = watch
        self._served: ServedModel | None = None
        self._max_batch_size, self._instances = 0, 1
        self._executed: ServerSplit | None = None

    def serve(self, max_batch_size: int, instances: int = 1) -> None:
        """Serve the artefact with a max_batch_size; retry a transient failure once.

        Raises:
            TrialFailure: when it cannot be served.
        """
        wanted = (max_batch_size, instances)
        if self._served is not None and wanted == (self._max_batch_size, self._instances):
            return
        self.close()
        self._max_batch_size, self._instances = wanted
        try:
            self._start()
        except TrialFailure as error:
            self._restart(error)

    def infer_separately(self, requests: Sequence[Tensors]) -> Tensors:
        """Return the outputs of requests that are sent one after the other, each a batch.

        Raises:
            TrialFailure: when a request fails, twice where the failure is transient.
        """
        calls = [[request] for request in requests]
        return self._infer_with_retry(calls, self._inferences(requests[0]))

    def infer_concurrently(self, requests: Sequence[Tensors], batch: int | None = None) -> Tensors:
        """Return the outputs of requests that are sent at once, shape [inferences, ...].

        Args:
            batch: size that the server must have executed; None where it may merge requests
                freely. A step gets it as requests of one inference, which its batcher merges as
                under load: a request of several would be a batch for the other steps too.

        Raises:
            TrialFailure: when a request fails, twice where the failure is transient.
        """
        if self._pipeline is not None:
            requests = [row for request in requests for row in _rows(request)]
            batch = None
        return self._infer_with_retry([requests], batch)

    @property
    def models_memory(self) -> ModelMemory:
        """Memory of all models that are served."""
        return self._session.memory_of_models() if self._served is not None else ModelMemory()

    @property
    def serves_step(self) -> bool:
        """Whether the artefact is one of the steps of a pipeline that is served for it."""
        return self._pipeline is not None and self._artifact.spec.model != self._model.name

    @property
    def merged(self) -> int:
        """The largest batch of a step that requests to a generated pipeline are merged into."""
        return self._pipeline.merged if self._pipeline is not None else 1

    @property
    def last_ms(self) -> dict[int, float]:
        """Mean compute time of the batch size that most inferences of the last call were in."""
        assert self._executed is not None, "nothing was inferred yet"
        batches = self._executed.batches
        usual = max(batches, key=lambda point: point.inferences, default=None)
        return {usual.batch_size: usual.compute_ms} if usual is not None else {}

    def close(self) -> None:
        """Unload the artefact and wait: memory is measured relative to an empty server."""
        if self._served is not None:
            self._served = None
            self._session.retire(wait=True)

    @property
    def _batched(self) -> bool:
        return self._model.payloads.as_served().batched

    def _inferences(self, request: Tensors) -> int:
        return inferences_of(request) if self._batched else 1

    def _start(self) -> None:
        serving, pipeline, model = self._serving(), self._pipeline, self._model
        own = ModelFiles(
            self._artifact.path,
            model.payloads,
            self._outputs,
            self._artifact.engine,
            model.version,
        )
        if pipeline is None:
            self._served = self._session.serve(ServingConfig((serving,)), {serving.name: own})
            return
        models = (serving if m.name == serving.name else m for m in pipeline.config.models)
        config = replace(pipeline.config, models=tuple(models))
        self._served = self._session.serve(config, {serving.name: own, **pipeline.files})

    def _restart(self, error: TrialFailure) -> None:
        """Serve again after a transient failure; raise any other."""
        if not error.transient:
            raise error
        self._watch(Note(f"{self._artifact.spec.label}: {error}; retrying once", True))
        self._start()

    def _failure(self, error: TrialFailure) -> TrialFailure:
        self._served = None
        return self._session.failure(error)

    def _infer_with_retry(self, calls: Sequence[Sequence[Tensors]], batch: int | None) -> Tensors:
        if self._served is None:
            self._start()
        try:
            return self._infer(calls, batch)
        except TrialFailure as error:
            self._restart(self._failure(error))
        try:
            return self._infer(calls, batch)
        except TrialFailure as error:
            raise self._failure(error) from error

    def _infer(self, calls: Sequence[Sequence[Tensors]], batch: int | None) -> Tensors:
        assert self._served is not None, "the artefact is not served"
        control, name = self._served.control, self._model.name
        before = control.statistics(self._artifact.spec.model)
        outputs = [
            control.infer(
                name,
                call,
                [output.name for output in self._outputs],
                _CALL_SECONDS + _ROW_SECONDS * sum(map(self._inferences, call)),
                batched=self._batched,
            )
            for call in calls
        ]
        joined = {
            output.name: concatenated([each[output.name] for each in outputs])
            for output in self._outputs
        }
        sent = sum(self._inferences(request) for call in calls for request in call)
        self._executed = control.executed_since(before, sent)
        executed = [point.batch_size for point in self._executed.batches]
        if batch is not None and batch not in executed:
            sizes = ", ".join(map(str, executed)) or "none"
            raise ConfigMismatch(
                f"the server was sent a batch of {batch} but executed batches of {sizes}"
            )
        return joined

    def _serving(self) -> ModelServing:
        """Return how it is served: with dynamic batching where batches hold several requests."""
        kind, cores = self._placement
        count = self._instances
        on_cpu = InstanceGroup("KIND_CPU", count, (), cores)
        largest = self._max_batch_size
        delay_us = STEP_DELAY_US if self._pipeline is not None else 0
        return ModelServing(
            name=self._artifact.spec.model,
            artifact=self._artifact.spec,
            max_batch_size=largest,
            batching=Batching(max_queue_delay_us=delay_us) if largest > 1 else None,
            groups=(on_cpu if kind == "KIND_CPU" else InstanceGroup(kind, count, (0,)),),
            padding=self._graph_lengths,
            cuda_graphs=bool(self._graph_lengths),
        )


def _rows(request: Tensors) -> list[Tensors]:
    """Return a request as requests of one inference each."""
    return [
        {name: values[row : row + 1] for name, values in request.items()}
        for row in range(inferences_of(request))
    ]
