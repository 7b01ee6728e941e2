"""What chance in the arrivals does to a level's latency, on a simulated server."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from optimizer.load.level_plan import LevelPlan, OpenLoop
from optimizer.measurement.level import LoadLevel
from optimizer.workload.streams import Workload
from tests.unit.simulated_server import SimulatedServer, workload

SERVER = SimulatedServer(workload(60), instances=2, batch_seconds=0.020)
SATURATION = SERVER.saturation_per_second
LOAD = 0.7 * SATURATION / SERVER.work.demand_per_second


def levels(number: int, server: SimulatedServer = SERVER) -> list[LoadLevel]:
    plan = LevelPlan(OpenLoop(LOAD), 1, 6, 10, saturation_per_second=SATURATION)
    return [
        replace(server, rng=np.random.default_rng(seed), plans=[])(plan) for seed in range(number)
    ]


def test_latencies_vary_half_as_much_without_it_and_it_is_nothing_on_average() -> None:
    measured = levels(60)
    effects = np.array([level.arrival_effect for level in measured])
    latencies = np.log([level.latency_ms(95) for level in measured])
    assert float((latencies - effects).std()) < 0.5 * float(latencies.std())
    assert abs(float(effects.mean())) < 3 * float(effects.std()) / np.sqrt(len(effects))


def of(work: Workload, **changes: object) -> Workload:
    return replace(work, streams=tuple(replace(each, **changes) for each in work.streams))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "server",
    [
        replace(SERVER, work=of(SERVER.work, arrivals="constant")),
        replace(
            SERVER,
            work=Workload(
                (SERVER.work.streams[0], replace(SERVER.work.streams[0], target="another"))
            ),
        ),
        replace(SERVER, batch_seconds=11.0),
    ],
    ids=["other arrivals", "two models", "timeouts"],
)
def test_it_is_left_out_where_no_queue_of_poisson_arrivals_tells_it(
    server: SimulatedServer,
) -> None:
    [level] = levels(1, server)
    assert level.arrival_effect == 0


def test_it_is_left_out_where_saturation_is_not_known() -> None:
    level = replace(SERVER, plans=[])(LevelPlan(OpenLoop(LOAD), 1, 6, 10))
    assert level.arrival_effect == 0
