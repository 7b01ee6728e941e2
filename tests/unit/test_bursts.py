"""Bursts on one configuration: what is offered, to which queues, and the conclusion."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from optimizer.configuration.serving_config import Batching, QueuePolicy, ServingConfig
from optimizer.errors import LoadTestFailure, VoidLevelFailure
from optimizer.load.capacity import CapacityProtocol, RunLevel
from optimizer.load.level_plan import LevelPlan, OpenLoop
from optimizer.machine.slots import Slot
from optimizer.measurement.bursts import BurstComparison, SendingCost
from optimizer.measurement.level import LoadLevel
from optimizer.measurement.resource_use import MachineUse
from optimizer.report.burst_tables import bursts_sentence, bursts_table
from optimizer.search.bursts import measure_bursts
from optimizer.search.evaluator import LiveEvaluator
from optimizer.workload.arrivals import arrivals_of
from optimizer.workload.streams import Workload
from tests.unit.studies import level, small_space
from tests.unit.tables import WORKLOAD
from tests.unit.winners import bursts

_PLAIN = small_space().config(small_space().baseline)
BATCHED = ServingConfig((replace(_PLAIN.models[0], max_batch_size=16, batching=Batching()),))
DEMAND = WORKLOAD.demand_per_second
[STREAM] = WORKLOAD.streams
_SHARED = Slot((0, 1), (0, 1))


@dataclass
class MadeUpServer:
    """Answers as many requests within the limit as a queue lets it: all where it is bounded.

    Attributes:
        offered: plan and streams of each level, the one at the certified rate first.
        request_cpu_seconds: CPU time of the load generator for a request at the certified rate.
        burst_cpu_seconds: the same in bursts.
        slot: cores of server and load generator.
        lag_ms, errors: of levels with bursts.
    """

    workload: Workload = WORKLOAD
    served: list[ServingConfig] = field(default_factory=list)
    offered: list[tuple[LevelPlan, Workload]] = field(default_factory=list)
    error: Exception | None = None
    request_cpu_seconds: float = 1e-5
    burst_cpu_seconds: float = 1e-5
    slot: Slot = _SHARED
    lag_ms: float = 0.1
    errors: int = 0
    reason: Exception | None = None

    @property
    def bursts(self) -> list[tuple[LevelPlan, Workload]]:
        return self.offered[1:]

    @property
    def evaluator(self) -> LiveEvaluator:
        parts = SimpleNamespace(
            session=self,
            levels=self,
            workload=self.workload,
            files={model.artifact: None for model in BATCHED.models},
            protocols=SimpleNamespace(search=CapacityProtocol()),
        )
        return cast("LiveEvaluator", parts)

    def retire(self, *, wait: bool = False) -> None:
        """Keep nothing."""

    def serve(self, config: ServingConfig, files: object) -> None:
        if self.error is not None:
            raise self.error
        self.served.append(config)

    def failure(self, error: Exception) -> Exception:
        self.reason = error
        return RuntimeError(f"the server is stopped: {error}")

    def for_workload(self, workload: Workload) -> MadeUpServer:
        return replace(self, workload=workload)

    @contextmanager
    def on(self, served: Any, config: ServingConfig) -> Iterator[RunLevel]:
        yield lambda plan: self._run(plan, config)

    def _run(self, plan: LevelPlan, config: ServingConfig) -> LoadLevel:
        self.offered.append((plan, self.workload))
        assert isinstance(plan.load, OpenLoop)
        result = level(plan.load.load_factor, demand=DEMAND)
        [own], bounded = result.streams, _bound(config) > 0
        within, rejected = (900, 100) if bounded else (400, 0)
        in_bursts = len(self.offered) > 1
        each = self.burst_cpu_seconds if in_bursts else self.request_cpu_seconds
        client = replace(
            result.client,
            cpu_seconds=each * own.sent,
            lag_ms=self.lag_ms if in_bursts else 0.1,
            longest_lag_ms=plan.longest_lag_ms,
        )
        stream = replace(
            own,
            within_limit=within,
            rejected=rejected,
            errors=self.errors,
            first_error="DEADLINE_EXCEEDED: late" if self.errors else None,
        )
        machine = MachineUse(10.0, len(self.slot.all_cores), 5.0, 100.0, 0.0)
        return replace(result, streams=(stream,), seconds=10.0, client=client, machine=machine)

    def measure(
        self, config: ServingConfig = BATCHED, load_factor: float = 1.0, seconds: float = 100.0
    ) -> BurstComparison:
        return measure_bursts(self.evaluator, config, load_factor, seconds)


def _bound(config: ServingConfig) -> int:
    batching = config.models[0].batching
    return batching.queue_policy.max_queue_size if batching is not None else 0


def test_a_queue_is_bounded_by_what_is_served_within_the_limit() -> None:
    server = MadeUpServer()
    compared = server.measure()
    served_within = int(DEMAND * STREAM.limit.latency_ms / 1e3)
    assert [_bound(config) for config in server.served] == [0, 0, max(16, served_within)]
    unbounded, bounded = compared.queues
    assert (unbounded.is_bounded, bounded.is_bounded) == (False, True)
    assert [each.height for each in bounded.levels] == [1.5, 2.0, 3.0]
    assert {each.within_limit for each in unbounded.levels} == {0.4}
    assert {each.rejected for each in bounded.levels} == {0.1}
    assert bounded.levels[0].goodput_per_second == 90.0


def test_the_queue_holds_the_largest_batch_at_least() -> None:
    server = MadeUpServer()
    server.measure(load_factor=0.001)
    assert _bound(server.served[-1]) == 16


def test_a_configuration_with_a_bound_is_compared_with_none() -> None:
    policy = QueuePolicy(max_queue_size=7)
    model = replace(BATCHED.models[0], batching=Batching(queue_policy=policy))
    server = MadeUpServer()
    compared = server.measure(ServingConfig((model,)))
    assert [_bound(config) for config in server.served] == [7, 7, 0]
    assert compared.queues[0].is_bounded
    assert "with max_queue_size 7, and" in bursts_sentence(compared)


def test_without_a_dynamic_batcher_no_queue_can_be_bounded() -> None:
    compared = MadeUpServer().measure(_PLAIN)
    assert len(compared.queues) == 1
    assert any("No model has a dynamic batcher" in note for note in bursts_table(compared).notes)


@pytest.mark.parametrize(("seconds", "burst_seconds"), [(1000.0, 1.5), (43.0, 0.5), (1.0, 0.3)])
def test_bursts_are_shorter_where_there_is_less_time(seconds: float, burst_seconds: float) -> None:
    server = MadeUpServer()
    compared = server.measure(seconds=seconds)
    assert compared.burst_seconds == pytest.approx(burst_seconds)
    assert sum(plan.sending_seconds for plan, _ in server.bursts) == pytest.approx(
        2 * 3 * 2 * 5 * burst_seconds
    )


@pytest.mark.parametrize("load_factor", [1.0, 0.3])
def test_the_rates_are_those_of_the_certified_load(load_factor: float) -> None:
    server = MadeUpServer()
    server.measure(load_factor=load_factor)
    for (plan, workload), height in zip(server.bursts[:3], (1.5, 2.0, 3.0), strict=True):
        [stream] = workload.streams
        assert isinstance(plan.load, OpenLoop)
        rate = plan.load.load_factor * stream.demand_per_second
        due = arrivals_of(stream.arrivals).due_seconds(
            rate, plan.sending_seconds, np.random.default_rng(3)
        )
        # The busiest fifth of a cycle is the burst.
        certified, window = load_factor * DEMAND, 1.5
        starts = np.arange(0.0, plan.sending_seconds - window, 0.1)
        counts = [((due >= start) & (due < start + window)).sum() for start in starts]
        assert max(counts) == pytest.approx(height * certified * window, rel=0.12)
        assert min(counts) == pytest.approx(0.4 * certified * window, rel=0.3)


def test_a_failure_stops_the_server() -> None:
    with pytest.raises(RuntimeError, match="the server is stopped: gone"):
        MadeUpServer(error=LoadTestFailure("gone")).measure()


def test_the_conclusion_compares_both_queues() -> None:
    compared = bursts(BATCHED)
    assert bursts_sentence(compared) == (
        "In bursts of 2 times the certified rate, 50% of the requests are answered within the "
        "limit with an unbounded queue, and 75% with max_queue_size 24."
    )
    table = bursts_table(compared)
    assert [row[:3] for row in table.rows[:2]] == [
        ("750 (1.5 times)", "an unbounded queue", "50%"),
        ("750 (1.5 times)", "max_queue_size 24", "75%"),
    ]


def _request_cpu_seconds(client_cores: float) -> float:
    """Return the CPU time of a request with which the client takes so many cores when certified."""
    return client_cores / DEMAND


@pytest.mark.parametrize(
    ("client_cores", "heights"),
    [(0.1, [1.5, 2.0, 3.0]), (0.19, [1.5, 2.0, 2.9]), (0.39, [1.5, 1.8]), (0.79, [1.3])],
)
def test_bursts_leave_the_server_four_fifths_of_its_cores(
    client_cores: float, heights: list[float]
) -> None:
    each = _request_cpu_seconds(client_cores)
    compared = MadeUpServer(request_cpu_seconds=each, burst_cpu_seconds=each).measure()
    assert [level.height for level in compared.queues[0].levels] == heights
    assert all(level.void is None for _, level in compared.compared)
    sending = compared.sending
    assert sending is not None
    assert sending.share_left(heights[-1]) >= 0.8
    note = bursts_table(compared).notes[1]
    assert f"leaves it {2 - client_cores:.1f} at the certified rate" in note


def test_no_burst_is_sent_that_would_starve_the_server() -> None:
    server = MadeUpServer(request_cpu_seconds=_request_cpu_seconds(1.5))
    with pytest.raises(RuntimeError, match=r"would leave the server 0\.2 of 2 cores"):
        server.measure()
    assert not server.bursts
    assert isinstance(server.reason, VoidLevelFailure)


def test_a_load_generator_with_cores_of_its_own_starves_no_server() -> None:
    separate = Slot((0, 1, 2), (3,))
    each = _request_cpu_seconds(3.0)
    server = MadeUpServer(request_cpu_seconds=each, burst_cpu_seconds=each, slot=separate)
    compared = server.measure()
    assert compared.sending is None
    assert [level.height for level in compared.queues[0].levels] == [1.5, 2.0, 3.0]
    assert all(level.void is None for _, level in compared.compared)


def test_a_level_that_starved_the_server_is_void() -> None:
    compared = MadeUpServer(
        request_cpu_seconds=_request_cpu_seconds(0.1), burst_cpu_seconds=_request_cpu_seconds(0.3)
    ).measure()
    assert [level.void is None for level in compared.queues[0].levels] == [True, True, False]
    assert bursts_sentence(compared) == (
        "No conclusion on bursts: the figures of 2 of 6 levels are those of the load generator. At "
        "3 times the certified rate, the load generator left the server 1.1 of 2 cores in the "
        "bursts, and 1.9 at the certified rate: give it cores of its own."
    )
    table = bursts_table(compared)
    assert table.rows[-1][0].endswith("(3 times, void)")
    assert table.notes[-1].startswith("Void: 3 times the certified rate with max_queue_size ")


def test_a_level_in_which_the_load_generator_fell_behind_is_void() -> None:
    compared = MadeUpServer(lag_ms=1000.0).measure()
    assert bursts_sentence(compared).startswith(
        "No conclusion on bursts: the figures of 6 of 6 levels are those of the load generator. At "
        "1.5 times the certified rate, the load generator fell 1000.0 ms behind"
    )


def test_cores_that_other_processes_took_are_shown() -> None:
    compared = bursts(BATCHED)
    own, other = compared.queues
    lowest, *rest = own.levels
    disturbed = replace(own, levels=(replace(lowest, warnings=("0.5 cores were taken",)), *rest))
    notes = bursts_table(replace(compared, queues=(disturbed, other))).notes
    assert notes[-1] == (
        "At 1.5 times the certified rate with an unbounded queue: 0.5 cores were taken."
    )


def test_requests_without_an_answer_are_shown() -> None:
    compared = MadeUpServer(errors=3).measure()
    sent = compared.queues[0].levels[0].sent
    assert bursts_sentence(compared).endswith(
        f"; 18 of {6 * sent:,} requests of all levels were neither answered nor rejected."
    )
    table = bursts_table(compared)
    assert table.rows[0][5] == "3"
    assert any(
        note == "First error at 1.5 times the certified rate with an unbounded queue: "
        "DEADLINE_EXCEEDED: late"
        for note in table.notes
    )


def test_the_cost_of_sending_tells_the_highest_burst() -> None:
    sending = SendingCost(cores=2, request_cpu_seconds=0.0003, certified_per_second=1000.0)
    assert sending.cores_left(2.0) == pytest.approx(1.4)
    assert sending.share_left(sending.highest(0.8)) == pytest.approx(0.8)
