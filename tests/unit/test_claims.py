"""What is said of two finalists: on made-up rounds, and on simulated servers of known truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from optimizer.configuration.serving_config import ServingConfig
from optimizer.load.certification import CertificationTask, certify_load
from optimizer.measurement.level import Measurement
from optimizer.study.confidence import Finalist, claims, log_capacity
from tests.unit.simulated_server import SimulatedServer, workload
from tests.unit.studies import four_points, level
from tests.unit.test_load_capacity import PROTOCOL

SPACE = four_points()
WINNER, RIVAL, BASELINE, _ = (SPACE.config(SPACE.at(row)) for row in range(4))


def round_of(capacity: float) -> Measurement:
    """One round whose latency reaches its limit of 100 ms at `capacity`, 80 % of saturation."""
    levels = (
        level(capacity / 0.8, kind="saturation", demand=1.0),
        level(capacity, 100.0, demand=1.0),
        level(capacity / 2, 40.0, demand=1.0),
    )
    return Measurement(levels, capacity, capacity, None, 1.0, "held")


def finalist(config: ServingConfig, *capacities: float) -> Finalist:
    return Finalist(config, tuple(map(round_of, capacities)))


def test_the_ratio_is_that_of_the_capacities() -> None:
    [claim] = claims(finalist(WINNER, 1200, 1200), [finalist(RIVAL, 1000, 1000)])
    assert claim.rival == RIVAL
    assert claim.ratio == pytest.approx(1.2)
    assert 1.1 < claim.low < 1.2 < claim.high < 1.3
    assert claim.apart
    assert claim.confidence > 0.99


def test_a_round_whose_levels_contradict_each_other_tells_what_it_held_and_little_more() -> None:
    """Load after load is missed by a hitch, and the one that is held is far within the limit."""
    missed = [level(at, 150.0, demand=1.0) for at in (2025, 1964, 1883, 1761, 1620)]
    held = [level(1316, 1.4, demand=1.0), level(118, 0.1, demand=1.0)]
    faltering = (level(2000, kind="saturation", demand=1.0), *missed, *held)
    measured = Measurement(faltering, 1316, 1316, None, 1.0, "held")
    assert log_capacity(measured)[0] == pytest.approx(math.log(1316))
    rounds = (round_of(1316), measured)
    [claim] = claims(Finalist(WINNER, rounds), [finalist(RIVAL, 1000, 1000)])
    assert claim.ratio == pytest.approx(1.316, rel=0.01)
    assert 0.2 < claim.low < 1 < claim.high < 10


def test_equal_ones_cannot_be_told_apart() -> None:
    [claim] = claims(finalist(WINNER, 1000, 1000), [finalist(RIVAL, 1000, 1000)])
    assert claim.low < 1 < claim.high
    assert not claim.apart
    assert claim.confidence == pytest.approx(0.5)


def test_a_rival_that_serves_more_is_said_to() -> None:
    [claim] = claims(finalist(WINNER, 1000, 1000), [finalist(RIVAL, 1200, 1200)])
    assert claim.high < 1
    assert claim.apart
    assert claim.confidence < 0.01


def test_what_the_machine_did_to_a_whole_round_cancels() -> None:
    steady = claims(finalist(WINNER, 1100, 1100), [finalist(RIVAL, 1000, 1000)])
    slowed = claims(finalist(WINNER, 1100, 550), [finalist(RIVAL, 1000, 500)])
    assert slowed[0].ratio == pytest.approx(steady[0].ratio)
    assert slowed[0].low == pytest.approx(steady[0].low, rel=1e-3)


def test_rounds_that_disagree_widen_the_interval_of_every_claim() -> None:
    def width(*rival: float) -> list[float]:
        found = claims(
            finalist(WINNER, 1100, 1100),
            [finalist(RIVAL, *rival), finalist(BASELINE, 500, 500)],
        )
        return [math.log(claim.high / claim.low) for claim in found]

    assert all(
        wide > 1.5 * narrow
        for wide, narrow in zip(width(1250, 800), width(1000, 1000), strict=True)
    )


def rounds_on(
    servers: Sequence[SimulatedServer], truths: Sequence[float], seed: int
) -> list[Finalist]:
    """Two rounds of each server, in turn, as the confirm phase measures them."""
    configs = (WINNER, RIVAL)
    found: list[list[Measurement]] = [[], []]
    for again in range(2):
        for n, (server, truth) in enumerate(zip(servers, truths, strict=True)):
            fresh = replace(server, rng=np.random.default_rng([seed, again, n]), plans=[])
            capacity = 0.95 * truth / server.work.demand_per_second
            task = CertificationTask(capacity, requests=2500, at_demand=lambda load: load / 2)
            result = certify_load(fresh, fresh.work, PROTOCOL, 64, task)
            assert result.outcome == "ok"
            found[n].append(result.valid_measurement)
    return [Finalist(c, tuple(rounds)) for c, rounds in zip(configs, found, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch_seconds", "apart"), [(0.010, 0.0), (0.0085, 0.9)], ids=["equal", "18 % faster"]
)
def test_the_truth_is_within_the_interval(batch_seconds: float, apart: float) -> None:
    rival = SimulatedServer(workload(60), instances=2, max_batch=8, batch_seconds=0.010)
    servers = (replace(rival, batch_seconds=batch_seconds), rival)
    truths = [server.true_capacity_per_second() for server in servers]
    rounds = [rounds_on(servers, truths, seed) for seed in range(40)]
    found = [claim for first, second in rounds for claim in claims(first, [second])]
    truth = truths[0] / truths[1]
    assert sum(claim.low <= truth <= claim.high for claim in found) >= 36
    told_apart = sum(claim.apart for claim in found) / len(found)
    assert told_apart >= apart if apart else told_apart <= 0.1
