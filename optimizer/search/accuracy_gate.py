"""The accuracy gate: an artefact is served, and its outputs judged at every shape it may get.

Held-out requests are sent one by one, and their outputs compared with the FP32 reference. Then they
are sent in the batches that the space allows, and compared with the outputs that they got alone.
The server's statistics prove that the batches were executed. The gate also reads the memory of the
loaded instance and the compute time of batches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from optimizer.artifacts.accuracy import (
    Accuracy,
    FailingBatch,
    compare_outputs,
    misses,
    outputs_mismatch,
    worst,
)
from optimizer.artifacts.build_results import ModelArtifact, PreparedModel, Reference
from optimizer.artifacts.task_metric import evaluate_metric
from optimizer.configuration.runtimes.spec import Kind
from optimizer.errors import TrialFailure
from optimizer.measurement.model_memory import ModelMemory
from optimizer.search.gate_server import DeployedPipeline, GateServer, GateSubject
from optimizer.study.events import Watcher
from optimizer.study.gated_artifact import GatedShapes, GatePlan
from optimizer.triton.session import ServingSession
from optimizer.workload.data_types import concatenated
from optimizer.workload.model_spec import ModelSpec
from optimizer.workload.streams import Tensors, stack

_MEMORY_BATCH = 8
"""Memory is read after a batch of this size; after the largest it would overstate most others."""


@dataclass(frozen=True)
class GateResult:
    """The accuracy of one instance, and its resource use.

    Attributes:
        accuracy: at the longest length, in the largest correct batches.
        memory: of the instance.
        shapes: at which the outputs are correct.
        dropped: why the artefact is too inaccurate to be used at all; None where it passed.
        failing: the smallest wrong batch; None where all are correct.
        served_ms: mean compute time of one execution in the server, by batch size.
    """

    accuracy: Accuracy | None
    memory: ModelMemory
    shapes: GatedShapes
    dropped: str | None
    failing: FailingBatch | None
    served_ms: Mapping[int, float]


@dataclass(frozen=True)
class AccuracyGate:
    """Serves artefacts one after the other and judges their outputs.

    Args:
        kind: of the instance; one runs at a time, on the slot's first GPU or on all cores.
        cores: that the instance may use.
    """

    session: ServingSession
    kind: Kind
    cores: int
    watch: Watcher

    def judge(
        self,
        artifact: ModelArtifact,
        model: ModelSpec,
        prepared: PreparedModel,
        plan: GatePlan,
        pipeline: DeployedPipeline | None = None,
    ) -> GateResult:
        """Serve an artefact and judge it at every planned shape; retry transient failures once.

        Args:
            model: that requests go to, of which `prepared` has the reference.
            pipeline: for an artefact of an ensemble or of a step, the ensemble.

        Raises:
            TrialFailure: when it cannot be served.
            UsageError: when the task's metric cannot be calculated.
        """
        placement = (self.kind, self.cores)
        graph_lengths = tuple(sorted(plan.lengths)) if plan.cuda_graphs else ()
        subject = GateSubject(artifact, model, prepared.outputs, pipeline, graph_lengths)
        server = GateServer(self.session, subject, placement, self.watch)
        try:
            return _Judge(server, model, prepared, plan).judge()
        finally:
            server.close()


class _Judge:
    def __init__(
        self, server: GateServer, model: ModelSpec, prepared: PreparedModel, plan: GatePlan
    ) -> None:
        by_length = {each.length: each for each in prepared.references if not each.sizes}
        self._server = server
        self._model = model
        self._plan = plan
        self._references = [
            *(by_length[length] for length in plan.lengths),
            *(each for each in prepared.references if each.sizes),
        ]
        self._longest = self._references[0]
        self._alone: dict[str, Tensors] = {}
        self._accuracy: Accuracy | None = None
        self._served_ms: dict[int, float] = {}

    def judge(self) -> GateResult:
        plan = self._plan
        self._server.serve(plan.largest)
        dropped = self._requests_alone()
        if dropped is None and self._server.merged > 1:
            # One instance of a BLS model calls its steps for one execution at a time.
            self._server.serve(plan.largest, plan.most_instances)
            dropped = self._wrong_when_merged(self._server.merged)
        loaded = self._models_memory()
        largest, failing = None, None
        if dropped is None:
            largest, failing = self._batches()
        lengths = tuple(sorted(r.length for r in self._references if self._is_right_alone(r)))
        return GateResult(
            accuracy=self._accuracy,
            memory=self._instance_memory(loaded) if dropped is None else loaded,
            shapes=GatedShapes(plan.tested_sizes(largest) if lengths else (), lengths),
            dropped=dropped,
            failing=failing,
            served_ms=self._served_ms,
        )

    def _is_right_alone(self, reference: Reference) -> bool:
        return not reference.sizes and reference.shape in self._alone

    def _instance_memory(self, loaded: ModelMemory) -> ModelMemory:
        """Return the instance's memory; of a step what a second instance adds to the pipeline."""
        if not self._server.serves_step or loaded.device_mib is None:
            return loaded
        if self._plan.most_instances == 1:
            return ModelMemory()
        batch = max(self._plan.request_size, self._medium_batch)
        largest = min(size for size in self._plan.max_batch_sizes if size >= batch)
        try:
            self._server.serve(largest, instances=2)
            # So many that they do not fit in one execution.
            both = [self._batch(self._longest, batch)] * (2 * math.ceil(largest / batch))
            self._server.infer_concurrently(both)
        except TrialFailure:  # the search meets it again where it matters
            return ModelMemory()
        return self._server.models_memory - loaded

    @property
    def _medium_batch(self) -> int:
        size = self._plan.request_size
        return min(self._plan.largest, _MEMORY_BATCH) // size * size

    def _models_memory(self) -> ModelMemory:
        """Return the memory of what is served after it executed a batch of medium size."""
        alone, batch = self._server.models_memory, self._medium_batch
        if alone.device_mib is None or batch <= self._plan.request_size:
            return alone
        try:
            self._server.infer_concurrently([self._batch(self._longest, batch)])
        except TrialFailure:  # the failing batch is determined below
            return alone
        return self._server.models_memory

    def _batch(self, reference: Reference, size: int) -> Tensors:
        """Return a request of `size` inferences, which repeats the held-out rows."""
        rows = reference.requests
        return stack([rows[n % len(rows)] for n in range(size)])

    def _requests_alone(self) -> str | None:
        """Send every request by itself, of each shape; return the limits that are missed.

        Raises:
            TrialFailure: when a request fails.
        """
        for reference in self._references:
            at = self._at(reference)
            try:
                outputs = self._outputs_alone(reference)
            except TrialFailure as error:
                if not at:
                    raise
                raise TrialFailure(f"requests{at}: {error}") from error
            accuracy, missed = self._judged(reference, outputs)
            if reference is self._longest:
                self._accuracy = accuracy
            if missed:
                return f"accuracy{at}: {missed}"
            self._alone[reference.shape] = outputs
        return None

    def _outputs_alone(self, reference: Reference) -> Tensors:
        requests = self._requests(reference)
        # The first execution of a shape is not timed: some backends compile.
        self._server.infer_separately(requests[:1])
        outputs = self._server.infer_separately(requests)
        if reference is self._longest:
            self._served_ms |= self._server.last_ms
        return _first(outputs, len(reference.requests))

    def _batches(self) -> tuple[int | None, FailingBatch | None]:
        """Return the largest max_batch_size with correct batches, and the smallest wrong batch."""
        failing: FailingBatch | None = None
        sizes = self._plan.below(self._plan.largest + 1)
        while sizes:
            self._server.serve(sizes[-1])
            failing_batch = self._failing_batch(sizes[-1])
            if failing_batch is None:
                return sizes[-1], failing
            failing, sizes = failing_batch, self._plan.below(failing_batch.size)
        return None, failing

    def _failing_batch(self, largest: int) -> FailingBatch | None:
        batches = self._plan.batches(largest)
        for reference in self._references:
            for size in batches:
                reason = self._wrong_in_a_batch(reference, size)
                if reason is not None:
                    return FailingBatch(size, reason)
        reason = self._wrong_when_merged(batches[0]) or self._wrong_when_mixed()
        return FailingBatch(batches[0], reason) if reason is not None else None

    def _wrong_in_a_batch(self, reference: Reference, size: int) -> str | None:
        """Send one request of `size` inferences, which the server executes as one batch."""
        try:
            outputs = self._server.infer_concurrently([self._batch(reference, size)], size)
        except TrialFailure as error:
            return f"batch of {size}{self._at(reference)}: {error}"
        alone = self._alone[reference.shape]
        wrong = outputs_mismatch(reference.outputs, alone, outputs, reference.judged)
        if wrong is None or len(self._references) == 1:
            return wrong
        return f"at {reference.shape}, {wrong}"

    def _wrong_when_merged(self, largest: int) -> str | None:
        """Send all requests at once; the server merges them as it does under load."""
        reference = self._longest
        try:
            merged = self._server.infer_concurrently(self._requests(reference))
        except TrialFailure as error:
            return f"requests merged into batches of up to {largest}: {error}"
        outputs = _first(merged, len(reference.requests))
        accuracy, missed = self._judged(reference, outputs)
        wrong = missed or outputs_mismatch(
            reference.outputs, self._alone[reference.shape], outputs, reference.judged
        )
        if wrong is not None:
            return f"requests merged into batches of up to {largest}: {wrong}"
        self._accuracy = accuracy
        self._served_ms = self._server.last_ms | self._served_ms
        return None

    def _wrong_when_mixed(self) -> str | None:
        """Send requests of all shapes at once, in turn, as many as are sent of one shape."""
        references, size = self._references, self._plan.request_size
        if len(references) == 1:
            return None
        in_turn = [self._requests(reference) for reference in references]
        count = min(map(len, in_turn))
        turns = [n % len(references) for n in range(count)]
        mixed = [in_turn[turn][n] for n, turn in enumerate(turns)]
        try:
            outputs = self._server.infer_concurrently(mixed)
        except TrialFailure as error:
            return f"requests of several shapes at once: {error}"
        for turn, reference in enumerate(references):
            numbers = [n for n in range(count) if turns[n] == turn]
            rows = [n * size + k for n in numbers for k in range(size)]
            wrong = self._mismatch_of_rows(reference, rows, outputs) if rows else None
            if wrong is not None:
                return f"requests of several shapes at once,{self._at(reference)}: {wrong}"
        return None

    def _mismatch_of_rows(
        self, reference: Reference, rows: list[int], outputs: Tensors
    ) -> str | None:
        """Compare the outputs in some rows with those of the same requests sent alone."""
        own = [row % len(reference.requests) for row in rows]
        alone = self._alone[reference.shape]
        return outputs_mismatch(
            {name: values[own] for name, values in reference.outputs.items()},
            {name: values[own] for name, values in alone.items()},
            {
                name: concatenated([np.asarray(values[row])[None] for row in rows])
                for name, values in outputs.items()
            },
            {name: values[own] for name, values in reference.judged.items()},
        )

    def _requests(self, reference: Reference) -> list[Tensors]:
        """Return the held-out rows as requests of the workload's size; the last is filled up."""
        rows, size = reference.requests, self._plan.request_size
        return [
            stack([rows[n % len(rows)] for n in range(start, start + size)])
            for start in range(0, len(rows), size)
        ]

    def _judged(self, reference: Reference, outputs: Tensors) -> tuple[Accuracy, str | None]:
        """Return the accuracy, and the missed limits.

        The task's metric is defined for the longest length only.
        """
        limits = self._model.accuracy
        accuracies = compare_outputs(reference.outputs, outputs, reference.judged)
        accuracy, missed = worst(accuracies.values()), misses(accuracies, limits)
        metric = limits.metric
        if metric is not None and reference is self._longest:
            batched = self._model.payloads.batched
            value = evaluate_metric(metric, reference.requests, outputs, batched=batched)
            accuracy = replace(accuracy, metric=value)
            if value < metric.minimum:
                missed.append(f"{metric.function} must be at least {metric.minimum:g}, got {value}")
        return accuracy, "; ".join(missed) or None

    def _at(self, reference: Reference) -> str:
        return f" at {reference.shape}" if len(self._references) > 1 else ""


def _first(outputs: Tensors, count: int) -> Tensors:
    return {name: values[:count] for name, values in outputs.items()}
