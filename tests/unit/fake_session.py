"""A serving session without a server: a function answers, and batches are counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.configuration.serving_config import ServingConfig
from optimizer.errors import TrialFailure
from optimizer.measurement.level import BatchPoint, ServerSplit
from optimizer.measurement.model_memory import ModelMemory
from optimizer.triton.session import ModelFiles
from optimizer.workload.streams import Tensors, stack

Answer = Callable[[Tensors], NDArray[Any]]


@dataclass
class FakeSession:
    """Serves whatever it is given.

    Attributes:
        answer: what the model answers to a batch.
        merging: whether requests that come together are executed together.
        asked: names of the models that got requests.
        rows: numbers of inferences of the requests.
        host_mib: what an instance on a GPU takes of the machine; None on a CPU.
        executing: turns the batch that the model gets into what the server counts.
    """

    answer: Answer
    merging: bool = True
    host_mib: float | None = None
    executing: Callable[[int], int] = lambda batch: batch
    served: list[ServingConfig] = field(default_factory=list)
    files: list[Mapping[str, ModelFiles]] = field(default_factory=list)
    failures: list[TrialFailure] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)
    rows: set[int] = field(default_factory=set)

    @property
    def control(self) -> FakeSession:
        return self

    def serve(self, config: ServingConfig, files: Mapping[str, ModelFiles]) -> FakeSession:
        self.served.append(config)
        self.files.append(files)
        self._counts: Counter[int] = Counter()
        return self

    def memory_of_models(self) -> ModelMemory:
        second = sum(model.instance_count - 1 for model in self.served[-1].models)
        host_mib = None if self.host_mib is None else self.host_mib * (1 + second)
        return ModelMemory(700.0 + 50.0 * second + max(self._counts, default=0), host_mib)

    def retire(self, *, wait: bool) -> None:
        """Keep nothing."""

    def failure(self, error: TrialFailure) -> TrialFailure:
        self.failures.append(error)
        return error

    def statistics(self, model: str) -> Counter[int]:
        return Counter(self._counts)

    def executed_since(self, before: Counter[int], inferences: int) -> ServerSplit:
        counts = self._counts - before
        points = tuple(BatchPoint(size, n, float(size)) for size, n in sorted(counts.items()))
        return ServerSplit("model", inferences, 0.0, 0.0, 1.0, 0.0, points)

    def infer(
        self,
        model: str,
        requests: Sequence[Tensors],
        outputs: Sequence[str],
        timeout_seconds: float,
        *,
        batched: bool,
    ) -> Tensors:
        assert batched
        self.asked.add(model)
        self.rows.update(len(next(iter(request.values()))) for request in requests)
        largest = max(served.max_batch_size for served in self.served[-1].models)
        by_shape: dict[object, list[int]] = {}
        for n, request in enumerate(requests):
            by_shape.setdefault(str([a.shape for a in request.values()]), []).append(n)
        answers: dict[int, NDArray[Any]] = {}
        for numbers in by_shape.values():
            own = [requests[n] for n in numbers]
            rows = np.concatenate([self._executed(b) for b in self._batches(own, largest)])
            answers |= zip(numbers, np.split(rows, len(numbers)), strict=True)
        [output] = outputs
        joined = np.concatenate([answers[n] for n in range(len(requests))])
        return {output: joined.astype(np.float64)}

    def _batches(self, requests: Sequence[Tensors], largest: int) -> list[Tensors]:
        if not self.merging or len(requests) == 1:
            return list(requests)
        rows = len(next(iter(requests[0].values())))
        step = max(1, largest // rows)
        return [stack(list(requests[n : n + step])) for n in range(0, len(requests), step)]

    def _executed(self, batch: Tensors) -> NDArray[Any]:
        self._counts[self.executing(len(next(iter(batch.values()))))] += 1
        return self.answer(batch)
