from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optimizer.configuration.serving_config import ServingConfig, describe
from optimizer.errors import EverythingFailedError
from optimizer.load.capacity import CapacityProtocol
from optimizer.machine.time_limit import TimeLimit
from optimizer.measurement.cost import Candidate
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.level import Measurement
from optimizer.measurement.resource_use import MachineUse
from optimizer.search.confirm import Confirmed, ConfirmPhase
from optimizer.search.evaluator import Protocols
from optimizer.search.finalists import finalists_of, ranked
from optimizer.study import decision
from optimizer.study.decision import ROUNDS, candidate_of, levels_near, merged
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Event, Note, PhaseStarted, TrialFinished, TrialStarted
from optimizer.study.history import History, scored
from tests.unit.studies import (
    DEMAND,
    SETTING,
    FakeEvaluator,
    failed,
    history_of,
    infeasible,
    level,
    measured,
    ok,
    record_of,
    small_space,
)

pytestmark = pytest.mark.usefixtures("fast_disk")

SPACE = small_space(max_queue_delay_us=(0,), intra_op_threads=(1,))
BASELINE = SPACE.config(SPACE.baseline)
CONFIGS = [c for row in range(len(SPACE)) if (c := SPACE.config(SPACE.at(row))) != BASELINE]
FP32 = [c for c in CONFIGS if c.models[0].artifact.precision == "fp32"]
INT8 = [c for c in CONFIGS if c.models[0].artifact.precision == "int8"]
PROTOCOLS = Protocols(CapacityProtocol(), CapacityProtocol(check_seconds=20.0))
Held = Callable[[ServingConfig, float, int], Evaluation]


def as_found(config: ServingConfig, load: float, before: int) -> Evaluation:
    return ok(load * DEMAND.requests_per_second)


def held_by(found: dict[ServingConfig, list[Evaluation]]) -> Held:
    """What each round gives; what was found where nothing is said."""

    def held(config: ServingConfig, load: float, before: int) -> Evaluation:
        return found[config][before] if config in found else as_found(config, load, before)

    return held


class Confirming:
    """A confirm phase that can be run again, as a new process would."""

    def __init__(self, folder: Path) -> None:
        self.directory = StudyDirectory(folder)
        self.evaluator = FakeEvaluator(held=as_found)
        self.events: list[Event] = []
        self.limit = TimeLimit()

    def run(self, history: History, baseline: ServingConfig = BASELINE) -> Confirmed:
        watch = self.events.append
        phase = ConfirmPhase(self.evaluator, self.directory, SETTING, watch, PROTOCOLS, self.limit)
        return phase.run(history, baseline)


@pytest.fixture
def confirming(tmp_path: Path) -> Confirming:
    return Confirming(tmp_path)


# Fleets for 500/s: 130 needs 4, 110 needs 5, 90 needs 6, 50 needs 10.
A, B, C, D = FP32[:4]
HISTORY = history_of((BASELINE, ok(50)), (D, ok(60)), (C, ok(90)), (B, ok(110)), (A, ok(130)))


def configs_of(confirmed: Confirmed) -> list[ServingConfig]:
    return [candidate.config for candidate in confirmed.best]


def test_the_winner_two_rivals_and_the_baseline_are_measured_in_turn(
    confirming: Confirming,
) -> None:
    confirmed = confirming.run(HISTORY)
    assert confirming.evaluator.confirmed == [A, B, C, BASELINE] * 2
    assert configs_of(confirmed) == [A]
    assert confirmed.baseline is not None
    assert confirmed.baseline.config == BASELINE


def test_trials_are_ranked_once_however_many_rounds_are_measured(
    confirming: Confirming, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reads the load levels of a trial, of which there may be thousands."""
    ranks = Counter[ServingConfig]()

    def count(config: ServingConfig, *others: Any) -> Candidate | None:
        ranks[config] += 1
        return candidate_of(config, *others)

    monkeypatch.setattr(decision, "candidate_of", count)
    confirming.run(HISTORY)
    assert ranks[D] == 1
    assert confirming.evaluator.confirmed.count(D) == 0


def test_each_is_asked_for_its_capacity_and_its_share_of_the_demand(
    confirming: Confirming,
) -> None:
    confirming.run(HISTORY)
    capacities, shares = zip(*confirming.evaluator.loads[:4], strict=True)
    assert capacities == pytest.approx([130 / 500, 110 / 500, 90 / 500, 50 / 500])
    assert shares == pytest.approx([1 / 4, 1 / 5, 1 / 6, 1 / 10])


def test_finalists_answer_five_thousand_requests_in_all_and_the_baseline_fewer(
    confirming: Confirming,
) -> None:
    confirming.run(HISTORY)
    assert confirming.evaluator.requests == [2500, 2500, 2500, 500] * ROUNDS
    assert SETTING.confirm_requests == ROUNDS * 2500


def test_the_winner_is_compared_with_everyone_that_was_confirmed(confirming: Confirming) -> None:
    confirmed = confirming.run(HISTORY)
    assert [claim.rival for claim in confirmed.claims] == [B, C, BASELINE]
    # The made-up levels are next to saturation: ratios are those of the capacities.
    assert [claim.ratio for claim in confirmed.claims] == pytest.approx(
        [130 / 110, 130 / 90, 130 / 50], rel=0.01
    )


def test_what_was_not_confirmed_is_not_compared(confirming: Confirming) -> None:
    confirming.evaluator.held = held_by({B: [failed("gone"), failed("gone")]})
    assert [claim.rival for claim in confirming.run(HISTORY).claims] == [C, BASELINE]


def test_a_replica_is_never_asked_for_more_than_its_capacity(confirming: Confirming) -> None:
    confirming.run(history_of((A, ok(2000)), (B, ok(500))))
    assert confirming.evaluator.loads[:2] == [(4.0, 1.0), (1.0, 1.0)]


def test_a_baseline_among_the_finalists_is_not_measured_more_often(
    confirming: Confirming,
) -> None:
    confirmed = confirming.run(history_of((BASELINE, ok(130)), (A, ok(110))))
    assert confirming.evaluator.confirmed == [BASELINE, A] * 2
    assert configs_of(confirmed) == [BASELINE]
    assert confirmed.baseline == confirmed.best[0]


def test_only_what_met_the_limits_is_confirmed(confirming: Confirming) -> None:
    history = history_of((BASELINE, infeasible(900)), (A, failed()), (B, ok(110)))
    confirmed = confirming.run(history)
    assert set(confirming.evaluator.confirmed) == {B}
    assert confirmed.baseline is None


def test_the_figures_are_those_of_the_confirmation(confirming: Confirming) -> None:
    confirming.evaluator.held = held_by({A: [ok(126, p95_ms=70), ok(128, p95_ms=60)]})
    (best,) = confirming.run(HISTORY).best
    assert best.config == A
    assert best.measurement.capacity_per_second == pytest.approx(126)
    assert best.score.usd_per_million_at_capacity == pytest.approx(100 / 126)
    assert best.p95_ms_at_demand == 70


@pytest.mark.parametrize("rounds", [(100, 80), (80, 100)])
def test_the_capacity_is_what_every_round_held(
    confirming: Confirming, rounds: tuple[float, float]
) -> None:
    confirming.evaluator.held = held_by({A: [ok(capacity) for capacity in rounds]})
    (best,) = confirming.run(history_of((A, ok(130)))).best
    assert best.measurement.capacity_per_second == pytest.approx(80)
    assert best.score.replicas == 7
    assert best.measurement.ended == "certified in 2 rounds"


def test_a_winner_that_holds_less_is_no_winner(confirming: Confirming) -> None:
    confirming.evaluator.held = held_by({A: [ok(130), ok(105)], B: [ok(109), ok(125)]})
    assert configs_of(confirming.run(HISTORY)) == [B, A]


def test_a_winner_that_needs_another_replica_is_not_among_the_equal(
    confirming: Confirming,
) -> None:
    confirming.evaluator.held = held_by({A: [ok(130), ok(95)]})
    assert configs_of(confirming.run(HISTORY)) == [B]


@pytest.mark.parametrize(
    "rounds",
    [
        [infeasible(130), ok(130)],
        [ok(130), infeasible(130)],
        [ok(130), failed("the model cannot be loaded")],
        [ok(130), *[failed("the server ended", transient=True)] * 2],
    ],
)
def test_a_winner_that_fails_gives_way_to_the_next(
    confirming: Confirming, rounds: list[Evaluation]
) -> None:
    confirming.evaluator.held = held_by({A: rounds})
    assert configs_of(confirming.run(HISTORY)) == [B]


def test_a_finalist_that_cannot_be_measured_again_is_named_and_gives_way(
    confirming: Confirming,
) -> None:
    void = failed("could not be measured: the load generator fell behind", transient=True)
    confirming.evaluator.held = lambda config, load, before: (
        void if config == A else as_found(config, load, before)
    )
    assert configs_of(confirming.run(HISTORY)) == [B]
    [told] = [e for e in confirming.events if isinstance(e, Note) and "confirmed" in e.text]
    assert told.warning
    assert told.text == f"{describe(A)} could not be confirmed: {void.reason}"


def test_where_most_finalists_cannot_be_measured_again_nothing_is_best(
    confirming: Confirming,
) -> None:
    void = failed("could not be measured: the load generator fell behind", transient=True)
    confirming.evaluator.held = lambda config, load, before: (
        void if config in (A, B) else as_found(config, load, before)
    )
    with pytest.raises(EverythingFailedError) as raised:
        confirming.run(HISTORY)
    assert str(raised.value) == (
        "2 of the 3 best configurations could not be measured again, so nothing is recommended; "
        f"last reason: {void.reason}"
    )
    confirming.evaluator.held = as_found
    assert configs_of(confirming.run(HISTORY)) == [A], "a later run tries them again"


def test_a_failure_that_passes_costs_no_round(confirming: Confirming) -> None:
    passes = failed("the server ended", transient=True)
    confirming.evaluator.held = held_by({A: [passes, ok(130), ok(130)]})
    assert configs_of(confirming.run(HISTORY))[0] == A


def test_a_confirmation_record_has_nothing_of_the_trial_but_its_configuration(
    confirming: Confirming,
) -> None:
    trial = replace(
        record_of(0, A, ok(130)),
        params=(("bert.instance_count", 2),),
        machine="another machine",
        attempt=2,
        origin="an older study",
        told_further=(3.0,),
    )
    assert trial.told_value is not None
    assert trial.constraints[0][1] <= 0
    passes = failed("the server ended", transient=True)
    confirming.evaluator.held = held_by({A: [passes, infeasible(120), ok(120)]})
    confirming.run(History({0: trial}))
    records = list(confirming.directory.confirmations.read_all().values())
    for record in records:
        assert (record.params, record.told_value, record.told_further) == ((), None, ())
        assert (record.machine, record.origin, record.score) == (SETTING.machine, None, None)
    assert [record.attempt for record in records] == [1, 2, 1]
    assert records[0].constraints == ()
    missed, met = (record.constraints[0][1] for record in records[1:])
    assert missed > 0 >= met


def test_what_claims_a_cheaper_fleet_than_a_fallen_winner_is_measured_too(
    confirming: Confirming,
) -> None:
    confirming.evaluator.held = held_by({c: [ok(10), ok(10)] for c in (A, B, C)})
    assert configs_of(confirming.run(HISTORY)) == [D]


def test_when_every_finalist_fails_the_next_is_tried(confirming: Confirming) -> None:
    bad = [infeasible(100)] * 2
    confirming.evaluator.held = held_by({A: bad, B: bad, C: bad})
    confirmed = confirming.run(HISTORY)
    assert configs_of(confirmed) == [D]
    assert confirming.evaluator.confirmed[8:] == [D, D]
    notes = [event.text for event in confirming.events if isinstance(event, Note)]
    assert len(notes) == 1
    assert notes[0].startswith("the winner's confirmed cost rose; confirming pytorch fp32, ")


def test_when_nothing_holds_nothing_is_best(confirming: Confirming) -> None:
    confirming.evaluator.held = lambda *_: infeasible(100)
    assert confirming.run(HISTORY) == Confirmed(None, ())
    assert set(confirming.evaluator.confirmed) == {A, B, C, D, BASELINE}


def test_without_anything_that_met_the_limits_nothing_is_measured(
    confirming: Confirming,
) -> None:
    assert confirming.run(history_of((BASELINE, infeasible(100)))) == Confirmed(None, ())
    assert confirming.evaluator.confirmed == []
    assert confirming.events == [PhaseStarted("confirm", 0)]


def test_int8_does_not_win_while_it_saves_nothing(confirming: Confirming) -> None:
    """All three need 4 replicas."""
    history = history_of((INT8[0], ok(160, p95_ms=10)), (A, ok(130)), (B, ok(128)))
    assert configs_of(confirming.run(history)) == [A, B, INT8[0]]


def test_int8_wins_where_it_saves_a_replica(confirming: Confirming) -> None:
    history = history_of((INT8[0], ok(170)), (A, ok(160)), (B, ok(130)))
    assert configs_of(confirming.run(history)) == [INT8[0]]


def test_among_equals_the_lower_latency_at_demand_comes_first(confirming: Confirming) -> None:
    found = {A: [ok(130, p95_ms=60)] * 2, B: [ok(126, p95_ms=20)] * 2}
    confirming.evaluator.held = held_by(found)
    assert configs_of(confirming.run(history_of((A, ok(130)), (B, ok(126))))) == [B, A]


def test_every_confirmation_is_a_record(confirming: Confirming) -> None:
    confirming.evaluator.held = held_by({A: [ok(125), infeasible(120)]})
    confirming.run(history_of((A, ok(130)), (B, ok(110))))
    records = confirming.directory.confirmations.read_all()
    assert list(records) == [0, 1, 2, 3]
    assert [record.config for record in records.values()] == [A, B, A, B]
    assert [record.outcome for record in records.values()] == ["ok", "ok", "infeasible", "ok"]
    assert records[0].measurement == ok(125).measurement
    assert records[0].seconds == ok(125).seconds
    assert all(record.score is None for record in records.values())
    assert confirming.directory.trials.read_all() == {}


def test_what_earlier_runs_confirmed_is_not_repeated(confirming: Confirming) -> None:
    first = confirming.run(HISTORY)
    asked = len(confirming.evaluator.confirmed)
    assert confirming.run(HISTORY) == first
    assert len(confirming.evaluator.confirmed) == asked


class KilledError(Exception):
    """Stands for a kill -9."""


@pytest.mark.parametrize("done", range(1, 8))
def test_a_phase_that_was_cut_off_goes_on_where_it_stopped(
    confirming: Confirming, done: int
) -> None:
    def until(config: ServingConfig, load: float, before: int) -> Evaluation:
        if len(confirming.evaluator.confirmed) > done:
            raise KilledError
        return as_found(config, load, before)

    confirming.evaluator.held = until
    with pytest.raises(KilledError):
        confirming.run(HISTORY)
    resumed = FakeEvaluator(held=as_found)
    confirming.evaluator = resumed
    assert configs_of(confirming.run(HISTORY)) == [A]
    assert resumed.confirmed == ([A, B, C, BASELINE] * ROUNDS)[done:], "in the same order"
    for config in (A, B, C, BASELINE):
        records = confirming.directory.confirmations.read_all().values()
        assert sum(record.config == config for record in records) == ROUNDS


def test_a_better_one_found_later_is_confirmed_beside_the_known(confirming: Confirming) -> None:
    confirming.run(HISTORY)
    known = len(confirming.evaluator.confirmed)
    better = FP32[5]
    later = History({r.number: r for r in HISTORY.records})
    later.add(record_of(9, better, ok(300)))
    assert configs_of(confirming.run(later)) == [better]
    assert confirming.evaluator.confirmed[known:] == [better] * ROUNDS


def test_what_an_earlier_run_confirmed_counts_though_it_is_no_finalist_any_more(
    confirming: Confirming,
) -> None:
    """A report that read all confirmations named another best than the run at its end."""
    confirming.evaluator.held = lambda *_: ok(62)
    confirming.run(history_of((D, ok(50))))
    confirming.evaluator.held = lambda *_: ok(53)
    history = history_of((D, ok(50)), (A, ok(130)), (B, ok(110)), (C, ok(90)))
    confirmed = confirming.run(history)
    assert configs_of(confirmed) == [D]
    assert {claim.rival for claim in confirmed.claims} == {A, B, C}


def test_watchers_are_told_what_happens(confirming: Confirming) -> None:
    confirming.run(history_of((BASELINE, ok(50)), (A, ok(130))))
    first, *rest = confirming.events
    assert first == PhaseStarted("confirm", 4)
    assert [type(event) for event in rest] == [TrialStarted, TrialFinished] * 4
    started = [event for event in rest if isinstance(event, TrialStarted)]
    assert [(e.config, e.measured, e.of) for e in started] == [
        (A, 1, 2), (BASELINE, 1, 2), (A, 2, 2), (BASELINE, 2, 2),
    ]  # fmt: skip


QUEUEING = small_space(
    runtime=("openvino",), precision=("fp32",), batching=(True,), max_batch_size=(8,),
    instance_count=(1,), intra_op_threads=(1,),
    preferred_batch_sizes=("none", "half", "powers"), max_queue_delay_us=(0, 500, 1000),
)  # fmt: skip
TIED = [QUEUEING.config(QUEUEING.at(row)) for row in range(len(QUEUEING))]


def test_what_differs_from_the_winner_in_queueing_alone_is_measured_beside_it(
    confirming: Confirming,
) -> None:
    """By their latencies the ties come after records with which there is nothing to settle."""
    first, close, closer, far = TIED[:4]
    history = history_of(
        (first, ok(130, p95_ms=10)),
        (A, ok(129, p95_ms=20)),
        (B, ok(129, p95_ms=21)),
        (C, ok(129.5, p95_ms=22)),
        (close, ok(128, p95_ms=30)),
        (closer, ok(129, p95_ms=31)),
        (far, ok(126, p95_ms=32)),
    )
    confirming.run(history)
    finalists = [first, A, B, close, closer]
    assert confirming.evaluator.confirmed == finalists * 2


def test_at_most_three_ties_are_measured_beside_the_winner(confirming: Confirming) -> None:
    history = history_of(*((config, ok(130, p95_ms=10 + n)) for n, config in enumerate(TIED)))
    confirming.run(history)
    assert confirming.evaluator.confirmed == TIED[:4] * 2


def disturbed(evaluation: Evaluation, foreign_cores: float) -> Evaluation:
    """The same, measured while other processes took so much of two cores."""
    use = MachineUse(1.0, 2, 1.0, None, foreign_cores)
    found = evaluation.valid_measurement
    levels = tuple(replace(level, machine=use) for level in found.levels)
    return replace(evaluation, measurement=replace(found, levels=levels))


def test_what_may_be_the_best_without_other_processes_is_measured_beside_the_winner() -> None:
    """Two cores of which one is taken may slow it down by a factor of 2."""
    busy, too_slow, hardly_disturbed = CONFIGS[6:9]
    records = history_of(
        *((config, ok(capacity)) for config, capacity in ((A, 130), (B, 129), (C, 128))),
        (busy, disturbed(ok(80), 1.0)),
        (too_slow, disturbed(ok(60), 1.0)),
        (hardly_disturbed, disturbed(ok(127), 0.05)),
    )
    queue = ranked(records.ok, SETTING)
    assert [each.config for each in finalists_of(queue)] == [A, B, C, busy]


def test_records_are_ranked_as_they_would_be_recommended() -> None:
    order = [
        record_of(1, INT8[0], ok(170)),  # 3 replicas
        record_of(2, A, ok(130, p95_ms=20)),  # 4 replicas, as all that follow
        record_of(3, B, ok(140, p95_ms=30)),
        record_of(4, C, ok(130, p95_ms=30)),
        record_of(5, C, ok(130, p95_ms=30)),
        record_of(0, INT8[1], ok(160, p95_ms=1)),
    ]
    assert ranked([*order[3:], *order[:3]][::-1], SETTING) == order


def test_a_wide_interval_does_not_keep_a_record_from_being_measured_well(
    confirming: Confirming,
) -> None:
    history = history_of((D, ok(110)), (C, ok(111)), (B, ok(112)), (A, ok(300)))
    widest = history.records[3]
    assert widest.measurement is not None
    vague = replace(widest.measurement, load_factor_low=50 / DEMAND.requests_per_second)
    cost = scored(vague, SETTING.price, DEMAND)
    history.add(replace(widest, measurement=vague, score=cost))
    assert configs_of(confirming.run(history)) == [A]


def test_merged_rounds_keep_every_level_and_the_lowest_capacity() -> None:
    rounds = [measured(100, high=120), measured(90, high=110), measured(95)]
    together = merged(rounds)
    assert len(together.levels) == 6
    assert together.load_factor == together.load_factor_low == rounds[1].load_factor
    assert together.load_factor_high == rounds[1].load_factor_high


def test_levels_near_a_load_are_open_loop_and_within_a_thousandth() -> None:
    levels = (
        level(0.2, kind="saturation"),
        level(0.2),
        level(0.2001),
        level(0.201),
        level(0.1),
    )
    found = levels_near(Measurement(levels, 0.2, 0.2, None, 500.0, "tested"), 0.2)
    assert found == [levels[1], levels[2]]


def test_latency_at_demand_is_the_worst_over_the_rounds(confirming: Confirming) -> None:
    def round_of(p95_at_demand: float) -> Evaluation:
        found = ok(130, p95_ms=90)
        assert found.measurement is not None
        levels = (*found.measurement.levels, level(0.25, p95_at_demand))
        return replace(found, measurement=replace(found.measurement, levels=levels))

    confirming.evaluator.held = held_by({A: [round_of(40), round_of(45)]})
    (best,) = confirming.run(history_of((A, ok(130)))).best
    assert best.p95_ms_at_demand == 45
