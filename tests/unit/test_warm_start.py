from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from optimizer.measurement.cost import Demand, Price, usd_per_million
from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.trial_records import wrong_answers_record
from optimizer.study.warm_start import blocking_differences, carried_over, differences
from tests.unit.studies import (
    DEMAND,
    PRICE,
    bounded,
    failed,
    four_points,
    infeasible,
    ok,
    record_of,
    small_space,
)

SPACE = four_points()
A, B, C, D = (SPACE.config(SPACE.at(row)) for row in range(4))

OLD: dict[str, Any] = {
    "models": {"bert": {"lengths": {"fixed": 32}, "accuracy": {"min_cosine": 0.9}}},
    "traffic": {"arrivals": "poisson", "demand_per_second": 500, "headroom": 0},
    "limit": {"percentile": 95, "latency_ms": 500},
    "price": {"instance_type": "a"},
    "parameters": {"max_batch_size": [4, 8]},
    "conditions": [],
    "measurement": {"check_seconds": 10, "confirm_seconds": 20},
}


def changed(*path: str, to: object) -> dict[str, Any]:
    def within(node: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
        key, *rest = keys
        return {**node, key: within(node[key], tuple(rest)) if rest else to}

    return within(OLD, path)


def test_what_is_the_same_has_no_difference() -> None:
    assert list(differences(OLD, changed("conditions", to=[]))) == []


def test_every_difference_is_named_by_its_key() -> None:
    new = changed("limit", "latency_ms", to=100)
    del new["price"]
    new["budget"] = {"trials": 3}
    assert list(differences(OLD, new)) == [
        (("budget",), "budget: was None, is {'trials': 3}"),
        (("limit", "latency_ms"), "limit.latency_ms: was 500, is 100"),
        (("price",), "price: was {'instance_type': 'a'}, is None"),
    ]


@pytest.mark.parametrize(
    "path",
    [
        ("price",),
        ("price", "instance_type"),
        ("parameters", "max_batch_size"),
        ("conditions",),
        ("traffic", "demand_per_second"),
        ("traffic", "headroom"),
        ("measurement", "confirm_seconds"),
        ("models", "bert", "accuracy", "min_cosine"),
    ],
)
def test_what_a_measurement_does_not_depend_on_blocks_nothing(path: tuple[str, ...]) -> None:
    new = changed(*path, to="other")
    assert list(differences(OLD, new)) != []
    assert blocking_differences(OLD, new) == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (("limit", "latency_ms"), "limit.latency_ms: was 500, is other"),
        (("limit", "percentile"), "limit.percentile: was 95, is other"),
        (("traffic", "arrivals"), "traffic.arrivals: was poisson, is other"),
        (("models", "bert", "lengths", "fixed"), "models.bert.lengths.fixed: was 32, is other"),
        (("measurement", "check_seconds"), "measurement.check_seconds: was 10, is other"),
    ],
)
def test_what_a_measurement_depends_on_blocks(path: tuple[str, ...], text: str) -> None:
    assert blocking_differences(OLD, changed(*path, to="other")) == [text]


def carried(
    *records: TrialRecord, price: Price = PRICE, demand: Demand = DEMAND
) -> list[TrialRecord]:
    return carried_over(records, "old", SPACE, price, demand)


def test_what_was_measured_is_carried_over_and_numbered_anew() -> None:
    records = [
        record_of(0, A, ok(100)),
        record_of(2, B, failed()),
        record_of(3, C, bounded(50)),
        record_of(5, D, infeasible(80)),
    ]
    kept = carried(*records)
    assert [(r.number, r.config, r.outcome) for r in kept] == [(0, A, "ok"), (1, D, "infeasible")]
    assert [record.origin for record in kept] == ["old", "old"]
    assert [r.measurement for r in kept] == [records[0].measurement, records[3].measurement]
    assert [r.constraints for r in kept] == [records[0].constraints, records[3].constraints]
    assert [r.told_value for r in kept] == [records[0].told_value, records[3].told_value]
    assert (kept[0].score, kept[1].score) == (records[0].score, None)


def test_what_is_not_in_the_space_stays_behind() -> None:
    other = small_space(runtime=("pytorch",))
    assert carried(record_of(0, other.config(other.baseline), ok(100))) == []
    dropped = SPACE.without({A.models[0].artifact})
    kept = carried_over(
        [record_of(0, A, ok(100)), record_of(1, D, ok(50))], "old", dropped, PRICE, DEMAND
    )
    assert [record.config for record in kept] == [D]


def test_wrong_answers_are_judged_anew() -> None:
    assert carried(wrong_answers_record(record_of(0, A, ok(100)), "rows are zeros")) == []


def test_neither_the_proposal_nor_the_attempt_is_carried_over() -> None:
    own = replace(
        record_of(0, A, ok(100)), params=(("a", 1),), attempt=2, told_at_proposal=7, told_position=9
    )
    (record,) = carried(own)
    assert (record.params, record.attempt) == ((), 1)
    assert (record.told_at_proposal, record.told_position) == (None, None)


def test_the_first_study_stays_the_origin() -> None:
    first = replace(record_of(0, A, ok(100)), origin="the first")
    assert carried(first)[0].origin == "the first"


def test_another_price_is_another_cost() -> None:
    dear = replace(PRICE, usd_per_hour=3.6)
    ok_record, missed = carried(
        record_of(0, A, ok(100)), record_of(1, B, infeasible(80)), price=dear
    )
    assert ok_record.score is not None
    assert ok_record.score.usd_per_million_at_capacity == pytest.approx(10.0)
    assert ok_record.told_value == pytest.approx(10.0)
    assert missed.told_value == pytest.approx(usd_per_million(3.6, 80))


@pytest.mark.parametrize("new_demand", [50.0, 2000.0])
def test_another_demand_changes_load_factors_and_no_rate(new_demand: float) -> None:
    before = record_of(0, A, ok(100))
    (after,) = carried(before, demand=Demand(new_demand))
    old, new = before.measurement, after.measurement
    assert old is not None
    assert new is not None
    assert new.demand_per_second == new_demand
    assert new.load_factor == pytest.approx(100 / new_demand)
    assert new.capacity_per_second == pytest.approx(old.capacity_per_second)
    assert new.capacity_low_per_second == pytest.approx(old.capacity_low_per_second)
    assert new.load_factor_high == pytest.approx(100 / new_demand)
    assert [x.load_factor * new_demand for x in new.levels] == pytest.approx(
        [x.load_factor * 500 for x in old.levels]
    )
    assert after.score is not None
    assert after.score.replicas == max(1, round(new_demand / 100))
    assert after.told_value == pytest.approx(1.0)


def test_an_open_bound_stays_open() -> None:
    before = record_of(0, A, ok(100))
    assert before.measurement is not None
    open_above = replace(before, measurement=replace(before.measurement, load_factor_high=None))
    (after,) = carried(open_above, demand=Demand(50))
    assert after.measurement is not None
    assert after.measurement.load_factor_high is None
