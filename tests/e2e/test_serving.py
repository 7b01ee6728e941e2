"""One server kept running over many configurations: loads, refusals, restarts, statistics."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing import resource_tracker
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import model_config_pb2

from optimizer.artifacts.accuracy import compare
from optimizer.artifacts.build_process import BuildProcess
from optimizer.artifacts.cache import ArtifactCache
from optimizer.commands.run_context import open_space
from optimizer.configuration import releases
from optimizer.configuration.releases import EngineFacts, Release
from optimizer.configuration.runtimes import Runtime
from optimizer.configuration.runtimes.spec import Precision
from optimizer.configuration.serving_config import (
    Batching,
    InstanceGroup,
    ModelServing,
    ServerOptions,
    ServingConfig,
)
from optimizer.errors import (
    ConfigMismatch,
    LoadTestFailure,
    ModelLoadFailure,
    ServerFailure,
)
from optimizer.files.shipped import shipped
from optimizer.load.capacity import CapacityProtocol
from optimizer.load.certification import CertificationTask
from optimizer.load.client import LoadClient
from optimizer.load.level_plan import LevelPlan, OpenLoop
from optimizer.machine.slots import local_slot
from optimizer.measurement.evaluation import Evaluation
from optimizer.search.evaluator import LiveEvaluator, Protocols
from optimizer.search.level_runner import LevelRunner
from optimizer.search.prepare import PreparePhase
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Event, LevelStarted, Note
from optimizer.triton import repository as repository_module
from optimizer.triton.control import ServerControl
from optimizer.triton.model_config import model_config
from optimizer.triton.session import ModelFiles, ServedConfiguration, ServingSession
from optimizer.triton.shared_memory import region_prefix
from optimizer.triton.statistics import server_split
from optimizer.workload.streams import LatencyLimit, Stream, Tensors, Workload
from optimizer.workload.transport import Transport
from tests.contracts.evaluator import EvaluatorCase, EvaluatorContract, evaluations
from tests.e2e import tiny
from tests.e2e.conftest import Built
from tests.e2e.embedded import embedded_session
from tests.e2e.running import SHARED_MEMORY, Marked, wait_until
from tests.sampling import sampled

pytestmark = pytest.mark.timeout(300)

BREAKING_SESSION = """
def open_session(directory, outputs, precision, threads, gpu):
    def run(inputs):
        raise RuntimeError("the runtime broke down")
    return run
"""


@dataclass
class Serving:
    """A session over the tiny model's artefacts."""

    built: Built
    session: ServingSession
    marked: Marked
    templates: Path

    def config(
        self,
        runtime: Runtime = "onnxruntime",
        precision: Precision = "fp32",
        *,
        options: ServerOptions | None = None,
        **settings: object,
    ) -> ServingConfig:
        model = ModelServing("bert", self.built.spec(runtime, precision))
        model = replace(model, **settings)  # type: ignore[arg-type]
        return ServingConfig((model,), server=options or ServerOptions())

    def files(self, config: ServingConfig) -> dict[str, ModelFiles]:
        return {"bert": self.built.files[config.models[0].artifact]}

    def serve(self, config: ServingConfig) -> ServedConfiguration:
        return self.session.serve(config, self.files(config))

    def server_pid(self) -> int:
        [server] = self.marked.servers()
        return server.pid

    @contextmanager
    def runtime_is(self, session: str) -> Iterator[None]:
        """Have another session.py opened in place of the one for ONNX Runtime."""
        file = self.templates / "session.py"
        file.write_text(session)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(repository_module, "session_file", lambda _: file)
            yield

    def cosine(self, served: ServedConfiguration) -> float:
        answers = served.control.infer("bert", self.built.evaluation, ["logits"], 60.0)
        return compare(self.built.reference, answers["logits"]).min_cosine


@pytest.fixture(scope="module")
def serving(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """One session for the whole file, as for a whole run; a test may find a server or none."""
    folder, marked = tmp_path_factory.mktemp("serving"), Marked()
    templates = folder / "templates"
    shutil.copytree(shipped("model_repository_templates"), templates)
    # Watches shared memory for this process and lives as long: not the session's to end.
    resource_tracker.ensure_running()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in marked.environment.items():
            patch.setenv(name, value)
        with embedded_session(folder, templates) as session:
            yield Serving(built, session, marked, templates)
    marked.wait_gone(1.0)


def asked(serving: Serving, config: ServingConfig) -> model_config_pb2.ModelConfig:
    files = serving.files(config)["bert"]
    template = serving.templates / "python" / "config.pbtxt"
    return model_config(config.models[0], files.payloads, files.outputs, template)


def test_every_configuration_is_served_as_asked_by_one_server(serving: Serving) -> None:
    pids = set()
    for runtime, precision, cosine in (
        ("onnxruntime", "fp32", 0.99999),
        ("openvino", "int8", 0.97),
        ("onnxruntime", "int8", 0.97),
        ("openvino", "fp32", 0.99999),
    ):
        config = serving.config(
            runtime,
            precision,  # type: ignore[arg-type]
            max_batch_size=8,
            batching=Batching((4,), 200),
            groups=(InstanceGroup(count=2, threads=1),),
        )
        served = serving.serve(config)
        assert serving.cosine(served) >= cosine, (runtime, precision)
        pids.add(serving.server_pid())
        serving.session.retire()
    assert len(pids) == 1


def test_a_changed_configuration_is_what_the_server_runs(serving: Serving) -> None:
    serving.serve(serving.config())
    changed = serving.config(
        max_batch_size=8,
        batching=Batching((2, 4), 700),
        groups=(InstanceGroup(count=2, threads=2),),
        warmup_batch_sizes=(1, 8),
        parameters=(("optimization.input_pinned_memory.enable", "false"),),
    )
    running = serving.serve(changed).control.config("bert")
    assert running.optimization.HasField("input_pinned_memory")
    assert not running.optimization.input_pinned_memory.enable
    assert running.max_batch_size == 8
    assert list(running.dynamic_batching.preferred_batch_size) == [2, 4]
    assert running.dynamic_batching.max_queue_delay_microseconds == 700
    assert [group.count for group in running.instance_group] == [2]
    assert running.parameters["intra_op_threads"].string_value == "2"
    # Back to no batching: Triton must not keep, or bring back, a batcher of its own.
    again = serving.serve(serving.config()).control.config("bert")
    assert again.max_batch_size == 1
    assert not again.HasField("dynamic_batching")


def test_what_triton_refuses_fails_with_its_reason_and_costs_a_restart(serving: Serving) -> None:
    good = serving.config()
    serving.serve(good)
    before = serving.server_pid()
    refused = serving.config(max_batch_size=4, batching=Batching((16,), 0))
    with pytest.raises(ModelLoadFailure, match=r"preferred size must be <= max batch") as caught:
        serving.serve(refused)
    assert not caught.value.transient
    assert "Cuda" not in str(caught.value), "what Triton says on every machine without a GPU"
    assert not serving.marked.processes("triton"), "after a failed load the server is stopped"
    assert serving.cosine(serving.serve(good)) > 0.99999
    assert serving.server_pid() != before


def test_a_model_that_cannot_initialise_fails_with_its_own_words(serving: Serving) -> None:
    missing = "raise ImportError('no such runtime here')\n"
    with (
        serving.runtime_is(missing),
        pytest.raises(ModelLoadFailure, match="no such runtime here"),
    ):
        serving.serve(serving.config())


def test_an_engine_of_another_tensorrt_is_refused_before_it_is_loaded(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(releases, "RELEASES", (Release("24.10", "2.51.0", "10.4.0.26"),))
    config = serving.config()
    [(name, files)] = serving.files(config).items()
    fitting, other = (EngineFacts(v, "NVIDIA A10G", (8, 6)) for v in ("10.4.0.26", "10.16.1.11"))
    serving.session.serve(config, {name: replace(files, engine=fitting)})
    message = "built with TensorRT 10.16.1.11, but Triton 2.51.0 has TensorRT 10.4.0.26"
    with pytest.raises(ModelLoadFailure, match=re.escape(message)):
        serving.session.serve(config, {name: replace(files, engine=other)})
    assert serving.cosine(serving.serve(config)) > 0.99999


def test_a_server_that_runs_something_else_is_a_mismatch(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = serving.config(max_batch_size=4, batching=Batching((2,), 100))
    control = serving.serve(config).control
    client, load_model = control._client, control._client.load_model

    def load_what_the_file_says(model: str, config: str, **settings: float) -> None:
        load_model(model, **settings)

    monkeypatch.setattr(client, "load_model", load_what_the_file_says)
    control.load("bert", asked(serving, config), 60.0)
    other = serving.config(
        max_batch_size=4, batching=Batching((2,), 300), groups=(InstanceGroup(count=2),)
    )
    with pytest.raises(ConfigMismatch) as caught:
        control.load("bert", asked(serving, other), 60.0)
    assert "max_queue_delay_microseconds: requested 300, the server runs 100" in str(caught.value)
    assert "instance_group[0].count: requested 2, the server runs 1" in str(caught.value)
    with pytest.raises(ConfigMismatch, match="dynamic_batching: requested none"):
        control.load("bert", asked(serving, serving.config(max_batch_size=4)), 60.0)


def test_server_statistics_count_requests_and_batches(serving: Serving) -> None:
    config = serving.config(max_batch_size=4, batching=Batching((4,), 100_000))
    served = serving.serve(config)
    serving.cosine(served)
    before = served.control.statistics("bert")
    serving.cosine(served)
    split = server_split(before, served.control.statistics("bert"))
    sent = len(serving.built.evaluation)
    assert split.requests == sent
    assert split.compute_infer_ms > 0
    assert split.queue_ms > 0
    assert sum(point.batch_size * point.executions for point in split.batches) == sent
    assert max(point.batch_size for point in split.batches) == 4
    assert all(point.compute_ms > 0 for point in split.batches)


def test_a_server_restarts_for_its_options_and_not_for_a_model(serving: Serving) -> None:
    serving.serve(serving.config())
    first = serving.server_pid()
    serving.serve(serving.config(max_batch_size=2, batching=Batching()))
    assert serving.server_pid() == first
    options = ServerOptions((("python", "stub-timeout-seconds", "55"),))
    serving.serve(serving.config(options=options))
    second = serving.server_pid()
    assert second != first
    serving.serve(serving.config("openvino", options=options))
    assert serving.server_pid() == second


def test_a_server_that_died_between_trials_is_replaced(serving: Serving) -> None:
    served = serving.serve(serving.config())
    [server] = serving.marked.servers()
    server.kill()
    wait_until(served.server.exit_reason, "the end of the server", 10.0)
    serving.session.retire()
    assert serving.cosine(serving.serve(serving.config())) > 0.99999


@pytest.mark.parametrize(
    "transport",
    [
        Transport("grpc"),
        Transport("grpc", shared_memory=True),
        Transport("http"),
        Transport("http", shared_memory=True),
        Transport("http", "json"),
    ],
    ids=["gRPC", "gRPC, shared memory", "HTTP", "HTTP, shared memory", "HTTP, JSON"],
)
def test_requests_arrive_whole_over_every_transport(serving: Serving, transport: Transport) -> None:
    regions = set(SHARED_MEMORY.glob(f"{region_prefix(0)}*"))
    config = serving.config(max_batch_size=4, warmup_batch_sizes=(1, 4))
    payloads = serving.files(config)["bert"].payloads
    stream = Stream("bert", "bert", "poisson", payloads, LatencyLimit(95, 2000), 100, batch_size=3)
    workload = Workload((stream,), transport)
    plan = LevelPlan(OpenLoop(1.0), 0.2, 1.0, timeout_seconds=5.0)
    served = serving.serve(config)
    with LoadClient() as client:
        levels = LevelRunner(
            client, workload, local_slot(), np.random.default_rng(1), lambda _: None
        )
        with levels.on(served, config) as run:
            level = run(plan)
            assert (
                bool(set(SHARED_MEMORY.glob(f"{region_prefix(0)}*")) - regions)
                == transport.shared_memory
            )
    [measured] = level.streams
    assert measured.first_error is None
    assert measured.completed == measured.sent > 50
    [split] = level.server
    assert {point.batch_size for point in split.batches} == {3}, "inferences arrive together"
    assert set(SHARED_MEMORY.glob(f"{region_prefix(0)}*")) == regions


Evaluate = Callable[..., Evaluation]


Live = Callable[[Callable[[Event], None]], LiveEvaluator]


@pytest.fixture(scope="module")
def live(serving: Serving) -> Iterator[Live]:
    """Evaluate configurations of the tiny model as the search does, with short levels."""
    limit = LatencyLimit(95, 2000)
    payloads = serving.files(serving.config())["bert"].payloads
    workload = Workload((Stream("bert", "bert", "poisson", payloads, limit, 800),))
    protocol = CapacityProtocol(
        0.5,
        0.5,
        warmup_seconds=0.2,
        saturation_timeout_seconds=3.0,
        check_timeout_seconds=1.0,
        check_requests=50,
        load_seconds=3,
    )
    with LoadClient() as client:
        yield lambda watch: LiveEvaluator(
            serving.session,
            LevelRunner(client, workload, local_slot(), np.random.default_rng(1), watch),
            workload,
            serving.built.files,
            Protocols(protocol, protocol),
            watch,
        )


@pytest.fixture(scope="module")
def evaluate(live: Live) -> Evaluate:
    def run(
        config: ServingConfig,
        watch: Callable[[Event], None],
        task: CertificationTask | None = None,
    ) -> Evaluation:
        if task is not None:
            return live(watch).confirm(config, local_slot(), task)
        return live(watch).evaluate(config, local_slot(), None)

    return run


@pytest.mark.slow
class TestLiveEvaluator(EvaluatorContract):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, serving: Serving, live: Live) -> EvaluatorCase:
        evaluator, config, slot = live(lambda _: None), serving.config(), local_slot()

        def failing() -> list[Evaluation]:
            with serving.runtime_is(BREAKING_SESSION):
                return evaluations(evaluator, config, slot)

        return EvaluatorCase(evaluator, config, slot, failing)


def test_a_measured_level_carries_the_servers_own_statistics(
    serving: Serving, evaluate: Evaluate
) -> None:
    config = serving.config(max_batch_size=4, batching=Batching((), 500))
    evaluation = evaluate(config, lambda _: None)
    assert evaluation.outcome == "ok", evaluation.reason
    assert evaluation.measurement is not None
    for level in evaluation.measurement.levels:
        [split] = level.server
        # What the server counts includes the warm-up, what the client counts does not.
        assert split.requests >= level.streams[0].completed * 0.9
        assert all(1 <= point.batch_size <= 4 for point in split.batches)
        assert level.machine is not None
        assert level.machine.server_cpu_seconds is not None
        assert level.machine.server_cpu_seconds > 0
        assert (level.machine.server_memory_mib or 0) > 50
        assert level.machine.no_gpu == "the trial runs on no GPU"
        assert split.total_ms > 0
        assert level.network_ms is not None
        assert 0 <= level.network_ms < (level.replied_ms or 0)
    assert evaluation.seconds.serving > 0
    assert evaluation.seconds.measuring > 1.0


def test_a_model_that_fails_in_execution_is_a_failed_load_test(
    serving: Serving, evaluate: Evaluate
) -> None:
    with serving.runtime_is(BREAKING_SESSION):
        evaluation = evaluate(serving.config(), lambda _: None)
    assert evaluation.outcome == "failed"
    assert evaluation.failure is not None
    assert evaluation.failure.kind == LoadTestFailure.__name__
    assert "the runtime broke down" in evaluation.reason
    assert not serving.marked.servers()


def test_a_model_that_fails_in_execution_answers_nothing(serving: Serving) -> None:
    with serving.runtime_is(BREAKING_SESSION):
        served = serving.serve(serving.config())
    with pytest.raises(LoadTestFailure, match="the runtime broke down"):
        serving.cosine(served)


def test_a_server_killed_under_load_is_the_reason_of_the_failure(
    serving: Serving, evaluate: Evaluate
) -> None:
    def kill(event: Event) -> None:
        if isinstance(event, LevelStarted) and event.offered_per_second is not None:
            [server] = serving.marked.servers()
            server.kill()

    evaluation = evaluate(serving.config(), kill)
    assert evaluation.outcome == "failed"
    assert evaluation.failure is not None
    assert evaluation.failure.kind == ServerFailure.__name__
    assert evaluation.failure.transient
    assert "the server ended with signal SIGKILL" in evaluation.reason
    assert not serving.marked.processes("triton"), "neither the server nor its models' processes"
    assert evaluate(serving.config(), lambda _: None).outcome == "ok"


def test_a_server_that_is_gone_is_a_failure_of_the_server(serving: Serving) -> None:
    served = serving.serve(serving.config())
    [server] = serving.marked.servers()
    server.kill()
    with pytest.raises(ServerFailure, match="bert"):
        served.control.load("bert", asked(serving, serving.config()), 10.0)


@pytest.mark.slow
def test_a_server_that_dies_during_the_accuracy_gate_costs_no_artefact(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = ServerControl.infer
    killed: list[int] = []

    def infer(control: ServerControl, *arguments: Any, **options: Any) -> Tensors:
        if not killed:
            [server] = serving.marked.servers()
            server.kill()
            killed.append(server.pid)
        return real(control, *arguments, **options)

    monkeypatch.setattr(ServerControl, "infer", infer)
    space = open_space(tiny.write_space(tmp_path, tiny.space(parameters=tiny.ALL_ARTIFACTS)))
    notes: list[Event] = []
    with BuildProcess(
        ArtifactCache(serving.built.cache), tmp_path / "build.log", threads=2
    ) as builds:
        phase = PreparePhase(
            StudyDirectory(tmp_path / "study"), builds, serving.session, notes.append
        )
        prepared = phase.run(space.models, space.search_space)
    assert killed
    assert [item.dropped for item in prepared.gated] == [None] * 4
    assert any("signal SIGKILL" in note.text for note in notes if isinstance(note, Note))


@pytest.mark.slow
def test_a_models_process_that_is_killed_under_load_fails_that_trial_only(
    serving: Serving, evaluate: Evaluate
) -> None:
    def kill(event: Event) -> None:
        if isinstance(event, LevelStarted) and event.offered_per_second is not None:
            for stub in serving.marked.processes("python_backend_stub"):
                stub.kill()

    evaluation = evaluate(serving.config(), kill)
    assert evaluation.outcome == "failed"
    assert evaluation.failure is not None
    assert evaluation.failure.transient
    assert evaluate(serving.config(), lambda _: None).outcome == "ok"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "struck"),
    sampled(list(product([signal.SIGKILL, signal.SIGSTOP], ["first", "middle", "last"])), every=4),
)
def test_one_of_two_processes_that_dies_or_stops_voids_the_level(
    serving: Serving, evaluate: Evaluate, number: signal.Signals, struck: str
) -> None:
    """The other goes on answering, and the server says that the model is ready."""
    began: list[LevelStarted] = []
    timers: list[Timer] = []

    def strike() -> None:
        # Those of a model that was served before may still be ending.
        stubs = serving.marked.processes("python_backend_stub")
        max(stubs, key=lambda stub: stub.create_time()).send_signal(number)

    def watch(event: Event) -> None:
        if isinstance(event, LevelStarted):
            began.append(event)
            if len(began) == {"first": 1, "middle": 2, "last": 3}[struck]:
                timers.append(Timer(0.35, strike))
                timers[-1].start()

    config = serving.config(groups=(InstanceGroup("KIND_CPU", 2),))
    task = CertificationTask(0.25, 20, lambda load: load / 2)
    evaluation = evaluate(config, watch, task)
    for timer in timers:
        timer.join()
    assert timers, f"only {len(began)} levels were run"
    assert evaluation.outcome == "failed", evaluation.reason
    assert evaluation.failure is not None
    assert (evaluation.failure.kind, evaluation.failure.transient) == ("ServerFailure", True)
    reasons = r"process \d+, in which a model runs, is stopped"
    if number == signal.SIGKILL:
        # Triton 2.51 aborts at times when a process dies in which one of its models runs.
        reasons = (
            r"process \d+, in which a model runs, has died|the server ended with signal SIGABRT;.*"
        )
    assert re.fullmatch(reasons, evaluation.reason)
    assert not serving.marked.processes("triton"), "neither the server nor its models' processes"
    again = evaluate(config, lambda _: None, task)
    assert again.outcome == "ok", again.reason
