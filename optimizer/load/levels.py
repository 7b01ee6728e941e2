"""Summary of all requests of a level as a `LoadLevel`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import LoadTestFailure, VoidLevelFailure
from optimizer.load.arrival_effect import arrival_effect
from optimizer.load.exchange import Replies
from optimizer.load.level_plan import ClosedLoop, EndReason, LevelPlan, OpenLoop
from optimizer.load.statistics import variance_inflation, warmup_is_over, warmup_length
from optimizer.load.transmit import is_rejection
from optimizer.load.user_load import UserLoad
from optimizer.measurement.estimates import percentile_with_interval
from optimizer.measurement.level import LevelKind, LoadLevel, Slice, StreamLevel
from optimizer.measurement.level_checks import describe_void, first_error, sent_requests
from optimizer.measurement.resource_use import ClientUse
from optimizer.workload.streams import Stream

SLICES = 10
"""Equal parts of the measured window in which good replies are counted."""

_PERCENTILES = (50.0, 95.0, 99.0)

_KINDS: dict[type, LevelKind] = {
    ClosedLoop: "saturation",
    OpenLoop: "open_loop",
    UserLoad: "user_load",
}


def load_level(
    plan: LevelPlan,
    streams: Sequence[Stream],
    replies: Replies,
    client: ClientUse,
    stopped: tuple[EndReason, float] | None = None,
) -> LoadLevel:
    """Summarise one level; the caller adds the statistics of server and machine.

    Only requests that were due within the measured window count: after the planned warm-up and any
    further one that `warmup_length` finds, unless the plan is of a cold start. A request without a
    good reply counts with the timeout as its latency, so that failing fast, or being rejected at
    once, never looks like being fast.

    Args:
        stopped: why and when (seconds since the start) sending was stopped early.

    Raises:
        LoadTestFailure: when the server refused everything before the level was over, or a stream
            had no request in the window.
    """
    if replies.refused_at_seconds is not None:
        raise LoadTestFailure(
            f"the server refused every request, {replies.refused_at_seconds:.1f} s into a level: "
            f"{replies.errors[max(replies.errors)]}"
        )
    ended, end = stopped or (EndReason("its time was up"), plan.sending_seconds)
    window, warmed_up = _window(plan, streams, replies, end)
    measured = _stream_levels(plan, streams, replies, window)
    if ended.verdict == "infeasible" and all(stream.limit_overshoot <= 0 for stream in measured):
        # The late requests for which the level was stopped were cut as warm-up.
        window = (plan.warmup_seconds, end)
        measured = _stream_levels(plan, streams, replies, window)
    return LoadLevel(
        kind=_KINDS[type(plan.load)],
        load_factor=_load_factor(plan, streams, measured),
        seconds=window[1] - window[0],
        streams=measured,
        server=(),
        client=client,
        replied_ms=_replied_ms(replies),
        slices=_slices(replies, window),
        verdict=ended.verdict,
        ended=ended.reason,
        arrival_effect=_arrival_effect(plan, streams, replies, window, measured),
        warnings=() if warmed_up or ended.verdict is not None else (_not_warmed_up(window),),
    )


def _window(
    plan: LevelPlan, streams: Sequence[Stream], replies: Replies, end: float
) -> tuple[tuple[float, float], bool]:
    """Return the measured window (start, end) in seconds, and whether warm-up ended before it.

    A burst at the beginning must not be taken for warm-up.
    """
    start = plan.warmup_seconds
    in_bursts = any(stream.bursts is not None for stream in streams)
    if not isinstance(plan.load, OpenLoop) or plan.cold or in_bursts:
        return (start, end), True
    inside = (replies.due_seconds >= start) & (replies.due_seconds < end)
    latencies, due = _latencies_ms(plan, replies)[inside], replies.due_seconds[inside]
    # A request that failed is no warm-up.
    cut = warmup_length(latencies) if replies.good[inside].all() else 0
    return (float(due[cut]) if cut else start, end), warmup_is_over(latencies)


def _not_warmed_up(window: tuple[float, float]) -> str:
    seconds = window[1] - window[0]
    return (
        f"warm-up had not ended within {seconds:.1f} s, so the interval is too narrow: "
        "make measurement.check_seconds longer"
    )


def _inside(seconds: NDArray[np.float64], window: tuple[float, float]) -> NDArray[np.bool_]:
    return (seconds >= window[0]) & (seconds < window[1])


def _load_factor(
    plan: LevelPlan, streams: Sequence[Stream], measured: Sequence[StreamLevel]
) -> float:
    if isinstance(plan.load, OpenLoop):
        return plan.load.load_factor
    achieved = sum(stream.achieved_per_second for stream in measured)
    return achieved / sum(stream.demand_per_second for stream in streams)


def _stream_levels(
    plan: LevelPlan, streams: Sequence[Stream], replies: Replies, window: tuple[float, float]
) -> tuple[StreamLevel, ...]:
    return tuple(
        _stream_level(stream, replies.streams == index, plan, replies, window)
        for index, stream in enumerate(streams)
    )


def _stream_level(
    stream: Stream,
    own: NDArray[np.bool_],
    plan: LevelPlan,
    replies: Replies,
    window: tuple[float, float],
) -> StreamLevel:
    """Summarise the requests that `own` selects, shape [n]."""
    due = own & _inside(replies.due_seconds, window)
    sent = int(due.sum())
    if sent == 0:
        raise LoadTestFailure(_nothing_due(stream, own, window, replies))
    answered = int((own & replies.good & _inside(replies.done_seconds, window)).sum())
    if isinstance(plan.load, OpenLoop):
        # Replies beyond what was due clear a backlog from before the window.
        answered = min(answered, sent)
    not_good = np.flatnonzero(due & ~replies.good)
    failed = [at for at in not_good.tolist() if not is_rejection(replies.errors[at])]
    latencies_ms = _latencies_ms(plan, replies)[due]
    lag_ms = (replies.sent_seconds - replies.due_seconds)[due] * 1e3
    inflation = variance_inflation(latencies_ms)
    seconds = window[1] - window[0]
    percentiles = sorted({*_PERCENTILES, stream.limit.percentile})
    from_send_ms = latencies_ms - lag_ms
    return StreamLevel(
        name=stream.name,
        offered_per_second=sent / seconds,
        achieved_per_second=answered / seconds,
        sent=sent,
        completed=sent - len(not_good),
        errors=len(failed),
        first_error=replies.errors[failed[0]] if failed else None,
        mean_ms=float(latencies_ms.mean()),
        mean_from_send_ms=float(from_send_ms.mean()),
        latencies=tuple(percentile_with_interval(latencies_ms, p, inflation) for p in percentiles),
        limit_percentile=stream.limit.percentile,
        limit_ms=stream.limit.latency_ms,
        latencies_from_send=tuple(
            percentile_with_interval(from_send_ms, p, inflation) for p in percentiles
        ),
        rejected=len(not_good) - len(failed),
        within_limit=int((replies.good[due] & (latencies_ms <= stream.limit.latency_ms)).sum()),
    )


def _nothing_due(
    stream: Stream, own: NDArray[np.bool_], window: tuple[float, float], replies: Replies
) -> str:
    # In a closed loop against a hung server no request is due either.
    error = next((text for index, text in sorted(replies.errors.items()) if own[index]), None)
    seconds = window[1] - window[0]
    text = f"stream {stream.name!r}: no request was due in {seconds:.3g} s of measuring"
    return text if error is None else f"{text}; an earlier one failed: {error}"


def _latencies_ms(plan: LevelPlan, replies: Replies) -> NDArray[np.float64]:
    seconds = replies.done_seconds - replies.due_seconds
    return np.where(replies.good, seconds, plan.timeout_seconds) * 1e3


def _arrival_effect(
    plan: LevelPlan,
    streams: Sequence[Stream],
    replies: Replies,
    window: tuple[float, float],
    measured: Sequence[StreamLevel],
) -> float:
    """Return `LoadLevel.arrival_effect`; 0 where no single queue serves all of the requests."""
    saturation, load = plan.saturation_per_second, plan.load
    one_queue = len({stream.target for stream in streams}) == 1
    poisson = all(stream.arrivals == "poisson" for stream in streams)
    if saturation is None or not isinstance(load, OpenLoop) or not one_queue or not poisson:
        return 0.0
    inside = _inside(replies.due_seconds, window)
    if not replies.good[inside].all():
        # A timeout in place of a latency tells nothing of waiting.
        return 0.0
    worst = max(range(len(streams)), key=lambda n: measured[n].limit_overshoot)
    order = np.argsort(replies.due_seconds, kind="stable")
    return arrival_effect(
        replies.due_seconds[order],
        inside[order],
        _latencies_ms(plan, replies)[inside & (replies.streams == worst)],
        streams[worst].limit.percentile,
        saturation,
        load.load_factor * sum(stream.demand_per_second for stream in streams),
    )


def _replied_ms(replies: Replies) -> float | None:
    seconds = (replies.done_seconds - replies.sent_seconds)[replies.good]
    return float(seconds.mean()) * 1e3 if len(seconds) else None


def _slices(replies: Replies, window: tuple[float, float]) -> tuple[Slice, ...]:
    inside = replies.good & _inside(replies.done_seconds, window)
    done, due = replies.done_seconds[inside], replies.due_seconds[inside]
    begin, end = window
    part = ((done - begin) / (end - begin) * SLICES).astype(int)
    each = [(done - due)[part == n] * 1e3 for n in range(SLICES)]
    return tuple(Slice(len(ms), float(np.percentile(ms, 95)) if len(ms) else None) for ms in each)


def refuse_if_all_failed(level: LoadLevel) -> None:
    """Raise LoadTestFailure when every request failed or was rejected."""
    if level.errors + level.rejected == sent_requests(level):
        reason = first_error(level) or "the queue policy rejected it"
        raise LoadTestFailure(f"every request failed: {reason}")


def refuse_void(level: LoadLevel) -> None:
    """Raise VoidLevelFailure where a level is void."""
    if (reason := describe_void([level])) is not None:
        raise VoidLevelFailure(f"could not be measured: {reason}")
