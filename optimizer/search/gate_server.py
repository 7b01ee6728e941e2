"""One artefact on the session's server, asked request by request, and what the server executed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from optimizer.artifacts.build_results import ModelArtifact
from optimizer.configuration.serving_config import (
    Batching,
    InstanceGroup,
    ModelServing,
    ServingConfig,
)
from optimizer.errors import ConfigMismatch, TrialFailure
from optimizer.measurement.level import ServerSplit
from optimizer.runtimes.spec import Kind
from optimizer.study.events import Note, Watcher
from optimizer.triton.session import ModelFiles, ServingSession
from optimizer.triton.session import ServedConfiguration as ServedModel
from optimizer.workload.model_spec import ModelSpec
from optimizer.workload.streams import OutputTensor, Tensors

_CALL_SECONDS, _ROW_SECONDS = 120.0, 5.0
"""Longest time of the requests that are sent together, and what every inference adds to it."""


class GateServer:
    """Serves one instance of an artefact; it is served anew after a failure.

    Args:
        place: where the instance runs, and how many cores it may use.
    """

    def __init__(
        self,
        session: ServingSession,
        artifact: ModelArtifact,
        model: ModelSpec,
        output: OutputTensor,
        place: tuple[Kind, int],
        watch: Watcher,
    ) -> None:
        self._session = session
        self._artifact = artifact
        self._model = model
        self._output = output
        self._place = place
        self._watch = watch
        self._served: ServedModel | None = None
        self._max_batch_size = 0
        self._executed: ServerSplit | None = None

    def serve(self, max_batch_size: int) -> None:
        """Have the artefact served with a max_batch_size; one failure that may pass is forgiven.

        Raises:
            TrialFailure: when it cannot be served.
        """
        if self._served is not None and max_batch_size == self._max_batch_size:
            return
        self.close()
        self._max_batch_size = max_batch_size
        try:
            self._start()
        except TrialFailure as error:
            self._try_again(error)

    def alone(self, requests: Sequence[Tensors]) -> NDArray[np.float64]:
        """Return the answers to requests that are sent one after the other, each a batch.

        Raises:
            TrialFailure: when one is not answered, twice where the failure may pass.
        """
        return self._answers([[request] for request in requests], _rows(requests[0]))

    def together(
        self, requests: Sequence[Tensors], batch: int | None = None
    ) -> NDArray[np.float64]:
        """Return the answers to requests that are sent at once, shape [inferences, ...].

        Args:
            batch: that the server must have executed; None where it may merge as it likes.

        Raises:
            TrialFailure: when one is not answered, twice where the failure may pass.
        """
        return self._answers([requests], batch)

    @property
    def instance_mib(self) -> float | None:
        """Memory that the instance takes; None where that is not seen."""
        return self._session.memory_of_models_mib() if self._served is not None else None

    @property
    def last_ms(self) -> dict[int, float]:
        """Mean compute time of the batch size that most inferences of the last call were in."""
        assert self._executed is not None, "something was asked first"
        usual = max(self._executed.batches, key=lambda point: point.inferences)
        return {usual.batch_size: usual.compute_ms}

    def close(self) -> None:
        """Unload the artefact; the next one's memory is told from that of an empty server."""
        if self._served is not None:
            self._served = None
            self._session.retire(wait=True)

    def _start(self) -> None:
        name = self._model.name
        files = ModelFiles(
            self._artifact.path, self._model.payloads, self._output, self._artifact.engine
        )
        self._served = self._session.serve(ServingConfig((self._serving(),)), {name: files})

    def _try_again(self, error: TrialFailure) -> None:
        """Serve anew after a failure that may pass; raise it where it may not."""
        if not error.transient:
            raise error
        self._watch(Note(f"{self._artifact.spec.label}: {error}; trying once more", True))
        self._start()

    def _failure(self, error: TrialFailure) -> TrialFailure:
        self._served = None
        return self._session.failure(error)

    def _answers(
        self, calls: Sequence[Sequence[Tensors]], batch: int | None
    ) -> NDArray[np.float64]:
        if self._served is None:
            self._start()
        try:
            return self._asked(calls, batch)
        except TrialFailure as error:
            self._try_again(self._failure(error))
        try:
            return self._asked(calls, batch)
        except TrialFailure as error:
            raise self._failure(error) from error

    def _asked(self, calls: Sequence[Sequence[Tensors]], batch: int | None) -> NDArray[np.float64]:
        assert self._served is not None, "it is served first"
        control, name = self._served.control, self._model.name
        before = control.statistics(name)
        answers = [
            control.infer(name, call, self._output.name, _CALL_SECONDS + _ROW_SECONDS * rows)
            for call in calls
            for rows in [sum(map(_rows, call))]
        ]
        joined: NDArray[np.float64] = np.concatenate(answers)
        self._executed = control.executed_since(before, len(joined))
        executed = [point.batch_size for point in self._executed.batches]
        if batch is not None and batch not in executed:
            sizes = ", ".join(map(str, executed)) or "none"
            raise ConfigMismatch(
                f"the server was to execute a batch of {batch}; it executed batches of {sizes}"
            )
        return joined

    def _serving(self) -> ModelServing:
        """One instance, which batches where more than one request fits in a batch."""
        kind, cores = self._place
        on_cpu = InstanceGroup("KIND_CPU", 1, (), cores)
        largest = self._max_batch_size
        return ModelServing(
            name=self._model.name,
            artifact=self._artifact.spec,
            max_batch_size=largest,
            batching=Batching() if largest > 1 else None,
            groups=(on_cpu if kind == "KIND_CPU" else InstanceGroup(kind, 1, (0,)),),
        )


def _rows(request: Tensors) -> int:
    return len(next(iter(request.values())))
