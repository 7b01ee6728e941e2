"""The Pareto front of a study of several latency limits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict

from optimizer.analysis.latency_curve import MeasuredConfigurationLevels, latency_curve, undominated
from optimizer.analysis.summary import ParetoEntry
from optimizer.configuration.serving_config import describe
from optimizer.study.context import StudyContext
from optimizer.workload.streams import Workload


def pareto_front(
    configurations: Sequence[MeasuredConfigurationLevels], workload: Workload, context: StudyContext
) -> tuple[ParetoEntry, ...]:
    """Return the front, the cheapest within the space file's own limit first.

    Figures within the space file's own limit are the confirmed ones, where there are any.
    """
    limits_ms = (workload.shortest_limit_ms, *context.extra_limits_ms)
    curve = latency_curve(configurations, limits_ms, context.price, context.demand)
    within = {each.limit_ms: {offer.config: offer for offer in each.offers} for each in curve}
    offers = [[within[limit].get(each.config) for limit in limits_ms] for each in configurations]
    costs = [[o.usd_per_million if o is not None else math.inf for o in row] for row in offers]
    return tuple(
        ParetoEntry(
            describe(configurations[row].config),
            asdict(configurations[row].config),
            limits_ms,
            tuple(None if o is None else o.usd_per_million for o in offers[row]),
            tuple(None if o is None else o.capacity.per_second for o in offers[row]),
        )
        for row in sorted(undominated(costs), key=lambda row: costs[row])
    )
