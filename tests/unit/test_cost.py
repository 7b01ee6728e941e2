from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.configuration.runtimes.spec import Precision
from optimizer.configuration.serving_config import (
    ArtifactSpec,
    Batching,
    InstanceGroup,
    ModelServing,
    ServingConfig,
)
from optimizer.measurement.cost import (
    Candidate,
    Demand,
    Price,
    Score,
    replicas_for,
    score,
    tie_break_key,
    usd_per_million,
)
from optimizer.measurement.level import Measurement

# Rows of the published benchmark: invocations a minute of one instance, instances for 30,000 a
# minute, dollars an hour of one instance and of all.
PUBLISHED = [
    pytest.param(490, 62, 0.7364, 45.6568, id="pt-base xlarge"),
    pytest.param(1078, 28, 0.7364, 20.6192, id="trt-db xlarge"),
    pytest.param(3192, 10, 0.7364, 7.364, id="trt-db-ig xlarge"),
    pytest.param(1335, 23, 0.94, 21.62, id="trt-db 2xlarge"),
    pytest.param(2138, 15, 4.89, 73.35, id="pt-base 12xlarge"),
    pytest.param(5356, 6, 4.89, 29.34, id="trt-db 12xlarge"),
]
XLARGE = Price("ml.g4dn.xlarge", 0.7364, source="the published benchmark", as_of="2022")


@pytest.mark.parametrize(("per_minute", "instances", "usd_per_hour", "fleet"), PUBLISHED)
def test_the_published_fleets(
    per_minute: int, instances: int, usd_per_hour: float, fleet: float
) -> None:
    demand = Demand(requests_per_second=30_000 / 60)
    price = replace(XLARGE, usd_per_hour=usd_per_hour)
    found = score(per_minute / 60, per_minute / 60, price, demand)
    assert found.replicas == instances
    assert found.fleet_usd_per_hour == pytest.approx(fleet)
    assert found.usd_per_million_at_demand == pytest.approx(fleet / 1.8)  # 1.8 million an hour


def test_usd_per_million_by_hand() -> None:
    # 3192 a minute are 191,520 an hour: 0.7364 / 0.19152 dollars a million.
    assert usd_per_million(0.7364, 3192 / 60) == pytest.approx(3.845029)


@pytest.mark.parametrize("rate", [0.0, -1.0])
def test_no_rate_has_no_price(rate: float) -> None:
    with pytest.raises(ValueError, match="must be above 0, got"):
        usd_per_million(1.0, rate)


@pytest.mark.parametrize("capacity", [0.0, -1.0])
def test_no_capacity_has_no_fleet(capacity: float) -> None:
    with pytest.raises(ValueError, match="capacity must be above 0 requests/s, got"):
        replicas_for(Demand(500), capacity)


@pytest.mark.parametrize(
    ("demand", "headroom", "capacity", "replicas"),
    [
        (500, 0.0, 100, 5),
        (500, 0.0, 100.1, 5),
        (500, 0.0, 99.9, 6),
        (500, 0.2, 100, 6),
        (500, 0.1, 110, 5),  # 500 * 1.1 is a little above 550 in floating point
        (1, 0.0, 1000, 1),
        (0, 0.0, 1000, 1),
    ],
)
def test_replicas(demand: float, headroom: float, capacity: float, replicas: int) -> None:
    assert replicas_for(Demand(demand, headroom), capacity) == replicas


@given(demand=st.floats(0.1, 1e5), headroom=st.floats(0, 2), capacity=st.floats(0.1, 1e5))
def test_the_fleet_serves_the_demand_and_one_less_would_not(
    demand: float, headroom: float, capacity: float
) -> None:
    needed = demand * (1 + headroom)
    replicas = replicas_for(Demand(demand, headroom), capacity)
    assert replicas * capacity >= needed * (1 - 1e-6)
    assert replicas == 1 or (replicas - 1) * capacity < needed


def test_capacity_sets_the_search_cost_and_its_lower_bound_the_fleet() -> None:
    found = score(100, 80, XLARGE, Demand(160))
    assert found.usd_per_million_at_capacity == pytest.approx(usd_per_million(0.7364, 100))
    assert found.replicas == 2


def candidate(
    precision: Precision = "fp32",
    p95_ms: float = 50,
    capacity: float = 100,
    instances: int = 1,
    delay_us: int = 0,
    fleet: float = 1.0,
) -> Candidate:
    config = ServingConfig(
        models=(
            ModelServing(
                name="bert",
                artifact=ArtifactSpec("bert", "openvino", "python", precision),
                max_batch_size=8,
                batching=Batching(max_queue_delay_us=delay_us),
                groups=(InstanceGroup(count=instances),),
            ),
        )
    )
    return Candidate(
        config=config,
        measurement=Measurement((), capacity, capacity, capacity, 1.0, "tested"),
        score=Score(1.0, 1, fleet, 1.0),
        p95_ms_at_demand=p95_ms,
    )


# Each rule: what it prefers, and a rival that every later rule would prefer.
RULES = [
    pytest.param(
        candidate("fp32", p95_ms=90, capacity=50, instances=4, delay_us=900),
        candidate("int8", p95_ms=10, capacity=900, instances=1, delay_us=0),
        id="higher precision",
    ),
    pytest.param(
        candidate(p95_ms=10, capacity=50, instances=4, delay_us=900),
        candidate(p95_ms=11, capacity=900, instances=1, delay_us=0),
        id="lower p95 at demand",
    ),
    pytest.param(
        candidate(capacity=101, instances=4, delay_us=900),
        candidate(capacity=100, instances=1, delay_us=0),
        id="higher capacity",
    ),
    pytest.param(
        candidate(instances=1, delay_us=900),
        candidate(instances=2, delay_us=0),
        id="fewer instances",
    ),
    pytest.param(
        candidate(delay_us=100),
        candidate(delay_us=101),
        id="shorter queue delay",
    ),
]


@pytest.mark.parametrize(("winner", "rival"), RULES)
def test_each_tie_rule_goes_before_all_later_ones(winner: Candidate, rival: Candidate) -> None:
    assert tie_break_key(winner) < tie_break_key(rival)


def test_precisions_rank_by_what_they_keep() -> None:
    order = [candidate("int8"), candidate("fp16"), candidate("fp32"), candidate("bf16")]
    ranked = [c.config.models[0].artifact.precision for c in sorted(order, key=tie_break_key)]
    assert ranked == ["fp32", "fp16", "bf16", "int8"]


def test_fleets_are_sized_by_what_is_certain() -> None:
    """Capacities that differ by less than a replica cost the same: the tie rules decide."""
    sizes = {low: score(110, low, XLARGE, Demand(500)) for low in (90, 99, 100, 101, 124)}
    assert {low: found.replicas for low, found in sizes.items()} == {
        90: 6, 99: 6, 100: 5, 101: 5, 124: 5,
    }  # fmt: skip
    int8 = replace(candidate("int8", capacity=124), score=sizes[124])
    fp32 = replace(candidate("fp32", capacity=101), score=sizes[101])
    slow = replace(candidate("fp32", capacity=99), score=sizes[99])
    assert int8.score == fp32.score != slow.score
    assert tie_break_key(fp32) < tie_break_key(int8)


def test_several_models_are_as_precise_as_the_least_of_them() -> None:
    fp32, int8 = candidate("fp32").config.models[0], candidate("int8", instances=3).config.models[0]
    both = replace(candidate(), config=ServingConfig(models=(fp32, int8)))
    assert tie_break_key(both)[0] == tie_break_key(candidate("int8"))[0]
    assert tie_break_key(both)[3] == 4
