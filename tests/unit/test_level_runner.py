"""Levels on what is served, with a client and a server that are made up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from optimizer.configuration.model_graph import ComposedModel, ModelGraph, Step, in_sequence
from optimizer.configuration.serving_config import (
    Batching,
    InstanceGroup,
    QueuePolicy,
    ServingConfig,
)
from optimizer.errors import LoadTestFailure, ServerFailure
from optimizer.files.request_payloads import with_file
from optimizer.load.client import LoadClient
from optimizer.load.level_plan import ClosedLoop, LevelPlan, OpenLoop, Target
from optimizer.machine import utilisation as use
from optimizer.machine.slots import Slot
from optimizer.measurement.level import LoadLevel, ServerSplit
from optimizer.report.server_figures import times_ms
from optimizer.search.level_runner import LevelRunner, concurrency, with_roles
from optimizer.study.events import Event, LevelFinished, LevelStarted
from optimizer.triton.control import ServerControl
from optimizer.triton.launcher import RunningServer
from optimizer.triton.session import ServedConfiguration
from optimizer.workload.request_sizes import LengthDistribution
from optimizer.workload.streams import LatencyLimit, Payloads, Stream, Tensors, TensorSpec, Workload
from tests.unit import fake_nvml
from tests.unit.fake_nvml import UUID, Card
from tests.unit.studies import four_points, level

SPACE = four_points()
CONFIG = SPACE.config(SPACE.baseline)
STREAM = Stream(
    "bert", "bert", "poisson", Payloads((), LengthDistribution((32,), (1.0,))),
    LatencyLimit(95, 100), 500.0,
)  # fmt: skip
PLAN = LevelPlan(OpenLoop(0.5), 0.1, 1.0, 5.0)


@dataclass
class FakeClient:
    plans: list[LevelPlan] = field(default_factory=list)

    strike: Callable[[], None] = lambda: None
    error: str | None = None

    def run_level(self, plan: LevelPlan, target: Target, rng: np.random.Generator) -> LoadLevel:
        self.plans.append(plan)
        self.strike()
        found = level(0.5)
        [stream] = found.streams
        return replace(found, streams=(replace(stream, first_error=self.error),))


@dataclass
class FakeServer:
    """Triton that counts 100 requests of 3 ms a reading, and may have ended or hang."""

    reason: str | None = None
    readings: int = 0
    hangs: bool = False
    reply: str | None = None
    statuses: dict[int, str] = field(
        default_factory=lambda: {1: "running", 2: "sleeping", 3: "sleeping"}
    )

    endpoint: Any = field(
        default_factory=lambda: SimpleNamespace(grpc="127.0.0.1:1", http="", metrics="127.0.0.1:9")
    )

    def exit_reason(self) -> str | None:
        return self.reason

    def cpu_seconds(self) -> dict[int, float]:
        return {1: 1.0}

    def memory_with_models_bytes(self) -> int:
        return 2**30

    def model_processes(self) -> dict[int, str]:
        return self.statuses

    def error_of_one_request(self, model: str, tensors: Tensors, seconds: float) -> str | None:
        assert tensors == {}
        if self.hangs:
            raise ServerFailure(f"{model} executed nothing and did not answer for {seconds:g} s")
        return self.reply

    def version_of(self, model: str) -> str:
        return ""

    def statistics(self, model: str) -> service_pb2.ModelStatistics:
        self.readings += 1
        told = service_pb2.ModelStatistics(name=model)
        told.inference_stats.success.count = 100 * self.readings
        told.inference_stats.success.ns = 700_000_000 * self.readings
        told.inference_stats.queue.ns = 300_000_000 * self.readings
        return told


@dataclass
class Levels:
    client: FakeClient
    server: FakeServer
    events: list[Event]
    slot: Slot

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        work = Workload((STREAM,))
        client = cast(LoadClient, self.client)
        self.levels = LevelRunner(client, work, self.slot, rng, self.events.append)

    def run(self, config: ServingConfig = CONFIG) -> LoadLevel:
        control, ids = cast(ServerControl, self.server), frozenset({2, 3})
        served = ServedConfiguration(cast(RunningServer, self.server), control, ids)
        with self.levels.on(served, config) as run:
            return run(PLAN)


Make = Callable[..., Levels]


@pytest.fixture
def make() -> Make:
    def made(*gpus: str) -> Levels:
        return Levels(FakeClient(), FakeServer(), [], Slot((0,), (0,), gpus))

    return made


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    only = Card()
    fake_nvml.install(monkeypatch, {UUID: only})
    monkeypatch.setattr("optimizer.machine.gpus._SAMPLE_SECONDS", 0.01)

    def run_level(client: FakeClient, plan: LevelPlan, *_: Any) -> LoadLevel:
        time.sleep(0.05)
        client.plans.append(plan)
        return level(0.5)

    monkeypatch.setattr(FakeClient, "run_level", run_level)
    return only


def test_a_level_has_what_server_and_machine_say_of_it(make: Make) -> None:
    levels = make()
    found = levels.run()
    [split] = found.server
    assert (split.model, split.requests, split.queue_ms) == ("bert", 100, 3.0)
    assert found.machine is not None
    assert found.machine.server_memory_mib == 1024
    assert found.machine.no_gpu == "the trial runs on no GPU"
    assert levels.events == [LevelStarted(250.0, PLAN.sending_seconds), LevelFinished(found)]


def test_the_ensemble_and_each_step_is_asked_for_its_statistics(make: Make) -> None:
    [top] = CONFIG.models
    steps = tuple(replace(top, name=name) for name in ("tokenizer", "model"))
    graph = ModelGraph((ComposedModel("bert", "ensemble", in_sequence(("tokenizer", "model"))),))
    measured = make().run(ServingConfig((*steps, top), graph))
    roles = [(split.model, split.ensemble, split.step) for split in measured.server]
    assert roles == [
        ("tokenizer", False, True), ("model", False, True), ("bert", True, False)
    ]  # fmt: skip
    assert measured.requests_received == measured.server[-1].requests
    # The ensemble's whole time, whatever its steps do at the same time.
    assert replace(measured, replied_ms=9.0).network_ms == pytest.approx(2.0)
    # Earlier versions did not record it: the queues of both steps, one after the other.
    earlier = tuple(replace(split, request_ms=None) for split in measured.server)
    inside = sum(split.total_ms for split in measured.server[:2])
    former = replace(measured, server=earlier, replied_ms=inside + 2.0)
    assert former.network_ms == pytest.approx(2.0)
    assert times_ms(measured, {})["queue"] == pytest.approx(inside)


@pytest.mark.parametrize(("calls", "waiting_ms"), [(0.5, 7.0), (2.0, 20.0)])
def test_the_time_of_a_bls_model_is_counted_without_that_of_its_steps(
    make: Make, calls: float, waiting_ms: float
) -> None:
    inner = ComposedModel("inner", "ensemble", in_sequence(("tokenizer", "model")))
    graph = ModelGraph((inner, ComposedModel("bert", "bls", (Step("inner", calls=calls),))))
    split = ServerSplit("", 100, 1.0, 0.5, 5.0, 0.5, ())
    bert = replace(split, model="bert", compute_infer_ms=20.0)
    called = replace(split, model="inner", request_ms=14.0)
    steps = (replace(split, model=name) for name in ("tokenizer", "model"))
    splits = with_roles([*steps, called, bert], graph)
    # More than the compute time cannot be waiting.
    assert [each.waiting_ms for each in splits] == [0.0, 0.0, 0.0, waiting_ms]
    level = replace(make().run(CONFIG), server=splits, replied_ms=50.0)
    assert level.network_ms == 50.0 - 22.0, "its steps are within its own time"
    assert times_ms(level, {})["compute"] == 5.0 + 5.0 + 20.0 - waiting_ms


def test_a_server_that_ended_in_a_level_is_the_reason_of_its_failure(make: Make) -> None:
    levels = make()
    levels.server.reason = "the server ended (signal SIGKILL)"
    with pytest.raises(LoadTestFailure, match="SIGKILL"):
        levels.run()


def test_a_models_process_that_died_in_a_level_is_the_reason_of_its_failure(make: Make) -> None:
    for struck in ({1: "running"}, {1: "running", 2: "sleeping", 3: "zombie"}):
        levels = make()
        levels.client.strike = lambda server=levels.server, to=struck: setattr(  # type: ignore[misc]
            server, "statuses", to
        )
        with pytest.raises(ServerFailure, match=r"process \d, in which a model runs, has died"):
            levels.run()
        assert not any(isinstance(event, LevelFinished) for event in levels.events)


def test_a_models_process_that_is_stopped_before_or_in_a_level_fails_it(make: Make) -> None:
    stopped = {1: "running", 2: "stopped", 3: "sleeping"}
    before, within = make(), make()
    before.server.statuses = stopped
    within.client.strike = lambda: setattr(within.server, "statuses", stopped)
    for levels in (before, within):
        with pytest.raises(ServerFailure, match="process 2, in which a model runs, is stopped"):
            levels.run()
    assert before.client.plans == [], "no level is run on it"


def test_a_process_that_is_gone_explains_a_level_that_failed(make: Make) -> None:
    levels = make()

    def strike() -> None:
        levels.server.statuses = {1: "running"}
        raise LoadTestFailure("no request was due")

    levels.client.strike = strike
    with pytest.raises(ServerFailure, match="has died"):
        levels.run()


def test_a_process_that_triton_started_anew_is_told_by_the_replies(make: Make) -> None:
    levels = make()
    levels.client.error = "INTERNAL: Stub process 'bert_0_0' is not healthy."
    with pytest.raises(ServerFailure, match="a model's process has died: INTERNAL: Stub"):
        levels.run()


def test_a_reply_that_tells_of_a_dead_process_fails_the_level_and_another_error_does_not(
    make: Make,
) -> None:
    dead, broken = make(), make()
    dead.client.strike = lambda: setattr(
        dead.server, "reply", "Failed to process: Stub process 'bert_0_0' is not healthy."
    )
    broken.client.strike = lambda: setattr(broken.server, "reply", "the input is too long")
    with pytest.raises(ServerFailure, match="a model's process has died: Failed to process"):
        dead.run()
    assert broken.run().errors == 0


def test_a_model_that_does_not_answer_between_levels_fails_them(make: Make) -> None:
    levels = make()
    levels.client.strike = lambda: setattr(levels.server, "hangs", True)
    with pytest.raises(ServerFailure, match="bert executed nothing and did not answer"):
        levels.run()


def test_others_on_the_cores_are_a_warning(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = iter([0.0, 1e6])
    monkeypatch.setattr(use, "busy_seconds", lambda _: next(busy))
    [warning] = make().run().warnings
    assert "end them, or expect less capacity and more noise" in warning


def test_a_model_process_that_ends_leaves_the_time_of_the_others() -> None:
    readings = iter([{1: 5.0, 2: 3.0}, {1: 5.5, 3: 0.25}])
    watch = use.MachineWatch(Slot((0,), ()), lambda: next(readings))
    assert watch.stop(0.0, None, ()).server_cpu_seconds == 0.75


def test_a_soak_warms_a_gpu_before_the_first_level_alone(make: Make, card: Card) -> None:
    levels = make(UUID)
    levels.run()
    soak, first = levels.client.plans
    assert soak.load == ClosedLoop(concurrency(CONFIG))
    assert soak.seconds == 60.0
    assert first == PLAN
    levels.run()
    assert levels.client.plans[2:] == [PLAN]


def test_a_level_in_which_a_gpu_was_too_hot_is_void(make: Make, card: Card) -> None:
    levels = make(UUID)
    card.reasons = 0x40
    with pytest.raises(LoadTestFailure, match=r"NVIDIA T4 \(GPU-1\) .*HwThermalSlowdown"):
        levels.run()


def test_gpu_figures_are_part_of_the_level(make: Make, card: Card) -> None:
    found = make(UUID).run()
    assert found.machine is not None
    [gpu] = found.machine.gpus
    assert gpu == replace(gpu, uuid=UUID, utilization_percent=80.0, power_watts=65.0)


@pytest.mark.parametrize(("size", "sent"), [(1, [[1], [2], [3]]), (2, [[1, 2], [3, 1]])])
def test_every_request_of_a_file_is_sent_in_its_order(
    tmp_path: Path, size: int, sent: list[list[int]]
) -> None:
    (tmp_path / "d.jsonl").write_text('{"X": [1]}\n{"X": [2]}\n{"X": [3]}\n')
    spec = TensorSpec("X", "INT64", (1,), from_file=True)
    payloads = with_file(Payloads((spec,)), tmp_path / "d.jsonl")
    stream = replace(STREAM, payloads=payloads, batch_size=size)
    levels = LevelRunner(
        cast(LoadClient, FakeClient()),
        Workload((stream,)),
        Slot((0,), ()),
        np.random.default_rng(0),
        print,
    )
    requests = levels.requests(stream, CONFIG)
    assert [each["X"].ravel().tolist() for each in requests] == sent
    more = (*payloads.tensors, TensorSpec("Y", "FP32", (1,), maximum=1.0))
    drawn = replace(stream, name="drawn", payloads=replace(payloads, tensors=more))
    assert len(levels.requests(drawn, CONFIG)) == 128, "other values are drawn beside the file's"


@pytest.mark.parametrize(("max_queue_size", "outstanding"), [(0, 32), (64, 32), (8, 24), (1, 3)])
def test_no_more_requests_are_outstanding_than_a_bounded_queue_takes(
    max_queue_size: int, outstanding: int
) -> None:
    policy = QueuePolicy(max_queue_size=max_queue_size)
    model = replace(
        CONFIG.models[0],
        max_batch_size=8,
        batching=Batching(queue_policy=policy),
        groups=(InstanceGroup(count=2),),
    )
    assert concurrency(ServingConfig((model,))) == outstanding
