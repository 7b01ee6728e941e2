"""How long an instance takes for a batch. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SPREAD = 0.1
"""Coefficient of variation of single executions where nothing tells what it is."""


@dataclass(frozen=True)
class Unevenness:
    """How single executions depart from their mean while all instances are busy.

    Attributes:
        spread: coefficient of variation of single executions.
        wake_ms: how much longer an execution takes on an instance that was idle, by runtime; none
            for those that are not named.
    """

    spread: float = SPREAD
    wake_ms: tuple[tuple[str, float], ...] = ()

    def wake_of(self, runtime: str) -> float:
        """`wake_ms` of one runtime."""
        return dict(self.wake_ms).get(runtime, 0.0)


EVEN = Unevenness()
"""Where nothing is known of it."""


@dataclass(frozen=True)
class ServiceCurve:
    """Time that one instance takes for one execution, by the batch that it executes.

    Attributes:
        batch_sizes: where the curve is known, in inferences, ascending, at least one.
        execution_ms: at each of these, mean time from the start of an execution until the instance
            can begin the next one, while all instances are busy.
        spread: coefficient of variation of single executions.
        busy_factors: element k - 1 multiplies `execution_ms` where k instances are busy, the one
            that begins among them; one for each instance, the last is 1.
        outside_ms: what a request spends neither waiting nor executing: the way from client to
            server and back. It occupies no instance.
        wake_ms: how much longer an execution takes on an instance that was idle when it began.
        log_sd: standard deviation of the logarithm of `execution_ms` as a whole: what is not known.
    """

    batch_sizes: tuple[int, ...]
    execution_ms: tuple[float, ...]
    spread: float = 0.0
    busy_factors: tuple[float, ...] = (1.0,)
    outside_ms: float = 0.0
    wake_ms: float = 0.0
    log_sd: float = 0.0

    def table_ms(self, max_batch_size: int) -> NDArray[np.float64]:
        """Mean time by batch size, shape [max_batch_size + 1]; element 0 is 0.

        Straight lines between the known sizes and beyond them along the last one, never falling;
        through the origin where only one size is known.
        """
        sizes = np.asarray(self.batch_sizes, dtype=np.float64)
        known_ms = np.asarray(self.execution_ms, dtype=np.float64)
        if len(sizes) == 1:
            sizes, known_ms = np.insert(sizes, 0, 0.0), np.insert(known_ms, 0, 0.0)
        wanted = np.arange(max_batch_size + 1, dtype=np.float64)
        table = np.interp(wanted, sizes, known_ms)
        for end, (a, b) in ((wanted < sizes[0], (0, 1)), (wanted > sizes[-1], (-2, -1))):
            slope = (known_ms[b] - known_ms[a]) / (sizes[b] - sizes[a])
            table[end] = known_ms[a] + slope * (wanted[end] - sizes[a])
        table = np.maximum.accumulate(np.maximum(table, 0.0))
        table[0] = 0.0
        return table
