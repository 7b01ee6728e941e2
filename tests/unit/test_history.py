from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.configuration.serving_config import (
    Batching,
    InstanceGroup,
    ServingConfig,
)
from optimizer.measurement.cost import Demand, score
from optimizer.study.history import History, in_order_of_tells, prune_load_factor, scored
from tests.unit.studies import (
    DEMAND,
    PRICE,
    SETTING,
    bounded,
    failed,
    four_points,
    history_of,
    infeasible,
    measured,
    ok,
    record_of,
    small_space,
)

SPACE = four_points()
A, B, C, D = (SPACE.config(SPACE.at(row)) for row in range(4))


def test_records_come_in_the_order_of_their_numbers() -> None:
    history = History({4: record_of(4, A, ok(10)), 0: record_of(0, B, ok(20))})
    history.add(record_of(2, C, ok(30)))
    assert [record.number for record in history.records] == [0, 2, 4]


def test_records_of_several_workers_come_in_the_order_in_which_they_were_told() -> None:
    carried, first, second, third = (
        replace(record_of(number, config, ok(10)), told_position=position)
        for number, config, position in ((0, A, None), (1, B, 3), (2, C, 1), (4, D, 2))
    )
    records = [third, first, carried, second]
    history = History({record.number: record for record in records})
    assert list(history.records) == [carried, second, third, first]
    assert in_order_of_tells(records) == [carried, second, third, first]
    last = replace(record_of(3, D, failed()), told_position=4)
    history.add(last)
    assert list(history.records)[-1] == last
    assert history.failures_in_a_row() == 1
    assert list(history.records_of(D)) == [third, last]


def test_every_outcome_is_counted() -> None:
    history = history_of((A, ok(10)), (B, infeasible(5)), (C, ok(20)), (D, failed()))
    history.add(record_of(4, D, bounded(7)))
    assert history.counts() == {"ok": 2, "infeasible": 1, "bounded": 1, "failed": 1}
    assert [record.number for record in history.ok] == [0, 2]
    assert History({}).counts() == {"ok": 0, "infeasible": 0, "bounded": 0, "failed": 0}


def test_the_incumbent_met_the_limits_most_cheaply() -> None:
    history = history_of((A, ok(100)), (B, infeasible(900)), (C, ok(300)), (D, bounded(800)))
    assert history.incumbent == history.records[2]
    assert history_of((A, infeasible(900)), (B, failed())).incumbent is None


def test_the_first_of_equally_cheap_ones_stays_the_incumbent() -> None:
    history = history_of((A, ok(100)), (B, ok(100)))
    assert history.incumbent == history.records[0]


def test_what_was_carried_over_is_not_counted_as_measured_here() -> None:
    history = history_of((A, ok(100)), (B, ok(90)))
    assert history.trials_spent == 2
    history.add(replace(record_of(0, A, ok(100)), origin="another"))
    assert history.trials_spent == 1


def test_what_was_measured_is_decided() -> None:
    history = history_of((A, ok(100)), (B, infeasible(90)), (C, bounded(80)))
    assert [history.decided(config) for config in (A, B, C)] == list(history.records)
    assert history.decided(D) is None


def test_a_failure_that_would_repeat_itself_is_decided() -> None:
    history = history_of((A, failed("no such operator")))
    assert history.decided(A) == history.records[0]


def test_a_failure_that_may_pass_is_tried_once_more() -> None:
    history = history_of((A, failed(transient=True)))
    assert history.decided(A) is None
    assert history.attempts(A) == 1
    history = History({})
    for number in range(2):
        assert history.decided(A) is None
        history.add(record_of(number, A, failed(transient=True)))
    assert history.decided(A) == history.records[1]
    assert history.attempts(A) == 2


def test_a_later_run_tries_again_what_could_not_be_measured() -> None:
    history = history_of((A, failed(transient=True)), (A, failed(transient=True)), (B, failed()))
    assert history.decided(A) is None
    assert history.decided(B) == history.records[2]


def test_a_failure_that_may_pass_costs_no_trial_and_is_unmeasured_until_it_passes() -> None:
    history = history_of((A, failed(transient=True)), (B, failed()), (C, ok(100)))
    assert history.trials_spent == 2
    assert [record.config for record in history.unmeasured] == [A]
    history.add(record_of(3, A, ok(90)))
    assert history.trials_spent == 3
    assert history.unmeasured == []


def test_what_came_of_the_second_attempt_counts() -> None:
    history = history_of((A, failed(transient=True)), (A, ok(100)))
    assert history.decided(A) == history.records[1]


def served(batch: int, instances: int) -> ServingConfig:
    (model,) = A.models
    batching = Batching() if batch > 1 else None
    groups = (replace(model.groups[0], count=instances),)
    return ServingConfig((replace(model, max_batch_size=batch, batching=batching, groups=groups),))


@pytest.mark.parametrize(
    ("batch", "instances", "banned"),
    [
        (8, 2, True),
        (16, 2, True),
        (8, 3, True),
        (16, 4, True),
        (4, 2, False),
        (8, 1, False),
        (64, 1, False),
        (4, 8, False),
    ],
)
def test_out_of_memory_rules_out_everything_larger(
    batch: int, instances: int, banned: bool
) -> None:
    history = history_of((served(8, 2), failed(out_of_memory=True)))
    decided = history.decided(served(batch, instances))
    assert decided == (history.records[0] if banned else None)


def test_out_of_memory_says_nothing_of_another_artefact() -> None:
    larger = served(16, 4)
    (model,) = larger.models
    other = replace(model, artifact=replace(model.artifact, precision="int8"))
    history = history_of((served(8, 2), failed(out_of_memory=True)))
    assert history.decided(ServingConfig((other,))) is None


def test_another_failure_says_nothing_of_larger_ones() -> None:
    history = history_of((served(8, 2), failed("no such operator")))
    assert history.decided(served(16, 4)) is None


def test_failures_in_a_row_are_the_last_ones() -> None:
    assert History({}).failures_in_a_row() == 0
    history = history_of((A, failed()), (B, ok(10)), (C, failed()), (D, failed()))
    assert history.failures_in_a_row() == 2
    history.add(record_of(4, B, infeasible(5)))
    assert history.failures_in_a_row() == 0


def test_without_an_incumbent_there_is_no_bound() -> None:
    assert prune_load_factor(None, DEMAND) is None


@given(capacity=st.floats(1, 5000), headroom=st.floats(0, 1))
def test_below_the_bound_a_fleet_is_dearer_than_the_incumbents(
    capacity: float, headroom: float
) -> None:
    demand = Demand(500, headroom)
    cost = score(capacity, capacity, PRICE, demand)
    incumbent = replace(record_of(0, A, ok(capacity)), score=cost)
    bound = prune_load_factor(incumbent, demand)
    assert bound is not None
    just_below = bound * 0.999 * 500
    assert score(just_below, just_below, PRICE, demand).replicas > cost.replicas
    # A margin for noise, and no more: a tenth above the bound it may be as cheap.
    above = bound * 1.1 * 500
    assert score(above, above, PRICE, demand).replicas <= cost.replicas


def test_a_capacity_is_scored_and_none_is_not() -> None:
    found = scored(measured(100), PRICE, DEMAND)
    assert found is not None
    assert found.usd_per_million_at_capacity == pytest.approx(1.0)
    assert found.replicas == 5
    assert found.fleet_usd_per_hour == pytest.approx(5 * 0.36)
    nothing = infeasible(100).measurement
    assert nothing is not None
    assert scored(nothing, PRICE, DEMAND) is None


def test_the_made_up_study_is_consistent() -> None:
    """What the other tests build on: the space's points are distinct and the price is a dollar."""
    assert len({A, B, C, D}) == 4
    assert len(small_space()) == 63
    assert SETTING.price == PRICE


def test_what_to_expect_is_the_share_of_the_latest_similar_one() -> None:
    space = small_space(
        runtime=("openvino",),
        precision=("fp32",),
        batching=(True,),
        max_batch_size=(8, 16),
        instance_count=(1,),
        intra_op_threads=(1,),
    )
    configs = [space.config(space.at(row)) for row in range(len(space))]
    one, same = (config for config in configs if config.models[0].max_batch_size == 8)
    larger = next(config for config in configs if config.models[0].max_batch_size == 16)
    history = history_of((one, ok(100)), (larger, infeasible(50)))
    # A made-up capacity is 1 / 1.05 of saturation.
    assert history.expected_share(same) == pytest.approx(1 / 1.05)
    assert history.expected_share(larger) is None
    assert History({}).expected_share(one) is None


@pytest.mark.parametrize(("counts", "banned"), [((2, 2), True), ((3, 0), True), ((1, 1), False)])
def test_memory_runs_out_on_the_fullest_gpu(counts: tuple[int, ...], banned: bool) -> None:
    def on_gpus(counts: tuple[int, ...]) -> ServingConfig:
        (model,) = served(8, 1).models
        groups = tuple(
            InstanceGroup("KIND_GPU", count, (gpu,)) for gpu, count in enumerate(counts) if count
        )
        return ServingConfig((replace(model, groups=groups),))

    history = history_of((on_gpus((2, 1)), failed(out_of_memory=True)))
    assert (history.decided(on_gpus(counts)) is not None) == banned
