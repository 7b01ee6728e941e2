"""How long a capacity takes and how far off it is: `python -m tests.benchmarks.capacity_search`.

On the simulated servers of tests/unit/test_load_capacity.py, whose true capacities are known, with
and without a similar configuration whose share of saturation is within 8 % (one sigma). Seconds are
those under load, warm-up included. An interval covers where it holds the truth to 1 %, which is as
closely as saturation is known. Verdicts are those of levels that ended early, at whatever rate: as
proven, or because so many requests were late that the level could only miss. Then the same searches
where a load is needed: they end once the configuration is certain not to reach it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from optimizer.load.capacity import CapacityProtocol, find_capacity
from optimizer.measurement.level import HIGHEST_SHARE
from tests.unit.simulated_server import SimulatedServer
from tests.unit.test_load_capacity import SERVERS

_PROTOCOL = CapacityProtocol()
_SHARE_SD = 0.08
_TOLERANCE = 0.01
_FACTORS = (0.5, 0.7, 0.85, 1.0, 1.05, 1.2)
"""True capacities relative to the needed load."""


@dataclass(frozen=True)
class Search:
    """One capacity search.

    Attributes:
        error: of the capacity, relative to the truth.
        low, high: interval, relative to the truth.
        proven, missed: whether the truth contradicts each verdict, of levels that ended as proven
            and of those with too many late requests.
    """

    seconds: float
    error: float
    low: float
    high: float
    proven: tuple[bool, ...]
    missed: tuple[bool, ...]


def searches(
    server: SimulatedServer, seeds: int, *, known: bool, factor: float | None = None
) -> Iterator[Search]:
    """Search with every seed; a `factor` of the needed load is the true capacity."""
    own = server.true_capacity_per_second()
    truth = min(own, HIGHEST_SHARE * server.saturation_per_second)
    demand = server.work.demand_per_second
    for seed in range(seeds):
        fresh = replace(server, rng=np.random.default_rng(seed), plans=[])
        drawn = 1 + _SHARE_SD * np.random.default_rng([seed, 1]).standard_normal()
        result = find_capacity(
            fresh,
            fresh.work,
            _PROTOCOL,
            64,
            prune_below=truth / factor / demand if factor is not None else None,
            expected_share=truth / server.saturation_per_second * drawn if known else None,
        )
        found = result.valid_measurement
        high = found.load_factor_high
        assert high is not None
        verdicts = [
            (level.ended.startswith("proven"), (level.verdict == "feasible") == above)
            for level in found.open_loop
            if level.verdict is not None
            for above in [level.load_factor * demand > own]
        ]
        yield Search(
            sum(_PROTOCOL.warmup_seconds + level.seconds for level in found.levels),
            abs(found.capacity_per_second / truth - 1),
            found.capacity_low_per_second / truth,
            high * demand / truth,
            tuple(wrong for proven, wrong in verdicts if proven),
            tuple(wrong for proven, wrong in verdicts if not proven),
        )


def _covered(found: Sequence[Search]) -> float:
    inside = [x.low <= 1 + _TOLERANCE and x.high >= 1 - _TOLERANCE for x in found]
    return float(np.mean(inside))


def _line(name: str, found: Sequence[Search]) -> str:
    seconds = np.median([each.seconds for each in found])
    errors = np.percentile([each.error for each in found], [50, 90])
    proven = [wrong for each in found for wrong in each.proven]
    missed = [wrong for each in found for wrong in each.missed]
    return (
        f"| {name} | {seconds:.1f} | {errors[0]:.1%} | {errors[1]:.1%} | {_covered(found):.0%} "
        f"| {sum(proven)} of {len(proven)} | {sum(missed)} of {len(missed)} |"
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=60)
    seeds = parser.parse_args().seeds
    for known in (False, True):
        print("with a similar configuration" if known else "alone")
        print("| server | seconds | error, median | p90 | covers | wrong proofs | wrongly missed |")
        everything = list[Search]()
        for name, server in SERVERS.items():
            own = list(searches(server, seeds, known=known))
            everything += own
            print(_line(name, own))
        print(_line("all", everything), flush=True)
    print("| capacity relative to the needed load | seconds | judged too low | covers |")
    for factor in _FACTORS:
        found = [
            each
            for server in SERVERS.values()
            for each in searches(server, seeds // 2, known=True, factor=factor)
        ]
        seconds = np.median([each.seconds for each in found])
        too_low = np.mean([each.high < 1 / factor for each in found])
        print(
            f"| {factor:.0%} | {seconds:.1f} | {too_low:.0%} | {_covered(found):.0%} |", flush=True
        )


if __name__ == "__main__":
    main()
