"""From what became of every request to a measured load level. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import LoadTestFailure
from optimizer.load.exchange import Replies
from optimizer.load.plan import ClosedLoop, LevelPlan, OpenLoop
from optimizer.measurement import LoadLevel, StreamLevel, percentile_with_interval
from optimizer.workload import Stream

SLICES = 10
"""Equal parts of the measured window in which good replies are counted."""

_PERCENTILES = (50.0, 95.0, 99.0)


def load_level(plan: LevelPlan, streams: Sequence[Stream], replies: Replies) -> LoadLevel:
    """Sum up one level; the caller that watched the server adds what it saw of it.

    Only requests that were due within the measured window count. A request without a good reply
    counts with the timeout as its latency, so that failing fast never looks like being fast.

    Raises:
        LoadTestFailure: when the server refused everything before the level was over, or a stream
            had no request in the window.
    """
    if replies.refused_at_seconds is not None:
        raise LoadTestFailure(
            f"the server refused every request, {replies.refused_at_seconds:.1f} s into a level: "
            f"{replies.errors[max(replies.errors)]}"
        )
    measured = tuple(
        _stream_level(stream, replies.streams == index, plan, replies)
        for index, stream in enumerate(streams)
    )
    counted = _in_window(replies.due_seconds, plan)
    lag = (replies.sent_seconds - replies.due_seconds)[counted]
    return LoadLevel(
        kind="saturation" if isinstance(plan.load, ClosedLoop) else "open_loop",
        load_factor=_load_factor(plan, streams, measured),
        seconds=plan.seconds,
        streams=measured,
        server=(),
        client_lag_ms=float(np.percentile(lag, 99)) * 1e3,
        completed_per_slice=_completed_per_slice(plan, replies),
    )


def _in_window(seconds: NDArray[np.float64], plan: LevelPlan) -> NDArray[np.bool_]:
    return (seconds >= plan.warmup_seconds) & (seconds < plan.sending_seconds)


def _load_factor(
    plan: LevelPlan, streams: Sequence[Stream], measured: Sequence[StreamLevel]
) -> float:
    if isinstance(plan.load, OpenLoop):
        return plan.load.load_factor
    achieved = sum(stream.achieved_per_second for stream in measured)
    return achieved / sum(stream.demand_per_second for stream in streams)


def _stream_level(
    stream: Stream, own: NDArray[np.bool_], plan: LevelPlan, replies: Replies
) -> StreamLevel:
    """Sum up the requests that `own` selects, shape [n]."""
    due = own & _in_window(replies.due_seconds, plan)
    sent = int(due.sum())
    if sent == 0:
        raise LoadTestFailure(_nothing_due(stream, own, plan, replies))
    answered = own & replies.good & _in_window(replies.done_seconds, plan)
    failed = np.flatnonzero(due & ~replies.good)
    latencies_ms = _latencies_ms(plan, replies)[due]
    percentiles = sorted({*_PERCENTILES, stream.limit.percentile})
    return StreamLevel(
        name=stream.name,
        offered_per_second=sent / plan.seconds,
        achieved_per_second=int(answered.sum()) / plan.seconds,
        sent=sent,
        completed=sent - len(failed),
        errors=len(failed),
        first_error=replies.errors[int(failed[0])] if len(failed) else None,
        mean_ms=float(latencies_ms.mean()),
        latencies=tuple(percentile_with_interval(latencies_ms, p) for p in percentiles),
        limit_percentile=stream.limit.percentile,
        limit_ms=stream.limit.latency_ms,
    )


def _nothing_due(stream: Stream, own: NDArray[np.bool_], plan: LevelPlan, replies: Replies) -> str:
    """A closed loop against a hung server has none due either: the error then says so."""
    said = next((text for index, text in sorted(replies.errors.items()) if own[index]), None)
    text = f"stream {stream.name!r}: no request was due in {plan.seconds:.3g} s of measuring"
    return text if said is None else f"{text}; one before failed: {said}"


def _latencies_ms(plan: LevelPlan, replies: Replies) -> NDArray[np.float64]:
    seconds = replies.done_seconds - replies.due_seconds
    return np.where(replies.good, seconds, plan.timeout_seconds) * 1e3


def _completed_per_slice(plan: LevelPlan, replies: Replies) -> tuple[int, ...]:
    window = (plan.warmup_seconds, plan.sending_seconds)
    counts, _ = np.histogram(replies.done_seconds[replies.good], bins=SLICES, range=window)
    return tuple(int(count) for count in counts)
