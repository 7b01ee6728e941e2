"""The expected improvement of a point, and the expected duration of its trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray
from scipy import special

from optimizer.load.capacity import CapacityProtocol
from optimizer.measurement.trial_record import TrialRecord

Array = NDArray[np.float64]

_SERVING_SECONDS = 5.0
"""Seconds for starting a server and loading a model, before any trial has shown them."""

_LATEST = 100
"""Trials whose durations are looked at, the latest."""

_RESTART_SECONDS = 3.0
"""Extra seconds where the server's own options change."""


def improvement(log_mean: Array, log_sd: Array, log_best: float) -> Array:
    """Return the expected share of the best cost that each point saves: E[max(0, 1 - cost / best)].

    Costs are lognormal with this mean and standard deviation of their logarithms.
    """
    away = (log_best - log_mean) / log_sd
    shrunk = np.exp(np.minimum(log_mean - log_best + log_sd**2 / 2, 50.0))
    gained = special.ndtr(away) - shrunk * special.ndtr(away - log_sd)
    return np.asarray(np.maximum(gained, 0.0))


@dataclass(frozen=True)
class Effort:
    """Durations of trials; artefacts were built in the prepare phase.

    Attributes:
        serving_seconds: for loading a model.
        whole, saturated: duration of trials relative to the protocol's, of those whose capacity
            was searched for and of those that were pruned at saturation.
    """

    protocol: CapacityProtocol
    serving_seconds: float = _SERVING_SECONDS
    whole: float = 1.0
    saturated: float = 1.0

    @classmethod
    def learnt(cls, protocol: CapacityProtocol, records: Sequence[TrialRecord]) -> Effort:
        """Return durations by a study's trials so far, and by the protocol where there are none."""
        plain = cls(protocol)
        latest = records[-_LATEST:]
        measured = [r for r in latest if r.measurement is not None and r.seconds.measuring > 0]
        whole = [r.seconds.measuring / plain.whole_of(r) for r in measured if not _bounded(r)]
        bounded = [r.seconds.measuring / plain.saturation_seconds for r in measured if _bounded(r)]
        serving = [record.seconds.serving for record in measured]
        return cls(
            protocol,
            serving_seconds=median(serving) if serving else _SERVING_SECONDS,
            whole=median(whole) if whole else 1.0,
            saturated=median(bounded) if bounded else 1.0,
        )

    @property
    def saturation_seconds(self) -> float:
        """Duration of the saturation level by the protocol."""
        return self.protocol.warmup_seconds + self.protocol.saturation_seconds

    def whole_of(self, record: TrialRecord) -> float:
        """Return the duration by the protocol of a trial that was not pruned."""
        assert record.measurement is not None, "only what was measured took this time"
        levels = record.measurement.levels
        rate = max((level.achieved_per_second for level in levels), default=0.0)
        return float(self._whole(np.array([rate]))[0])

    def _whole(self, per_second: Array) -> Array:
        by_requests = self.protocol.load_requests / np.maximum(per_second, 1e-9)
        return np.asarray(np.maximum(self.protocol.load_seconds, by_requests))

    def seconds(self, saturation_per_second: Array, bounded: Array, restarts: Array) -> Array:
        """Return the expected seconds of a trial of each point.

        Args:
            saturation_per_second: expected saturation rate.
            bounded: probability that the trial is pruned at saturation.
            restarts: 1.0 where the server must be restarted, else 0.0.
        """
        short = self.saturated * self.saturation_seconds
        long = np.maximum(short, self.whole * self._whole(saturation_per_second))
        measuring = bounded * short + (1 - bounded) * long
        return np.asarray(self.serving_seconds + _RESTART_SECONDS * restarts + measuring)


def _bounded(record: TrialRecord) -> bool:
    return record.outcome == "bounded"
