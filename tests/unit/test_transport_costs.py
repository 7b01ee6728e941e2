"""Transports on one configuration: what is measured, what is left out, and the conclusion."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from optimizer.configuration.serving_config import Batching, ServerOptions, ServingConfig
from optimizer.errors import LoadTestFailure, ServerFailure
from optimizer.load.capacity import CapacityProtocol, RunLevel
from optimizer.load.level_plan import LevelPlan, OpenLoop
from optimizer.measurement.level import LoadLevel, ServerSplit
from optimizer.measurement.resource_use import MachineUse
from optimizer.measurement.transport_costs import (
    RefusedTransport,
    SentAs,
    TransportComparison,
    TransportCost,
)
from optimizer.report.transport_tables import transports_sentence, transports_table
from optimizer.search.evaluator import LiveEvaluator
from optimizer.search.transport_costs import compare_transports
from optimizer.study.directory import StudyDirectory
from optimizer.triton.server_options import shared_memory_flags
from optimizer.workload.streams import Workload
from optimizer.workload.transport import Transport
from tests.unit.studies import level, small_space
from tests.unit.tables import WORKLOAD

GRPC = Transport()
JSON = Transport("http", "json")
MEMORY = Transport(shared_memory=True)
_PLAIN = small_space().config(small_space().baseline)
CONFIG = ServingConfig((replace(_PLAIN.models[0], max_batch_size=16, batching=Batching()),))
RATES = {"grpc": 1000.0, "http": 500.0}
"""Inferences/s at saturation, by protocol; those of larger requests are twice as many."""


@dataclass
class Levels:
    """Runs levels on a made-up server; JSON fails where it is told to."""

    workload: Workload
    evaluator: Server
    json_fails: bool = False

    def for_workload(self, workload: Workload) -> Levels:
        return replace(self, workload=workload)

    @contextmanager
    def on(self, served: Any, config: ServingConfig, *, cold: bool = False) -> Iterator[RunLevel]:
        self.evaluator.cold.append(cold)
        if self.workload.transport.shared_memory and self.evaluator.refusal is not None:
            raise ServerFailure(self.evaluator.refusal)
        yield self._run

    def _run(self, plan: LevelPlan) -> LoadLevel:
        [stream], transport = self.workload.streams, self.workload.transport
        self.evaluator.ran.append((transport, stream.batch_size, plan))
        most = RATES[transport.protocol] * (2 if stream.batch_size > 1 else 1) / stream.batch_size
        load = plan.load.load_factor if isinstance(plan.load, OpenLoop) else None
        requests = most if load is None else load * stream.demand_per_second
        result = level(requests, demand=1.0, kind="saturation" if load is None else "open_loop")
        if self.json_fails and transport.encoding == "json":
            [own] = result.streams
            failed = replace(own, errors=own.sent, completed=0, first_error="INVALID_ARGUMENT: no")
            return replace(result, streams=(failed,))
        split = ServerSplit("bert", 1000, 0.0, 0.0, 1.0, 0.0, ())
        use = MachineUse(1.0, 2, None if self.evaluator.pid is None else 2.0, None, None)
        return replace(result, server=(split,), machine=use)


@dataclass
class Server:
    """What stands for the session, the server and the load generator."""

    workload: Workload = WORKLOAD
    pid: int | None = 7
    refusal: str | None = None
    json_fails: bool = False

    def __post_init__(self) -> None:
        self.ran: list[tuple[Transport, int, LevelPlan]] = []
        self.options: list[ServerOptions] = []
        self.cold: list[bool] = []
        self.failures: list[Exception] = []

    @property
    def evaluator(self) -> LiveEvaluator:
        parts = SimpleNamespace(
            session=self,
            levels=Levels(self.workload, self, self.json_fails),
            workload=self.workload,
            files={model.artifact: None for model in CONFIG.models},
            protocols=SimpleNamespace(search=CapacityProtocol()),
        )
        return cast("LiveEvaluator", parts)

    def retire(self, *, wait: bool = False) -> None:
        """Keep nothing."""

    def serve(self, config: ServingConfig, files: object) -> Any:
        self.options.append(config.server)
        return SimpleNamespace(server=SimpleNamespace(pid=self.pid))

    def failure(self, error: Exception) -> Exception:
        self.failures.append(error)
        return error

    def compare(self, seconds: float = 60.0) -> TransportComparison:
        return compare_transports(self.evaluator, CONFIG, 1.0, seconds)


def test_each_transport_is_measured_in_turn_and_back() -> None:
    server = Server()
    compared = server.compare()
    assert server.options == [ServerOptions(client_shared_memory=True)]
    sent = [each.sent_as for each in compared.costs]
    assert sent == [
        SentAs(GRPC), SentAs(JSON), SentAs(Transport("http")), SentAs(MEMORY), SentAs(GRPC, 8),
    ]  # fmt: skip
    assert server.cold == [False, True, True, True, True], "the first warms up for all"
    order = [(transport, size) for transport, size, _ in server.ran]
    one_round = [(each.transport, each.batch_size) for each in sent]
    assert order == 3 * (one_round + one_round[::-1])
    assert sum(plan.sending_seconds for _, _, plan in server.ran) <= 60.0


def test_all_are_offered_the_same_inferences_below_what_the_slowest_serves() -> None:
    server = Server()
    compared = server.compare(600.0)
    assert (compared.light_per_second, compared.moderate_per_second) == (50.0, 250.0)
    first, *_, large = compared.costs
    assert first.throughputs_per_second == (1000.0, 1000.0)
    assert large.throughput_per_second == 2000.0
    open_loop = [plan.load for _, _, plan in server.ran if isinstance(plan.load, OpenLoop)]
    # Demand is scaled with the size of requests, so that a load factor is of inferences.
    assert {load.load_factor for load in open_loop} == {50.0 / 500.0, 250.0 / 500.0}


def test_cpu_time_is_that_of_an_inference() -> None:
    first, *_, large = Server().compare().costs
    # Two levels of 1,000 requests took 2 x 0.1 s of the client and 2 x 2 s of the server.
    assert first.client_cpu_ms == pytest.approx(0.1)
    assert first.server_cpu_ms == pytest.approx(2.0)
    assert large.client_cpu_ms == pytest.approx(0.1 / 8)


@pytest.mark.parametrize(("pid", "who"), [(7, False), (None, True)])
def test_a_server_that_refuses_shared_memory_is_told_with_what_its_owner_must_do(
    pid: int | None, who: bool
) -> None:
    compared = Server(pid=pid, refusal="cannot register the shared memory").compare()
    [refused] = compared.refused
    assert refused.sent_as == SentAs(MEMORY)
    assert refused.reason.startswith("cannot register the shared memory")
    assert ("with --allow-client-shm=true from Triton 2.68 on" in refused.reason) == who
    assert (compared.costs[0].server_cpu_ms is None) == who
    assert (
        f"gRPC with shared memory: not measured: {refused.reason}."
        in transports_table(compared).notes
    )


def test_a_transport_whose_requests_all_fail_is_left_out_unless_it_is_the_studys_own() -> None:
    compared = Server(json_fails=True).compare()
    assert [each.sent_as for each in compared.refused] == [SentAs(JSON)]
    assert "INVALID_ARGUMENT: no" in compared.refused[0].reason
    assert SentAs(JSON) not in [each.sent_as for each in compared.costs]
    own = Server(workload=replace(WORKLOAD, transport=JSON), json_fails=True)
    with pytest.raises(LoadTestFailure, match="INVALID_ARGUMENT"):
        own.compare()
    assert len(own.failures) == 1


def cost(sent_as: SentAs, *throughputs: float, **figures: float) -> TransportCost:
    usual: dict[str, Any] = {
        "light_p50_ms": 2.0, "light_p95_ms": 4.0, "moderate_p50_ms": 3.0, "moderate_p95_ms": 9.0,
        "client_cpu_ms": 0.2, "server_cpu_ms": 0.7, "lag_ms": 0.1,
    }  # fmt: skip
    return TransportCost(sent_as, throughputs, **{**usual, **figures})


def comparison(*costs: TransportCost) -> TransportComparison:
    refused = (RefusedTransport(SentAs(MEMORY), "no memory"),)
    return TransportComparison(CONFIG, costs, refused, 50.0, 250.0, 2.0, 2, 5.0)


def test_the_conclusion_names_only_clear_differences() -> None:
    fast, noisy = cost(SentAs(GRPC), 1000.0, 1100.0), cost(SentAs(Transport("http")), 900.0, 1050.0)
    slow, large = cost(SentAs(JSON), 500.0, 550.0), cost(SentAs(GRPC, 8), 4000.0, 4400.0)
    assert transports_sentence(comparison(fast, slow, noisy, large)) == (
        "gRPC and HTTP with binary tensors serve the most, up to 1,050 inferences/s; HTTP with "
        "JSON serves 50% of that; requests of 8 inferences serve 4.00 times the study's own."
    )
    assert transports_sentence(comparison(fast, noisy)) == (
        "No transport serves clearly more than another."
    )


def test_the_table_has_the_studys_own_first_and_tells_when_the_client_was_late() -> None:
    own, late = cost(SentAs(GRPC), 1000.0, 1000.0), cost(SentAs(JSON), 500.0, 500.0, lag_ms=20.0)
    table = transports_table(comparison(own, late))
    assert table.rows[0] == (
        "gRPC", "1", "1,000", "100%", "2.0 / 4.0", "3.0 / 9.0", "0.200", "0.700",
    )  # fmt: skip
    assert table.rows[1][:4] == ("HTTP with JSON", "1", "500", "50%")
    assert "p50 / p95 at 50/s, ms" in table.columns
    assert table.notes[1].startswith(
        "The load generator fell 20.0 ms behind with HTTP with JSON, 1"
    )
    assert table.notes[-1] == "gRPC with shared memory: not measured: no memory."


def test_a_comparison_is_kept_for_its_configuration(tmp_path: Path) -> None:
    directory, compared = StudyDirectory(tmp_path), comparison(cost(SentAs(GRPC), 1000.0, 990.0))
    directory.transports.write(compared)
    assert directory.transports.read(CONFIG) == compared
    assert directory.transports.read(_PLAIN) is None


@pytest.mark.parametrize(
    ("version", "flags"),
    [
        ("2.51.0", []),
        ("2.67.1", []),
        ("2.68.0", ["--allow-client-shm=true"]),
        ("3.0", ["--allow-client-shm=true"]),
        (None, []),
        ("mine", []),
    ],
)
def test_shared_memory_needs_a_flag_from_2_68_on(version: str | None, flags: list[str]) -> None:
    assert shared_memory_flags(version) == flags
