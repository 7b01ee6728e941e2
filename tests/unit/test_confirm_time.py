"""How a confirm phase is shortened, on a clock that the evaluator of the test drives."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import pytest

from optimizer.analysis.nothing_confirmed import nothing_confirmed
from optimizer.configuration.serving_config import ServingConfig
from optimizer.errors import TimeIsUpError
from optimizer.load.capacity import CapacityProtocol
from optimizer.load.certification import AT_DEMAND_REQUESTS, CertificationTask
from optimizer.machine.slots import Slot
from optimizer.machine.time_limit import TimeLimit
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.trial_record import Seconds
from optimizer.search.confirm import Confirmed, ConfirmPhase, search_reserve
from optimizer.search.confirm_time import (
    ConfirmPlan,
    Entrant,
    RoundTime,
    plan_confirmation,
    reserved_for_confirm,
    round_time,
)
from optimizer.search.evaluator import Protocols
from optimizer.study.decision import ROUNDS
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Event, Note
from optimizer.study.history import History
from tests.unit.studies import DEMAND, SETTING, history_of, ok, record_of, small_space

pytestmark = pytest.mark.usefixtures("fast_disk")

SPACE = small_space(max_queue_delay_us=(0,), intra_op_threads=(1,))
BASELINE = SPACE.config(SPACE.baseline)
A, B, C, *_ = [c for row in range(len(SPACE)) if (c := SPACE.config(SPACE.at(row))) != BASELINE]
SEARCH = CapacityProtocol(check_seconds=10.0)
PROTOCOLS = Protocols(SEARCH, CapacityProtocol(check_seconds=20.0))
SECONDS = Seconds(serving=3.0, measuring=4.0)
RATES = ((BASELINE, 10), (C, 11), (B, 12), (A, 13))
SLOW = history_of(*((config, replace(ok(rate), seconds=SECONDS)) for config, rate in RATES))
"""The finalists of a study whose levels of 2,500 requests take more than three minutes."""


@dataclass(frozen=True)
class VirtualLimit(TimeLimit):
    """A limit on a clock of the test; what runs past it is cut off by `VirtualServer`."""

    server: VirtualServer = field(kw_only=True)

    @contextmanager
    def enforced(self) -> Iterator[None]:
        if self.left <= 0:
            raise TimeIsUpError
        self.server.cut_off_at = self.ends_at
        yield


@dataclass
class VirtualServer:
    """Measures as `certify_load` does, in virtual time: each load is missed `missed` times first.

    Attributes:
        slowdown: of serving and of each level.
    """

    slowdown: float = 1.0
    missed: int = 0
    now: float = 0.0
    cut_off_at: float = math.inf
    rounds: list[tuple[ServingConfig, float]] = field(default_factory=list)

    def confirm(self, config: ServingConfig, slot: Slot, task: CertificationTask) -> Evaluation:
        del slot
        self.rounds.append((config, task.level_seconds))
        self._pass(SECONDS.serving + 4.5)
        load = task.load_factor
        started = self.now
        for step in range(self.missed + 1):
            at_demand = task.at_demand(load)
            levels = [(load, task.requests), (at_demand, AT_DEMAND_REQUESTS)]
            for each, requests in levels if step == self.missed else levels[:1]:
                rate, spent = each * DEMAND.requests_per_second, self.now - started
                self._pass(task.seconds(PROTOCOLS.confirm, requests, rate, step, spent))
        return ok(load * DEMAND.requests_per_second * 0.95**self.missed)

    def _pass(self, seconds: float) -> None:
        self.now += seconds * self.slowdown
        if self.now >= self.cut_off_at:
            self.now = self.cut_off_at
            raise TimeIsUpError


@dataclass
class Phase:
    """A confirm phase of a study with so much time left."""

    folder: Path
    server: VirtualServer = field(default_factory=VirtualServer)
    events: list[Event] = field(default_factory=list)

    def run(self, seconds: float, history: History = SLOW) -> Confirmed:
        limit = VirtualLimit(self.server.now + seconds, lambda: self.server.now, server=self.server)
        phase = ConfirmPhase(
            self.server,
            StudyDirectory(self.folder),
            SETTING,
            self.events.append,
            PROTOCOLS,
            limit,
        )
        return phase.run(history, BASELINE)

    @property
    def measured(self) -> list[ServingConfig]:
        return [config for config, _ in self.server.rounds]

    @property
    def levels(self) -> set[float]:
        return {seconds for _, seconds in self.server.rounds}

    @property
    def notes(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Note)]


@pytest.fixture
def phase(tmp_path: Path) -> Phase:
    return Phase(tmp_path)


def test_with_time_enough_nothing_is_shortened(phase: Phase) -> None:
    assert phase.run(3600.0).shortened == ""
    assert phase.measured == [A, B, C, BASELINE] * 2
    assert phase.levels == {math.inf}
    assert phase.server.now > 1200


def test_levels_become_shorter_first(phase: Phase) -> None:
    """5,000 requests at 13/s took the time of a whole run."""
    confirmed = phase.run(400.0)
    assert phase.measured == [A, B, C, BASELINE] * 2
    assert all(5.0 <= seconds < 60.0 for seconds in phase.levels)
    assert 0.9 * 400 < phase.server.now <= 400
    assert confirmed.shortened.startswith("load levels of at most ")
    assert "round" not in confirmed.shortened
    assert phase.notes == [f"the confirm phase is shortened to end in time: {phase_text(phase)}"]


def phase_text(phase: Phase) -> str:
    return f"load levels of at most {phase.server.rounds[0][1]:.3g} s"


def test_then_there_is_one_round_and_it_confirms(phase: Phase) -> None:
    confirmed = phase.run(120.0)
    assert phase.measured == [A, B, C, BASELINE]
    assert phase.server.now <= 120
    assert [each.config for each in confirmed.best] == [A]
    assert confirmed.best[0].measurement.ended == "certified in 1 round"
    assert confirmed.baseline is not None
    assert "1 round instead of 2" in confirmed.shortened
    assert not any("cheaper" in text for text in phase.notes)
    assert len(confirmed.claims) == 3


@pytest.mark.parametrize(
    ("seconds", "measured"), [(60.0, [A, B, BASELINE]), (42.0, [A, BASELINE]), (21.0, [A])]
)
def test_then_there_are_fewer_finalists_and_the_baseline_stays_longest(
    phase: Phase, seconds: float, measured: list[ServingConfig]
) -> None:
    confirmed = phase.run(seconds)
    assert phase.measured == measured
    assert phase.server.now <= seconds
    assert [each.config for each in confirmed.best] == [A]
    assert f"{4 - len(measured)} of the finalists left out" in confirmed.shortened


def test_without_time_for_one_round_nothing_is_confirmed_and_it_is_said(phase: Phase) -> None:
    confirmed = phase.run(6.0)
    assert phase.server.now == 6.0
    assert confirmed.best == ()
    assert confirmed.unconfirmed is not None
    told = nothing_confirmed(SLOW.records, (), confirmed.unconfirmed)
    assert told.reason.endswith("was not measured again before the run ended")
    assert "a longer --timeout" in told.advice


def test_a_resumed_run_measures_the_rounds_that_had_no_time(phase: Phase) -> None:
    phase.run(120.0)
    confirmed = phase.run(3600.0)
    assert phase.measured == [A, B, C, BASELINE] * ROUNDS
    assert confirmed.shortened == ""
    assert confirmed.best[0].measurement.ended == "certified in 2 rounds"


@pytest.mark.parametrize("missed", [2, 5, 8])
@pytest.mark.parametrize("slowdown", [1.0, 1.6])
@pytest.mark.parametrize("seconds", [60.0, 150.0, 300.0, 1200.0])
def test_on_a_machine_that_falters_it_ends_in_time_all_the_same(
    phase: Phase, missed: int, slowdown: float, seconds: float
) -> None:
    phase.server.missed, phase.server.slowdown = missed, slowdown
    phase.run(seconds)
    assert phase.server.now <= seconds


@pytest.mark.parametrize("missed", [1, 3, 5])
def test_on_a_machine_that_falters_the_best_is_confirmed_with_shorter_levels(
    phase: Phase, missed: int
) -> None:
    """A quickstart on a busy machine spent all of its time on one round, which was cut off."""
    phase.server.missed = missed
    confirmed = phase.run(150.0, history_of((A, ok(13))))
    assert [each.config for each in confirmed.best] == [A]
    assert phase.server.now <= 150.0


def test_a_finalist_that_falters_leaves_the_others_their_time(phase: Phase) -> None:
    phase.server.missed, phase.server.slowdown = 8, 3.0
    phase.run(150.0)
    assert {*phase.measured} >= {A, BASELINE}
    assert any("was cut off" in text for text in phase.notes)


def test_ten_levels_are_not_ten_times_as_long(phase: Phase) -> None:
    """A capacity that was missed eight times took eight whole levels."""
    at_once, stepping = VirtualServer(), VirtualServer(missed=8)
    for server in (at_once, stepping):
        phase.server = server
        phase.folder = phase.folder / "another"
        phase.run(1e6, history_of((A, ok(13))))
    assert stepping.now < 3.5 * at_once.now


def test_a_confirmation_that_was_cut_off_is_no_reason_to_call_the_machine_bad(
    phase: Phase,
) -> None:
    phase.server.slowdown = 50.0
    assert phase.run(100.0).best == ()
    assert phase.server.now <= 100.0


def entrants(*levels: float) -> list[Entrant]:
    return [
        Entrant(record_of(n, A, ok(13)), 2500, RoundTime(5.0, (each, 20.0)), n == len(levels) - 1)
        for n, each in enumerate(levels)
    ]


@pytest.mark.parametrize("levels", [(200.0, 180.0, 170.0, 30.0), (20.0, 20.0), (200.0,)])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_a_plan_with_more_time_is_never_smaller(levels: Sequence[float], scale: float) -> None:
    own = entrants(*levels)
    plans = [plan_confirmation(own, float(n), SEARCH, scale) for n in range(1, 4000)]
    sizes = [(len(plan.entrants), plan.rounds, plan.level_seconds) for plan in plans]
    pairs = list(pairwise(sizes))
    assert all(one[:2] <= two[:2] for one, two in pairs)
    assert all(one[2] <= two[2] + 1e-6 for one, two in pairs if one[:2] == two[:2])
    assert plans[-1].shortened == ""


def test_a_plan_in_words() -> None:
    assert ConfirmPlan(2, math.inf, ()).shortened == ""
    assert ConfirmPlan(1, 12.34, (), 2).shortened == (
        "load levels of at most 12.3 s, 1 round instead of 2, 2 of the finalists left out"
    )


def test_the_search_leaves_a_third_of_the_time_at_most_but_one_round_at_least() -> None:
    short, long = RoundTime(5.0, (20.0, 20.0)), RoundTime(5.0, (190.0, 20.0))
    assert reserved_for_confirm([], 300.0, SEARCH) == 0.0
    assert reserved_for_confirm([short, short], 3600.0, SEARCH) == 2 * 90.0
    assert reserved_for_confirm([long, long], 300.0, SEARCH) == 100.0
    assert reserved_for_confirm([long, long], 12.0, SEARCH) == 15.0


def test_the_reserve_follows_the_levels_that_were_measured() -> None:
    fast = history_of((BASELINE, ok(1000)), (A, ok(2000)))
    context = SETTING
    own = [search_reserve(h, BASELINE, context, PROTOCOLS, 36000.0) for h in (fast, SLOW)]
    assert own[0] < own[1]
    assert search_reserve(History({}), BASELINE, context, PROTOCOLS, 100.0) == 0.0


def test_a_level_that_was_proven_at_the_capacity_tells_how_long_it_will_take() -> None:
    [trial] = history_of((A, ok(10))).ok
    assert trial.measurement is not None
    saturated, *others = trial.measurement.levels
    proven = [replace(each, verdict="feasible", seconds=30.0) for each in others]
    known = replace(trial, measurement=replace(trial.measurement, levels=(saturated, *proven)))
    times = [round_time(each, 2500, SETTING.demand, PROTOCOLS.confirm) for each in (trial, known)]
    assert [each.levels[0] for each in times] == [250.0, 30.0]


def test_in_bursts_the_levels_of_a_round_have_whole_periods() -> None:
    [trial] = history_of((A, ok(10))).ok
    protocol = replace(PROTOCOLS.confirm, period_seconds=7.0)
    time = round_time(trial, 2500, SETTING.demand, protocol)
    assert time.levels[0] == 252.0
    assert all(seconds % 7.0 == 0 for seconds in time.levels)
