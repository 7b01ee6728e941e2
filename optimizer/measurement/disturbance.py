"""Whether trials that run at the same time slow each other down. Pure."""

from __future__ import annotations

from dataclasses import dataclass

NOTABLE_SLOWDOWN = 0.05


@dataclass(frozen=True)
class WorkerRate:
    """Saturation rate of the baseline on one worker, in requests/s, with its interval."""

    worker: str
    per_second: float
    low: float
    high: float


@dataclass(frozen=True)
class DisturbanceCheck:
    """The baseline's saturation rate on one worker alone, and on all workers at the same time.

    Attributes:
        at: Unix time in seconds.
        together: of each worker.
    """

    at: float
    alone: WorkerRate
    together: tuple[WorkerRate, ...]

    @property
    def slowest(self) -> WorkerRate:
        """The worker with the lowest rate."""
        return min(self.together, key=lambda rate: rate.per_second)

    @property
    def slowdown(self) -> float:
        """Share of the rate alone that the slowest worker loses; at least 0."""
        return max(0.0, 1 - self.slowest.per_second / self.alone.per_second)

    def is_above(self, share: float) -> bool:
        """Return whether the slowdown is above a share, and statistically significant."""
        return self.slowdown > share and self.slowest.high < self.alone.low

    @property
    def text(self) -> str:
        """The figures in words."""
        rates = [rate.per_second for rate in self.together]
        return (
            f"the baseline saturates at {self.alone.per_second:.0f} requests/s alone, and at "
            f"{min(rates):.0f} to {max(rates):.0f} on {len(rates)} workers at the same time"
        )
