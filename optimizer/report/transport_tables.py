"""What ways of sending inferences cost on the best configuration: a table and a conclusion."""

from __future__ import annotations

from collections.abc import Sequence

from optimizer.measurement.transport_costs import TransportComparison, TransportCost
from optimizer.report import number_formats as form
from optimizer.report.table import Table


def transports_sentence(compared: TransportComparison) -> str:
    """Return which transport serves the most, what the slowest loses, and what batches gain."""
    own = compared.costs[0]
    size = own.sent_as.batch_size
    alike = [each for each in compared.costs if each.sent_as.batch_size == size]
    first = max(alike, key=lambda each: each.throughput_per_second)
    last = min(alike, key=lambda each: each.throughput_per_second)
    text = "No transport serves clearly more than another"
    if last.serves_less_than(first):
        names = [each.sent_as.name for each in alike if not each.serves_less_than(first)]
        share = last.throughput_per_second / first.throughput_per_second
        text = (
            f"{' and '.join(names)} serve{'s' if len(names) == 1 else ''} the most, up to "
            f"{form.rate(first.throughput_per_second)} inferences/s; {last.sent_as.name} serves "
            f"{form.percent(share)} of that"
        )
    return f"{text}{_batch_gain(compared.costs, own)}."


def _batch_gain(costs: Sequence[TransportCost], own: TransportCost) -> str:
    """Return what the largest requests gain; nothing where none is larger than the study's own."""
    largest, size = max(costs, key=lambda each: each.sent_as.batch_size), own.sent_as.batch_size
    if largest.sent_as.batch_size == size:
        return ""
    times = form.ratio(largest.throughput_per_second / own.throughput_per_second)
    return (
        f"; requests of {largest.sent_as.batch_size} inferences serve {times} times the study's own"
    )


def transports_table(compared: TransportComparison) -> Table:
    """Return the figures of each transport, the study's own highlighted."""
    own = compared.costs[0]
    rows = tuple(_row(each, own) for each in compared.costs)
    light, moderate = (
        form.rate(each) for each in (compared.light_per_second, compared.moderate_per_second)
    )
    seconds = form.seconds(compared.level_seconds)
    late = [
        f"The load generator fell {form.milliseconds(each.lag_ms)} ms behind with "
        f"{_name(each)}: its latencies are too high."
        for each in compared.costs
        if each.lag_ms > compared.longest_lag_ms
    ]
    refused = [f"{each.sent_as.name}: not measured: {each.reason}." for each in compared.refused]
    return Table(
        "What sending the same inferences costs",
        (
            "transport", "inferences a request", "most, inferences/s", "of the study's",
            f"p50 / p95 at {light}/s, ms", f"p50 / p95 at {moderate}/s, ms",
            "client CPU, ms", "server CPU, ms",
        ),
        rows,
        (
            "The study's own transport comes first. CPU times are those of one inference, at "
            f"{moderate} inferences/s; the client is this program's load generator. Each figure is "
            f"the mean of {compared.rounds} interleaved rounds of {seconds}.",
            *late,
            *refused,
        ),
        highlighted=(0,),
    )  # fmt: skip


def _row(cost: TransportCost, own: TransportCost) -> tuple[str, ...]:
    share = cost.throughput_per_second / own.throughput_per_second
    server = cost.server_cpu_ms
    return (
        cost.sent_as.name,
        str(cost.sent_as.batch_size),
        form.rate(cost.throughput_per_second),
        form.percent(share),
        _latencies(cost.light_p50_ms, cost.light_p95_ms),
        _latencies(cost.moderate_p50_ms, cost.moderate_p95_ms),
        f"{cost.client_cpu_ms:.3f}",
        form.MISSING if server is None else f"{server:.3f}",
    )


def _latencies(p50_ms: float, p95_ms: float) -> str:
    return f"{form.milliseconds(p50_ms)} / {form.milliseconds(p95_ms)}"


def _name(cost: TransportCost) -> str:
    return f"{cost.sent_as.name}, {cost.sent_as.batch_size} inferences a request"
