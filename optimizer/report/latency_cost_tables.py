"""What each latency limit costs, in a table and sentences."""

from __future__ import annotations

from collections.abc import Iterator

from optimizer.analysis.latency_curve import LatencyCosts, PricedConfiguration, WithinLimit
from optimizer.configuration.serving_config import describe
from optimizer.report import number_formats as form
from optimizer.report.table import Line, Part, Table


def latency_cost_parts(costs: LatencyCosts) -> Iterator[Part]:
    """Yield the cheapest configuration within each limit, and how far to trust the figures."""
    yield latency_cost_table(costs)
    shortest = costs.shortest
    for stream in costs.streams:
        if stream.limit.latency_ms != shortest.limit.latency_ms:
            share = stream.limit.latency_ms / shortest.limit.latency_ms
            yield Line(
                f"The limits are those of {shortest.name}; {stream.name}: {share:g} times as long."
            )
    if not costs.front:
        yield Line("No measured configuration meets any of these limits.", "warning")
    if costs.unconfirmed:
        yield Line("Unconfirmed: nothing was measured again yet.", "warning")


def latency_cost_table(costs: LatencyCosts) -> Table:
    """Return the cheapest configuration within each limit; those searched for are highlighted."""
    offers = [offer for within in costs.curve for offer in _offers(within)]
    numbers = {config: n for n, config in enumerate(dict.fromkeys(o.config for o in offers), 1)}
    rows, highlighted = list[tuple[str, ...]](), list[int]()
    for within in costs.curve:
        searched = within.limit_ms in costs.searched_ms
        name = f"{within.limit_ms:g}{'*' if searched else ''}"
        if within.cheapest is None:
            rows.append((name, "", "not met", *("",) * 5))
        for offer in _offers(within):
            if searched and offer is within.cheapest:
                highlighted.append(len(rows))
            rows.append((name, *_cells(offer, numbers[offer.config])))
    limit, demand = costs.shortest.limit, costs.demand.requests_per_second
    return Table(
        f"Cheapest for {form.rate(demand)} requests/s within each limit of p{limit.percentile:g}",
        ("limit, ms", "by", "basis", "requests/s", "95% interval", "$ per million", "replicas",
         "$ an hour"),
        tuple(rows),
        (*(f"{n}: {describe(config)}" for config, n in numbers.items()), *_notes(offers)),
        texts=("basis",),
        highlighted=tuple(highlighted),
    )  # fmt: skip


def _offers(within: WithinLimit) -> list[PricedConfiguration]:
    return [offer for offer in (within.cheapest, within.predicted) if offer is not None]


def _cells(offer: PricedConfiguration, number: int) -> tuple[str, ...]:
    capacity = offer.capacity
    return (
        str(number),
        offer.basis,
        form.rate(capacity.per_second),
        form.interval(capacity.low, capacity.high, form.rate),
        form.usd(offer.usd_per_million),
        form.count(offer.score.replicas),
        form.usd(offer.score.fleet_usd_per_hour),
    )


def _notes(offers: list[PricedConfiguration]) -> Iterator[str]:
    bases = {offer.basis for offer in offers}
    yield "*: the limit that the study searched for."
    yield (
        "Measured: the limit was searched for, or lies among the latencies of the measured load "
        "levels."
    )
    if "extrapolated" in bases:
        yield "Extrapolated: every load level lies on one side of the limit."
    if "predicted" in bases:
        yield (
            "Predicted: not measured; the simulator and the trials of other configurations expect "
            "it to be at least 10% cheaper."
        )
    yield "Costs are compared, and fleets sized, by the lower end of the interval."


def limits_text(limits_ms: tuple[float, ...] | list[float]) -> str:
    """Return some limits with their unit."""
    return ", ".join(f"{limit:g}" for limit in limits_ms) + " ms"
