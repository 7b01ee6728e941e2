"""Which configuration the records of a study recommend."""

from __future__ import annotations

from dataclasses import replace

import pytest

from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.cost import Demand
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.decision import Decision, RunningDecision, claims_of, decide
from optimizer.study.history import History, prune_load_factor
from tests.unit.studies import (
    DEMAND,
    PRICE,
    failed,
    four_points,
    infeasible,
    ok,
    record_of,
    small_space,
)

SPACE = four_points()
A, B, C, D = (SPACE.config(SPACE.at(row)) for row in range(4))
TRIALS = [record_of(n, config, ok(rate)) for n, (config, rate) in
          enumerate([(A, 50.0), (B, 110.0), (C, 258.0), (D, 130.0)])]  # fmt: skip
Round = tuple[ServingConfig, Evaluation]


def rounds(*measured: Round) -> list[TrialRecord]:
    return [record_of(n, *each) for n, each in enumerate(measured)]


def decided(*measured: Round) -> Decision:
    return decide(TRIALS, rounds(*measured), PRICE, DEMAND)


def named(decision: Decision) -> list[tuple[ServingConfig, str]]:
    return [(each.config, each.status) for each in decision.contenders]


def test_trials_alone_recommend_the_cheapest_and_say_that_it_is_unconfirmed() -> None:
    found = decided()
    assert named(found) == [(each, "unconfirmed") for each in (C, D, B, A)]
    assert found.best is found.unconfirmed[0]
    assert found.best is not None
    assert found.best.figures == "258/s, $0.3876 per million, unconfirmed"


def test_one_confirmed_configuration_goes_before_whatever_trials_claim() -> None:
    found = decided((A, ok(49)), (B, ok(108)), (B, ok(109)))
    assert found.best is not None
    assert (found.best.config, found.best.confirmed) == (B, True)
    assert found.best.figures == "108/s, $0.9259 per million, confirmed"
    assert found.ranking == found.confirmed
    assert found.entry_of(A) is None, "only confirmed figures are reported"


def test_what_does_not_hold_its_load_again_gives_way_to_the_next() -> None:
    found = decided((C, infeasible(258)))
    assert named(found) == [(each, "unconfirmed") for each in (D, B, A)]
    found = decided((C, ok(200)), (C, failed("it broke")))
    assert C not in [config for config, _ in named(found)]


def test_a_transient_failure_contradicts_nothing_and_confirms_nothing() -> None:
    found = decided((C, ok(250)), (C, failed("the server ended", transient=True)))
    assert named(found)[0] == (C, "unconfirmed")
    assert named(decided((C, ok(250)), (C, failed("gone", transient=True)), (C, ok(240))))[0] == (
        C,
        "confirmed",
    )


def test_confirmations_count_whatever_run_made_them_and_in_whatever_order() -> None:
    again = [(B, ok(108)), (D, ok(125)), (B, ok(109)), (D, ok(126))]
    forwards, backwards = decided(*again), decided(*reversed(again))
    assert named(forwards) == named(backwards)
    assert forwards.best is not None
    assert forwards.best.config == D


def test_what_left_the_space_is_no_longer_recommended() -> None:
    smaller = small_space(
        runtime=("openvino",), precision=("fp32",), batching=(False,), max_batch_size=(4,),
        max_queue_delay_us=(0,), intra_op_threads=(1,),
    )  # fmt: skip
    found = decide(TRIALS, (), PRICE, DEMAND, smaller)
    assert [each.config for each in found.contenders] == [B, A]


def test_a_configuration_that_was_measured_again_counts_by_its_last_trial() -> None:
    later = record_of(9, C, ok(100))
    found = decide([*TRIALS, later], (), PRICE, DEMAND)
    assert [each.trial.number for each in found.contenders] == [3, 1, 9, 0]


@pytest.mark.parametrize(
    "confirmations", [(), rounds((D, ok(120.0)), (D, ok(125.0)), (C, infeasible(250.0)))]
)
def test_trials_that_are_told_one_by_one_are_decided_as_all_together(
    confirmations: list[TrialRecord],
) -> None:
    further = [
        record_of(4, A, infeasible(90)),
        record_of(5, C, ok(40.0)),  # the best so far, measured again
        record_of(6, B, failed()),
        record_of(7, A, ok(300.0)),
    ]
    running = RunningDecision(TRIALS[:1], confirmations, PRICE, DEMAND, SPACE)
    for count, record in enumerate([*TRIALS[1:], *further], start=2):
        running.add(record)
        together = decide([*TRIALS, *further][:count], confirmations, PRICE, DEMAND, SPACE)
        assert running.decision.best == together.best
        baseline = SPACE.config(SPACE.baseline)
        assert running.decision.entry_of(baseline) == together.entry_of(baseline)


def test_another_demand_is_counted_anew() -> None:
    found = decide(TRIALS, rounds((C, ok(258)), (C, ok(250))), PRICE, Demand(5000.0))
    assert found.best is not None
    assert found.best.candidate.measurement.capacity_per_second == pytest.approx(250.0)
    assert found.best.candidate.score.replicas == 20


def test_equal_fleets_are_equal_and_the_tie_rules_order_them() -> None:
    found = decided((D, ok(130)), (D, ok(130)), (C, ok(131)), (C, ok(131)))
    assert {each.config for each in found.equal_cost} == {C, D}
    assert found.equal_cost[0] is found.best
    assert Decision().equal_cost == ()


def test_the_best_is_compared_with_all_others_that_were_confirmed() -> None:
    again = rounds((D, ok(130)), (D, ok(130)), (B, ok(65)), (B, ok(65)))
    [claim] = claims_of(decide(TRIALS, again, PRICE, DEMAND), again)
    assert claim.rival == B
    assert claim.ratio == pytest.approx(2.0, rel=0.01)
    assert claims_of(decided(), ()) == ()


def test_a_contradicted_trial_is_no_incumbent_that_bounds_the_others() -> None:
    """Else a resumed search would end all others early for a figure that does not hold."""
    by_number = {record.number: record for record in TRIALS}
    lucky = History(by_number).incumbent
    assert lucky is not None
    assert lucky.config == C
    incumbent = History(by_number, [C]).incumbent
    assert incumbent is not None
    assert incumbent.config == D
    bound, before = (prune_load_factor(each, DEMAND) for each in (incumbent, lucky))
    assert bound is not None
    assert before is not None
    assert bound < before


def test_an_infeasible_or_bounded_trial_is_nothing_to_recommend() -> None:
    trials = [record_of(0, A, infeasible(80)), replace(TRIALS[1], outcome="bounded")]
    assert decide(trials, (), PRICE, DEMAND) == Decision()
