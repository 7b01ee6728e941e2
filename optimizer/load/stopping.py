"""Rules that end a load level early; each checks the running level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from optimizer.load.exchange import LevelProgress
from optimizer.load.level_plan import EndReason
from optimizer.load.statistics import inflation_bound, late_verdict, warmup_length
from optimizer.measurement.estimates import rate_interval
from optimizer.measurement.level import LevelVerdict
from optimizer.workload.streams import LatencyLimit, Stream

_LEAST_REQUESTS = 40
_RATE_SLICES = 10
_SECONDS_PER_MINUTE = 60.0


@dataclass(frozen=True)
class LateFraction:
    """Ends an open-loop level when every stream is proven to meet its limit, or one to miss it.

    It also ends when so many requests were late that the rest of the level cannot make up for them.
    Where requests come in bursts, nothing else ends it: the tests take a part of a period for all
    of it.

    Attributes:
        warmup_seconds: requests that were due before do not count.
        least_seconds: measured time before a level may be proven feasible, since a growing queue
            takes time to show.
    """

    streams: tuple[Stream, ...]
    warmup_seconds: float
    least_seconds: float

    def __call__(self, progress: LevelProgress) -> EndReason | None:
        """Check the running level."""
        verdicts = []
        for index, stream in enumerate(self.streams):
            late, latencies = _decided(progress, index, stream.limit, self.warmup_seconds)
            allowed = 1 - stream.limit.percentile / 100
            planned = _planned(progress, index, self.warmup_seconds)
            if late.sum() > allowed * planned:
                text = f"{late.sum()} late requests of {stream.name}, too many for {planned} in all"
                return EndReason(text, "infeasible")
            steady = stream.bursts is None
            verdicts.append(_verdict(late, latencies, allowed) if steady else None)
        if "infeasible" in verdicts:
            return EndReason("proven to miss the limit", "infeasible")
        early = progress.now_seconds < self.warmup_seconds + self.least_seconds
        if early or any(verdict is None for verdict in verdicts):
            return None
        return EndReason("proven to meet the limits", "feasible")


def _decided(
    progress: LevelProgress, stream: int, limit: LatencyLimit, warmup_seconds: float
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return the requests that were due longer ago than the limit: (late, latency in s), shape [n].

    A request that is not answered yet is late by now.
    """
    horizon = progress.now_seconds - limit.latency_ms / 1e3
    own = progress.streams == stream
    due = progress.due_seconds[own]
    due = due[(due >= warmup_seconds) & (due <= horizon)]
    replies = progress.replies
    answered = (replies.streams == stream) & replies.good
    answered &= (replies.due_seconds >= warmup_seconds) & (replies.due_seconds <= horizon)
    latencies = np.full(len(due), progress.now_seconds) - due
    index = np.searchsorted(due, replies.due_seconds[answered])
    latencies[index] = (replies.done_seconds - replies.due_seconds)[answered]
    late = latencies > limit.latency_ms / 1e3
    return late, latencies


def _planned(progress: LevelProgress, stream: int, warmup_seconds: float) -> int:
    own = progress.streams == stream
    return int((progress.due_seconds[own] >= warmup_seconds).sum())


def _verdict(
    late: NDArray[np.bool_], latencies: NDArray[np.float64], allowed: float
) -> LevelVerdict | None:
    """Return `late_verdict` after the warm-up, by the larger inflation of the two series."""
    cut = warmup_length(latencies)
    late, latencies = late[cut:], latencies[cut:]
    if len(late) < _LEAST_REQUESTS:
        return None
    inflation = max(inflation_bound(latencies), inflation_bound(late.astype(float)))
    return late_verdict(late, inflation, allowed)


@dataclass(frozen=True)
class RateConverged:
    """Ends a closed-loop level when its rate is known closely enough.

    Attributes:
        half_width: half width of the rate's confidence interval, relative to it.
    """

    warmup_seconds: float
    least_seconds: float
    half_width: float

    def __call__(self, progress: LevelProgress) -> EndReason | None:
        """Check the running level."""
        seconds = progress.now_seconds - self.warmup_seconds
        if seconds < self.least_seconds:
            return None
        replies = progress.replies
        counts, _ = np.histogram(
            replies.done_seconds[replies.good],
            bins=_RATE_SLICES,
            range=(self.warmup_seconds, progress.now_seconds),
        )
        mean, _, high = rate_interval(counts.tolist(), seconds / _RATE_SLICES)
        if mean == 0 or high - mean > self.half_width * mean:
            return None
        return EndReason(f"the rate is known to {self.half_width:.1%}")


@dataclass(frozen=True)
class StoppingConditions:
    """Ends a user load, with the names and meanings of SageMaker Inference Recommender.

    Rates and percentiles are those of the last `window_seconds`.

    Attributes:
        max_invocations: per minute; None for no bound.
        model_latency_thresholds: the load ends when one of them is passed.
        flat_invocations: "Stop" ends the load when a window with more users served no more
            requests than the previous window.
    """

    max_invocations: int | None = None
    model_latency_thresholds: tuple[LatencyLimit, ...] = ()
    flat_invocations: Literal["Continue", "Stop"] = "Continue"
    window_seconds: float = _SECONDS_PER_MINUTE

    def __call__(self, progress: LevelProgress) -> EndReason | None:
        """Check the running level."""
        if progress.now_seconds < self.window_seconds:
            return None
        invocations = self._per_minute(progress, 0)
        if self.max_invocations is not None and invocations >= self.max_invocations:
            return EndReason(f"MaxInvocations {self.max_invocations} reached: {invocations:.0f}")
        return self._passed_threshold(progress) or self._flat(progress, invocations)

    def _window(self, progress: LevelProgress, ago: int) -> NDArray[np.bool_]:
        """Select good replies in the window that ended `ago` windows before now, shape [n]."""
        end = progress.now_seconds - ago * self.window_seconds
        done = progress.replies.done_seconds
        return progress.replies.good & (done >= end - self.window_seconds) & (done < end)

    def _per_minute(self, progress: LevelProgress, ago: int) -> float:
        answered = int(self._window(progress, ago).sum())
        return answered * _SECONDS_PER_MINUTE / self.window_seconds

    def _passed_threshold(self, progress: LevelProgress) -> EndReason | None:
        window, replies = self._window(progress, 0), progress.replies
        latencies_ms = (replies.done_seconds - replies.sent_seconds)[window] * 1e3
        for limit in self.model_latency_thresholds if len(latencies_ms) else ():
            latency_ms = float(np.percentile(latencies_ms, limit.percentile))
            if latency_ms > limit.latency_ms:
                name = f"ModelLatencyThresholds P{limit.percentile:g} {limit.latency_ms:g} ms"
                return EndReason(f"{name} passed: {latency_ms:.1f} ms")
        return None

    def _flat(self, progress: LevelProgress, invocations: float) -> EndReason | None:
        if self.flat_invocations == "Continue" or progress.now_seconds < 2 * self.window_seconds:
            return None
        before = self._per_minute(progress, 1)
        if invocations > before:
            return None
        return EndReason(f"FlatInvocations: {before:.0f} a minute, then {invocations:.0f}")
