"""What bursts do to the best configuration, with a bounded queue and without."""

from __future__ import annotations

from collections.abc import Iterator

from optimizer.measurement.bursts import BurstComparison, BurstLevel, QueueUnderBursts
from optimizer.report import number_formats as form
from optimizer.report.table import Table


def bursts_sentence(compared: BurstComparison) -> str:
    """Return the share of requests within the limit in the middle burst, with both queues.

    Where a level is void there is no conclusion, and the sentence says why.
    """
    if void := [level for _, level in compared.compared if level.void is not None]:
        count = len(list(compared.compared))
        return (
            f"No conclusion on bursts: the figures of {len(void)} of {count} levels are those of "
            f"the load generator. At {void[0].height:g} times the certified rate, {void[0].void}."
        )
    own, *others = compared.queues
    at = len(own.levels) // 2
    level = own.levels[at]
    text = (
        f"In bursts of {level.height:g} times the certified rate, {_share(level)} of the requests "
        f"are answered within the limit with {_queue(own)}"
    )
    for other in others:
        text += f", and {_share(other.levels[at])} with {_queue(other)}"
    errors = sum(level.errors for _, level in compared.compared)
    if errors:
        sent = sum(level.sent for _, level in compared.compared)
        text += (
            f"; {form.count(errors)} of {form.count(sent)} requests of all levels were neither "
            "answered nor rejected"
        )
    return f"{text}."


def bursts_table(compared: BurstComparison) -> Table:
    """Return the figures of each height of a burst, with both queues side by side."""
    return Table(
        "What a burst does",
        (
            "burst, requests/s", "queue", "within the limit", "goodput, requests/s", "rejected",
            "errors", "p50, ms", "p95, ms",
        ),
        tuple(_row(level, queue, compared) for queue, level in compared.compared),
        tuple(_notes(compared)),
        texts=("queue",),
    )  # fmt: skip


def _notes(compared: BurstComparison) -> Iterator[str]:
    certified = form.rate(compared.certified_per_second)
    burst, quiet = form.seconds(compared.burst_seconds), form.seconds(compared.quiet_seconds)
    yield (
        f"Bursts of {burst} follow {quiet} at {form.percent(compared.quiet)} of the certified "
        f"{certified} requests/s; each level has {compared.cycles} of these cycles. Goodput is the "
        "rate of requests that are answered within the limit. A rejected request counts with the "
        "timeout as its latency, and so does an error, which was neither answered nor rejected in "
        "that time."
    )
    if (sending := compared.sending) is not None:
        highest = max(level.height for _, level in compared.compared)
        yield (
            f"The load generator runs on the server's {sending.cores} cores and leaves it "
            f"{sending.cores_left(1.0):.1f} at the certified rate, and about "
            f"{sending.cores_left(highest):.1f} in the highest bursts: a server with all cores "
            "answers more."
        )
    if len(compared.queues) == 1:
        yield "No model has a dynamic batcher, whose queue could be bounded."
    for queue, level in compared.compared:
        where = f"{level.height:g} times the certified rate with {_queue(queue)}"
        if level.void is not None:
            yield f"Void: {where}: {level.void}."
        yield from (f"At {where}: {warning}." for warning in level.warnings)
        if level.first_error is not None:
            yield f"First error at {where}: {level.first_error}"


def _row(level: BurstLevel, queue: QueueUnderBursts, compared: BurstComparison) -> tuple[str, ...]:
    height = f"{level.height:g} times{'' if level.void is None else ', void'}"
    return (
        f"{form.rate(level.height * compared.certified_per_second)} ({height})",
        _queue(queue),
        _share(level),
        form.rate(level.goodput_per_second),
        form.percent(level.rejected),
        form.count(level.errors),
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
