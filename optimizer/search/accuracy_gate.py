"""The accuracy gate: one artefact served, and its answers judged at every shape that it may get.

Held-out requests are asked one by one, and compared with the FP32 reference. Then they are asked in
the batches that the space allows, and compared with the answers that they got alone. The server's
own counters prove that the batches were executed. What the loaded instance takes of memory, and how
long batches take in the server, is read on the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from optimizer.artifacts.accuracy import Accuracy, batch_mismatch, compare, misses
from optimizer.artifacts.build_results import ModelArtifact, PreparedModel, Reference
from optimizer.artifacts.task_metric import evaluate_metric
from optimizer.errors import TrialFailure
from optimizer.runtimes.spec import Kind
from optimizer.search.gate_server import GateServer
from optimizer.study.events import Watcher
from optimizer.study.gated_artifact import FailingBatch, GatedShapes, GatePlan
from optimizer.triton.session import ServingSession
from optimizer.workload.model_spec import ModelSpec
from optimizer.workload.streams import Tensors, stack

_MEMORY_BATCH = 8
"""Memory is read after a batch of this size: that of the largest would overstate most others."""


@dataclass(frozen=True)
class GateResult:
    """What one instance showed.

    Attributes:
        accuracy: at the longest length, in the largest batches that are right.
        instance_mib: memory that it takes, None where that was not seen.
        shapes: at which its answers are right.
        dropped: why it is too inaccurate to be used at all; None where it passed.
        failing: the smallest batch found wrong; None where all are right.
        served_ms: mean time of one execution in the server, by batch size.
    """

    accuracy: Accuracy | None
    instance_mib: float | None
    shapes: GatedShapes
    dropped: str | None
    failing: FailingBatch | None
    served_ms: Mapping[int, float]


class AccuracyGate:
    """Serves artefacts one after the other and judges their answers.

    Args:
        kind: where instances run; one runs at a time, on the slot's first GPU or on all cores.
        cores: that the instance may use.
    """

    def __init__(self, session: ServingSession, kind: Kind, cores: int, watch: Watcher) -> None:
        self._session = session
        self.kind = kind
        self._cores = cores
        self._watch = watch

    def judge(
        self, artifact: ModelArtifact, model: ModelSpec, prepared: PreparedModel, plan: GatePlan
    ) -> GateResult:
        """Serve an artefact and judge it at every planned shape; what may pass is tried again.

        Raises:
            TrialFailure: when it cannot be served.
            UsageError: when the task's metric cannot be calculated.
        """
        server = GateServer(
            self._session, artifact, model, prepared.output, (self.kind, self._cores), self._watch
        )
        try:
            return _Judge(server, model, prepared, plan).judge()
        finally:
            server.close()


class _Judge:
    """Judges one artefact."""

    def __init__(
        self, server: GateServer, model: ModelSpec, prepared: PreparedModel, plan: GatePlan
    ) -> None:
        by_length = {reference.length: reference for reference in prepared.references}
        self._server = server
        self._model = model
        self._plan = plan
        self._references = [by_length[length] for length in plan.lengths]
        self._longest = self._references[0]
        self._alone: dict[int, NDArray[np.float64]] = {}
        self._accuracy: Accuracy | None = None
        self._served_ms: dict[int, float] = {}

    def judge(self) -> GateResult:
        plan = self._plan
        self._server.serve(plan.largest)
        dropped = self._requests_alone()
        instance_mib = self._instance_mib()
        largest, failing = None, None
        if dropped is None:
            largest, failing = self._batches()
        lengths = tuple(sorted(self._alone))
        return GateResult(
            accuracy=self._accuracy,
            instance_mib=instance_mib,
            shapes=GatedShapes(plan.tested_sizes(largest) if lengths else (), lengths),
            dropped=dropped,
            failing=failing,
            served_ms=self._served_ms,
        )

    def _instance_mib(self) -> float | None:
        """Return what the instance takes once it has executed a batch of a middling size."""
        alone, size = self._server.instance_mib, self._plan.request_size
        batch = min(self._plan.largest, _MEMORY_BATCH) // size * size
        if batch <= size:
            return alone
        try:
            self._server.together([self._batch(self._longest, batch)])
        except TrialFailure:  # which batches fail is found out below
            return alone
        return self._server.instance_mib

    def _batch(self, reference: Reference, size: int) -> Tensors:
        """Return a request of `size` inferences, the held-out rows over and over."""
        rows = reference.requests
        return stack([rows[n % len(rows)] for n in range(size)])

    def _requests_alone(self) -> str | None:
        """Ask every request by itself, at each length; return the limits that are missed.

        Raises:
            TrialFailure: when one is not answered.
        """
        for reference in self._references:
            at = self._at(reference)
            try:
                answers = self._answers_alone(reference)
            except TrialFailure as error:
                if not at:
                    raise
                raise TrialFailure(f"requests{at}: {error}") from error
            accuracy = self._judged(reference, answers)
            if reference is self._longest:
                self._accuracy = accuracy
            if missed := self._missed(reference, accuracy):
                return f"accuracy{at}: {missed}"
            self._alone[reference.length] = answers
        return None

    def _answers_alone(self, reference: Reference) -> NDArray[np.float64]:
        requests = self._requests(reference)
        # The first execution of a shape is not timed: it allocates, and compiles with some.
        self._server.alone(requests[:1])
        answers = self._server.alone(requests)
        if reference is self._longest:
            self._served_ms |= self._server.last_ms
        return answers[: len(reference.requests)]

    def _batches(self) -> tuple[int | None, FailingBatch | None]:
        """Return the largest max_batch_size whose batches are right, and the least wrong batch."""
        failing: FailingBatch | None = None
        sizes = self._plan.below(self._plan.largest + 1)
        while sizes:
            self._server.serve(sizes[-1])
            found = self._failing_batch(sizes[-1])
            if found is None:
                return sizes[-1], failing
            failing, sizes = found, self._plan.below(found.size)
        return None, failing

    def _failing_batch(self, largest: int) -> FailingBatch | None:
        batches = self._plan.batches(largest)
        for reference in self._references:
            for size in batches:
                reason = self._wrong_in_a_batch(reference, size)
                if reason is not None:
                    return FailingBatch(size, reason)
        reason = self._wrong_when_merged(batches[0])
        return FailingBatch(batches[0], reason) if reason is not None else None

    def _wrong_in_a_batch(self, reference: Reference, size: int) -> str | None:
        """Ask one request of `size` inferences, which the server executes as it is."""
        try:
            answers = self._server.together([self._batch(reference, size)], size)
        except TrialFailure as error:
            return f"batch of {size}{self._at(reference)}: {error}"
        alone = self._alone[reference.length]
        wrong = batch_mismatch(reference.outputs, alone, answers, reference.judged)
        if wrong is None or len(self._references) == 1:
            return wrong
        return f"at {reference.length} tokens, {wrong}"

    def _wrong_when_merged(self, largest: int) -> str | None:
        """Ask all requests at once, for the server to merge as it does under load."""
        reference = self._longest
        try:
            merged = self._server.together(self._requests(reference))
        except TrialFailure as error:
            return f"requests merged into batches of up to {largest}: {error}"
        answers = merged[: len(reference.requests)]
        accuracy = self._judged(reference, answers)
        wrong = self._missed(reference, accuracy) or batch_mismatch(
            reference.outputs, self._alone[reference.length], answers, reference.judged
        )
        if wrong is not None:
            return f"requests merged into batches of up to {largest}: {wrong}"
        self._accuracy = accuracy
        self._served_ms = self._server.last_ms | self._served_ms
        return None

    def _requests(self, reference: Reference) -> list[Tensors]:
        """Return the held-out rows as requests of the traffic's size; the last one is filled up."""
        rows, size = reference.requests, self._plan.request_size
        return [
            stack([rows[n % len(rows)] for n in range(start, start + size)])
            for start in range(0, len(rows), size)
        ]

    def _judged(self, reference: Reference, answers: NDArray[np.float64]) -> Accuracy:
        accuracy = compare(reference.outputs, answers, reference.judged)
        metric = self._model.accuracy.metric
        if metric is None or reference is not self._longest:
            return accuracy
        return replace(accuracy, metric=evaluate_metric(metric, reference.requests, answers))

    def _missed(self, reference: Reference, accuracy: Accuracy) -> str | None:
        """Say which limits are missed; the task's metric knows whole requests only."""
        limits = self._model.accuracy
        if reference is not self._longest:
            limits = replace(limits, metric=None)
        return "; ".join(misses(accuracy, limits)) or None

    def _at(self, reference: Reference) -> str:
        return f" at {reference.length} tokens" if len(self._references) > 1 else ""
