"""The sampler that the simulator guides."""

from __future__ import annotations

from collections.abc import Sequence

from optimizer.configuration.model_space import Position
from optimizer.search.samplers.points import PointSampler, RequestedPoint
from optimizer.search.surrogate.acquisition import AcquisitionPolicy


class GuidedSampler(PointSampler):
    """Proposes what the policy says, given what the study is measuring at the time.

    What is proposed depends only on the policy's seed, its history and the running trials. No point
    is proposed twice, until every point is measured or ruled out.
    """

    def __init__(self, policy: AcquisitionPolicy, seed: int) -> None:
        super().__init__(policy.space, seed)
        self._policy = policy

    def choose(self, asked: Sequence[RequestedPoint]) -> Position | None:
        """What the policy says; results it knows from its history."""
        return self._policy.propose([point.position for point in asked if point.running])
