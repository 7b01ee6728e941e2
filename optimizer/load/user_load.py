"""User load: a closed loop of users with a think time between reply and next request.

Names are those of SageMaker Inference Recommender's TrafficPattern, so that load tests written for
it can be run here.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from optimizer.load.exchange import Users


@dataclass(frozen=True)
class Phase:
    """An initial number of users, and `spawn_rate` more per minute.

    Each of several phases begins with its own number of users.
    """

    initial_number_of_users: int
    spawn_rate: float
    duration_in_seconds: float

    def changes(self) -> list[tuple[float, int]]:
        """Return pairs (seconds since the phase began, users from then on)."""
        later = [(n * 60 / self.spawn_rate, n) for n in range(1, self._spawned)]
        return [(at, self.initial_number_of_users + n) for at, n in [(0.0, 0), *later]]

    @property
    def _spawned(self) -> int:
        return int(np.ceil(self.spawn_rate * self.duration_in_seconds / 60 - 1e-9))

    @property
    def most_users(self) -> int:
        """Number of users at the end of the phase."""
        return self.initial_number_of_users + max(0, self._spawned - 1)


@dataclass(frozen=True)
class UserLoad:
    """Phases of users, one after the other; of TrafficType STAIRS, each step is a phase.

    Attributes:
        think_seconds: between a reply and the same user's next request.
    """

    phases: tuple[Phase, ...]
    think_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Time that all phases take together."""
        return sum(phase.duration_in_seconds for phase in self.phases)

    def users(self) -> Users:
        """Return the number of users over time, for the client processes."""
        begins = accumulate((phase.duration_in_seconds for phase in self.phases), initial=0.0)
        changes = [
            (begin + at, count)
            for begin, phase in zip(begins, self.phases, strict=False)
            for at, count in phase.changes()
        ]
        return Users(
            at_seconds=np.array([at for at, _ in changes]),
            counts=np.array([count for _, count in changes], dtype=np.int64),
            think_seconds=self.think_seconds,
            seconds=self.seconds,
        )
