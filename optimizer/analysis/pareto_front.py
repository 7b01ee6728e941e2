"""The configurations of a study of several limits that no other one beats within all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from optimizer.analysis.latency_curve import MeasuredConfigurationLevels, latency_curve, undominated
from optimizer.configuration.serving_config import describe
from optimizer.study.context import StudyContext
from optimizer.study.trial_records import COST
from optimizer.workload.streams import Workload


def pareto_front(
    known: Sequence[MeasuredConfigurationLevels], workload: Workload, setting: StudyContext
) -> list[dict[str, Any]]:
    """In plain JSON values, the cheapest within the space file's own limit first.

    `usd_per_million_at_capacity` and `capacity_per_second` hold a figure for each limit, in the
    order of `limits_ms`, null where no load meets it. Those within the space file's own limit are
    the confirmed ones, where there are any.
    """
    limits_ms = (workload.shortest_limit_ms, *setting.extra_limits_ms)
    curve = latency_curve(known, limits_ms, setting.price, setting.demand)
    within = {each.limit_ms: {offer.config: offer for offer in each.offers} for each in curve}
    offers = [[within[limit].get(each.config) for limit in limits_ms] for each in known]
    costs = [[o.usd_per_million if o is not None else math.inf for o in row] for row in offers]
    return [
        {
            "description": describe(known[row].config),
            "config": asdict(known[row].config),
            "limits_ms": list(limits_ms),
            COST: [o and o.usd_per_million for o in offers[row]],
            "capacity_per_second": [o and o.capacity.per_second for o in offers[row]],
        }
        for row in sorted(undominated(costs), key=lambda row: costs[row])
    ]
