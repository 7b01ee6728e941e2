"""How long a plan takes, from a few instances to thousands, every instance of them simulated.

    .venv/bin/python -m tests.benchmarks.fleet_plan

The demand rises and falls over a day between a fifth and the whole. Seconds are of the wall clock;
other work on the machine shows in them. CPU seconds stand beside.
"""

from __future__ import annotations

import time

from optimizer.fleet.planning.demand_curve import daily_demand
from optimizer.fleet.planning.fleet_plan import PlanInputs, plan_fleet
from tests.unit.instances import batching_streams, instance

PEAKS = (1_000.0, 10_000.0, 100_000.0)


def main() -> None:
    """Print a line for each peak."""
    begun = time.perf_counter()
    one = instance("gpu", 1.0, 36.0, served=batching_streams(28.0, 1000.0)).calibrated(seed=0)
    print(f"simulation brought to the measured capacity: {time.perf_counter() - begun:.1f} s")
    for peak in PEAKS:
        question = PlanInputs(daily_demand(peak, peak / 5), seed=round(peak))
        wall, cpu = time.perf_counter(), time.process_time()
        plan = plan_fleet([one], question)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        assert plan is not None, "any number of instances can be had"
        [found] = plan.at_peak
        print(
            f"{peak:9,.0f} requests/s, {plan.fleet.instances:5,} instances: {wall:.1f} s, "
            f"{cpu:.1f} s of CPU; {found.requests / 1e6:.1f} million requests at the peak, "
            f"p95 {found.latency_ms:.0f} of {found.limit_ms:.0f} ms"
        )


if __name__ == "__main__":
    main()
