"""What bursts do to the best configuration, with a bounded queue and without."""

from __future__ import annotations

from optimizer.measurement.bursts import BurstComparison, BurstLevel, QueueUnderBursts
from optimizer.report import number_formats as form
from optimizer.report.table import Table


def bursts_sentence(compared: BurstComparison) -> str:
    """Return the share of requests within the limit in the middle burst, with both queues."""
    own, *others = compared.queues
    at = len(own.levels) // 2
    level = own.levels[at]
    text = (
        f"In bursts of {level.height:g} times the certified rate, {_share(level)} of the requests "
        f"are answered within the limit with {_queue(own)}"
    )
    for other in others:
        text += f", and {_share(other.levels[at])} with {_queue(other)}"
    return f"{text}."


def bursts_table(compared: BurstComparison) -> Table:
    """Return the figures of each height of a burst, with both queues side by side."""
    rows, late = [], False
    for levels in zip(*(queue.levels for queue in compared.queues), strict=True):
        for queue, level in zip(compared.queues, levels, strict=True):
            rows.append(_row(level, queue, compared))
            late = late or level.lag_ms > compared.longest_lag_ms
    certified = form.rate(compared.certified_per_second)
    burst, quiet = form.seconds(compared.burst_seconds), form.seconds(compared.quiet_seconds)
    notes = [
        f"Bursts of {burst} follow {quiet} at {form.percent(compared.quiet)} of the certified "
        f"{certified} requests/s; each level has {compared.cycles} of these cycles. A rejected "
        "request counts with the timeout as its latency.",
    ]
    if len(compared.queues) == 1:
        notes.append("No model has a dynamic batcher, whose queue could be bounded.")
    if late:
        notes.append("The load generator fell behind: some latencies are too high.")
    return Table(
        "What a burst does",
        (
            "burst, requests/s", "queue", "within the limit", "goodput, requests/s", "rejected",
            "p50, ms", "p95, ms",
        ),
        tuple(rows),
        tuple(notes),
        texts=("queue",),
    )  # fmt: skip


def _row(level: BurstLevel, queue: QueueUnderBursts, compared: BurstComparison) -> tuple[str, ...]:
    return (
        f"{form.rate(level.height * compared.certified_per_second)} ({level.height:g} times)",
        _queue(queue),
        _share(level),
        form.rate(level.goodput_per_second),
        form.percent(level.rejected),
        form.milliseconds(level.p50_ms),
        form.milliseconds(level.p95_ms),
    )


def _queue(queue: QueueUnderBursts) -> str:
    if not queue.is_bounded:
        return "an unbounded queue"
    bounds = [each for each in queue.bounds if each.max_queue_size]
    if len(queue.bounds) == 1:
        return f"max_queue_size {bounds[0].max_queue_size}"
    return ", ".join(f"max_queue_size {each.max_queue_size} of {each.model}" for each in bounds)


def _share(level: BurstLevel) -> str:
    return form.percent(level.within_limit)
