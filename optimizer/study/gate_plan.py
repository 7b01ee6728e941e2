"""Which shapes the accuracy gate asks of an artefact: those that the search can send. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optimizer.configuration.serving_config import ArtifactUse
from optimizer.workload.streams import Payloads


@dataclass(frozen=True)
class GatePlan:
    """The shapes that configurations of one artefact can have it execute.

    Attributes:
        lengths: that requests are padded to, in tokens, the longest first.
        max_batch_sizes: of the configurations, ascending.
        request_size: inferences that one request asks for, the smallest batch.
    """

    lengths: tuple[int, ...]
    max_batch_sizes: tuple[int, ...]
    request_size: int = 1

    @classmethod
    def of(cls, use: ArtifactUse, payloads: Payloads, request_size: int) -> GatePlan:
        """Plan for everything that the points of a space can send to one artefact."""
        lengths = {n for padding in use.paddings for n in payloads.sent_lengths(padding)}
        return cls(tuple(sorted(lengths, reverse=True)), use.max_batch_sizes, request_size)

    @property
    def largest(self) -> int:
        """The largest max_batch_size."""
        return self.max_batch_sizes[-1]

    def batches(self, largest: int) -> tuple[int, ...]:
        """Return what is asked of a server that executes at most `largest` inferences at once.

        The largest batch that requests make, and an odd number of requests below it; empty where
        that leaves requests by themselves only.
        """
        requests = largest // self.request_size
        odd = requests // 2 | 1
        counts = [n for n in (requests, odd) if 1 < n <= requests]
        return tuple(n * self.request_size for n in dict.fromkeys(counts))

    def below(self, batch: int) -> tuple[int, ...]:
        """Return the values of max_batch_size that do not reach a batch, and hold two requests."""
        return tuple(n for n in self.max_batch_sizes if 2 * self.request_size <= n < batch)


@dataclass(frozen=True)
class GatedShapes:
    """The shapes at which an artefact answered rightly: each batch size at each length."""

    batch_sizes: tuple[int, ...]
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class FailingBatch:
    """The smallest batch that an artefact was seen to answer wrongly, or not at all."""

    size: int
    reason: str


def covered(plan: GatePlan, shapes: GatedShapes, failing: FailingBatch | None) -> bool:
    """Say whether what was gated holds for everything that is planned."""
    executed = plan.batches(plan.largest) or (plan.request_size,)
    return set(plan.lengths) <= set(shapes.lengths) and (
        failing is not None or set(executed) <= set(shapes.batch_sizes)
    )


def batch_sizes(plan: GatePlan, largest: int | None) -> tuple[int, ...]:
    """Return the batch sizes that were gated, ascending, with `largest` the largest that passed."""
    passed: Sequence[int] = plan.batches(largest) if largest is not None else ()
    return tuple(sorted({plan.request_size, *passed}))
