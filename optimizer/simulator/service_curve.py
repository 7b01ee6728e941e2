"""How long an instance takes for a batch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

SPREAD = 0.1
"""Coefficient of variation of single executions where no measurement tells it."""


@dataclass(frozen=True)
class ServiceVariation:
    """How single executions depart from their mean time while all instances are busy.

    Attributes:
        spread: coefficient of variation of single executions.
        wake_ms: how much longer an execution takes on an instance that was idle, by runtime; 0 for
            runtimes that are not named.
    """

    spread: float = SPREAD
    wake_ms: tuple[tuple[str, float], ...] = ()


DEFAULT_VARIATION = ServiceVariation()
"""Assumed before any light load was measured."""


@dataclass(frozen=True)
class ServiceCurve:
    """Time that one instance takes for one execution, by batch size.

    Attributes:
        batch_sizes: where the curve is known, in inferences, ascending, at least one.
        execution_ms: at each of these, mean time from the start of an execution until the instance
            can begin the next one, while all instances are busy.
        spread: coefficient of variation of single executions.
        busy_factors: element k - 1 multiplies `execution_ms` where k instances are busy, the one
            that begins among them; one for each instance, the last is 1.
        outside_ms: time of a request between client and server, there and back. It occupies no
            instance.
        wake_ms: how much longer an execution takes on an instance that was idle when it began.
        log_sd: standard deviation of the logarithm of `execution_ms` as a whole, its uncertainty.
    """

    batch_sizes: tuple[int, ...]
    execution_ms: tuple[float, ...]
    spread: float = 0.0
    busy_factors: tuple[float, ...] = (1.0,)
    outside_ms: float = 0.0
    wake_ms: float = 0.0
    log_sd: float = 0.0

    def slower(self, factor: float) -> ServiceCurve:
        """Return the curve with all execution times multiplied."""
        times = tuple(factor * ms for ms in self.execution_ms)
        return replace(self, execution_ms=times, wake_ms=factor * self.wake_ms)

    def table_ms(self, max_batch_size: int) -> NDArray[np.float64]:
        """Return the mean time by batch size, shape [max_batch_size + 1]; element 0 is 0.

        Straight lines between the known sizes and beyond them along the last one, never falling;
        through the origin where only one size is known.
        """
        sizes = np.asarray(self.batch_sizes, dtype=np.float64)
        times_ms = np.asarray(self.execution_ms, dtype=np.float64)
        if len(sizes) == 1:
            sizes, times_ms = np.insert(sizes, 0, 0.0), np.insert(times_ms, 0, 0.0)
        wanted = np.arange(max_batch_size + 1, dtype=np.float64)
        table = np.interp(wanted, sizes, times_ms)
        for outside, (a, b) in ((wanted < sizes[0], (0, 1)), (wanted > sizes[-1], (-2, -1))):
            slope = (times_ms[b] - times_ms[a]) / (sizes[b] - sizes[a])
            table[outside] = times_ms[a] + slope * (wanted[outside] - sizes[a])
        table = np.maximum.accumulate(np.maximum(table, 0.0))
        table[0] = 0.0
        return table
