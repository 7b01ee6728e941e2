"""What every launcher promises, on real servers with a model that answers what it is sent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

from optimizer.configuration.hosting import ContainerHost, RemoteHost
from optimizer.configuration.serving_config import ServerOptions
from optimizer.errors import ModelLoadFailure, ServerFailure
from optimizer.machine.docker_engine import ContainerEngine
from optimizer.machine.slots import Slot, local_slot
from optimizer.triton.control import Endpoint, ServerControl
from optimizer.triton.docker_launcher import DockerLauncher
from optimizer.triton.embedded import find_embedded_runtime
from optimizer.triton.embedded_launcher import EmbeddedLauncher
from optimizer.triton.launcher import PickPorts, RunningServer, ServerLauncher, free_ports
from optimizer.triton.remote_launcher import RemoteLauncher
from optimizer.triton.repository import read_config
from optimizer.triton.server_options import EXECUTION
from tests.docker.engine import containers_in, prepared_image, processes_in, remove_containers_in
from tests.e2e.running import ROOT, Marked, shared_memory_of, wait_until

CONFIG = """
name: "echo"
backend: "python"
max_batch_size: 4
input { name: "x", data_type: TYPE_FP32, dims: [2] }
output { name: "y", data_type: TYPE_FP32, dims: [2] }
instance_group { kind: KIND_CPU, count: 2 }
"""
MODEL = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        x = [pb_utils.get_input_tensor_by_name(r, "x").as_numpy() for r in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", each)]) for each in x]
"""
SLOW_MODEL = """
import time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        began = time.monotonic() % 1000
        time.sleep(0.4)
        y = np.array([[began, time.monotonic() % 1000]], np.float32)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]) for _ in requests]
"""
INSTANCES = 2
LOG = Path("logs", "server.log")

MakeLauncher = Callable[[Path, PickPorts], ServerLauncher]


def embedded(folder: Path, pick_ports: PickPorts) -> ServerLauncher:
    runtime = find_embedded_runtime()
    backends = runtime.lay_out(folder / "backends")
    return EmbeddedLauncher(runtime, backends, folder / "repository", folder / LOG, pick_ports)


def container(folder: Path, pick_ports: PickPorts) -> ServerLauncher:
    host = ContainerHost(prepared_image(), 256 * 2**20)
    engine = ContainerEngine.connect()
    return DockerLauncher(engine, host, folder / "repository", [], folder / LOG, pick_ports)


def remote(folder: Path, _: PickPorts) -> ServerLauncher:
    """For the server whose addresses somebody has left in the folder."""
    grpc, http, metrics = (folder / "addresses").read_text().split()
    return RemoteLauncher(RemoteHost(grpc, http, metrics, folder / "repository"), 3.0)


LAUNCHERS: dict[str, MakeLauncher] = {"embedded": embedded, "docker": container, "remote": remote}
STARTING = ["embedded", pytest.param("docker", marks=pytest.mark.docker)]
ALL = [*STARTING, "remote"]


@dataclass(frozen=True)
class Launched:
    """A launcher, and sight of everything that it has started."""

    kind: str
    folder: Path
    marked: Marked

    @property
    def starts(self) -> bool:
        """Whether the server is its own, and not one that it finds."""
        return self.kind != "remote"

    def launcher(self, pick_ports: PickPorts = free_ports) -> ServerLauncher:
        return LAUNCHERS[self.kind](self.folder, pick_ports)

    def start(self, options: ServerOptions | None = None) -> RunningServer:
        return self.launcher().start(options or ServerOptions(), local_slot())

    @property
    def log(self) -> str:
        return (self.folder / LOG).read_text()

    def processes(self, name: str = "") -> list[psutil.Process]:
        """Of servers and their models, those whose command contains `name`."""
        if self.kind != "docker":
            return self.marked.processes(name)
        return [p for p in processes_in(self.folder) if name in " ".join(p.cmdline())]

    def server(self) -> psutil.Process:
        [found] = [p for p in self.processes("--model-repo") if p.name() == "tritonserver"]
        return found

    def nothing_left(self) -> bool:
        if self.kind == "docker":
            return not containers_in(self.folder)
        if not self.starts:
            return self.server().is_running() and not self.processes("python_backend_stub")
        return not self.processes() and not shared_memory_of(os.getpid())


@pytest.fixture(params=ALL)
def launched(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Launched]:
    folder = tmp_path / "it's $HOME; (a folder)"  # people do name them so
    version = folder / "repository" / "echo" / "1"
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text(CONFIG)
    (version / "model.py").write_text(MODEL)
    marked = Marked()
    for name, value in marked.environment.items():
        monkeypatch.setenv(name, value)
    with ExitStack() as stack:
        stack.callback(marked.end)
        if request.param == "docker":
            prepared_image()
            stack.callback(remove_containers_in, folder)
        if request.param == "remote":
            somebodys = embedded(folder, free_ports).start(ServerOptions(), local_slot())
            stack.callback(somebodys.stop)
            (folder / "addresses").write_text("\n".join(astuple(somebodys.endpoint)))
        yield Launched(request.param, folder, marked)


only_those_that_start = pytest.mark.parametrize("launched", STARTING, indirect=True)
only_remote = pytest.mark.parametrize("launched", ["remote"], indirect=True)


def echo(control: ServerControl, repository: Path) -> None:
    """Load the model and see that it answers."""
    control.load("echo", read_config(repository / "echo" / "config.pbtxt"), 60.0)
    sent = np.array([[1.5, -2.0]], np.float32)
    answers = control.infer("echo", [{"x": sent}], ["y"], 20.0)
    np.testing.assert_array_equal(answers["y"], sent)


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


@only_those_that_start
def test_a_started_server_is_ready_and_listens_on_this_machine_only(launched: Launched) -> None:
    server = launched.start()
    assert server.control.ready()
    listening = {
        connection.laddr
        for process in launched.processes()
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    endpoint = server.endpoint
    expected = {port_of(each) for each in (endpoint.grpc, endpoint.http, endpoint.metrics)}
    # gRPC shows an IPv4 address in its IPv6 form.
    assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
    assert {address.port for address in listening} == expected
    assert server.exit_reason() is None
    server.stop()


@only_those_that_start
def test_a_server_keeps_to_the_cores_of_its_slot(launched: Launched) -> None:
    last = local_slot().cores[-1]
    server = launched.launcher().start(ServerOptions(), Slot((last,), (last,)))
    assert launched.server().cpu_affinity() == [last]
    server.stop()


def test_the_embedded_server_sees_no_gpu_but_those_of_its_slot(tmp_path: Path) -> None:
    for uuids, visible in (((), ""), (("GPU-2", "GPU-1"), "GPU-2,GPU-1")):
        slot = Slot(local_slot().cores, (), uuids)
        server = embedded(tmp_path, free_ports).start(ServerOptions(), slot)
        try:
            assert psutil.Process(server.pid).environ()["CUDA_VISIBLE_DEVICES"] == visible
        finally:
            server.stop()


@only_those_that_start
def test_options_reach_the_server(launched: Launched) -> None:
    # What this option does shows only once a Python model is loaded.
    server = launched.start(ServerOptions((("python", "shm-default-byte-size", "12 apples"),)))
    with pytest.raises(ModelLoadFailure):
        echo(server.control, launched.folder / "repository")
    server.stop()


@only_those_that_start
@pytest.mark.parametrize(("limit", "at_once"), [(None, 2), (1, 1)])
def test_executions_at_once_are_limited_where_asked(
    launched: Launched, limit: int | None, at_once: int
) -> None:
    repository = launched.folder / "repository"
    (repository / "echo" / "1" / "model.py").write_text(SLOW_MODEL)
    server = launched.start(ServerOptions(executions_per_device=limit))
    asked = read_config(repository / "echo" / "config.pbtxt")
    asked.instance_group[0].rate_limiter.resources.add(name=EXECUTION, count=1)
    server.control.load("echo", asked, 60.0)
    x = np.zeros((1, 2), np.float32)
    answers = server.control.infer("echo", [{"x": x}] * INSTANCES, ["y"], 20.0)["y"]
    [first, second] = sorted((start, end) for start, end in answers.astype(np.float64))
    assert (2 if second[0] < first[1] else 1) == at_once
    server.stop()


@only_remote
def test_a_server_that_runs_already_can_be_given_no_options(launched: Launched) -> None:
    with pytest.raises(ServerFailure, match="leave server options out") as caught:
        launched.start(ServerOptions(executions_per_device=2))
    assert not caught.value.transient


@only_remote
def test_a_server_that_does_not_answer_is_told_with_how_to_start_one(launched: Launched) -> None:
    launched.server().kill()
    with pytest.raises(ServerFailure, match=r"start it with --model-control-mode=explicit"):
        launched.start()


@only_remote
def test_models_of_somebody_else_stay_loaded(launched: Launched) -> None:
    with ServerControl(remote_endpoint(launched)) as somebody:
        echo(somebody, launched.folder / "repository")
        launched.start().stop()
        assert somebody.models_present() == ("echo",)


def remote_endpoint(launched: Launched) -> Endpoint:
    return Endpoint(*(launched.folder / "addresses").read_text().split())


def test_it_starts_again_after_a_stop_and_keeps_every_log(launched: Launched) -> None:
    launcher = launched.launcher()
    for number in (1, 2):
        server = launcher.start(ServerOptions(), local_slot())
        assert server.control.ready()
        server.stop()
        own = server.log_since_start()
        if not launched.starts:
            assert own == ""
            continue
        assert own.count("Started GRPCInferenceService") == 1
        assert launched.log.count("Started GRPCInferenceService") == number
        assert launched.log.endswith(own)
    assert launched.nothing_left()


def test_a_loaded_model_is_counted_and_stop_leaves_nothing_of_it(launched: Launched) -> None:
    server = launched.start()
    before, memory_before = server.cpu_seconds(), server.memory_with_models_bytes()
    echo(server.control, launched.folder / "repository")
    assert len(launched.processes("python_backend_stub")) == INSTANCES
    after, memory = server.cpu_seconds(), server.memory_bytes()
    memory_after = server.memory_with_models_bytes()
    if launched.starts:
        assert memory is not None
        assert memory > 2**20
        assert memory_before is not None
        assert memory_after is not None
        assert memory_after > memory_before + INSTANCES * 2**20, "the model's own processes count"
        assert before is not None
        assert after is not None
        assert len(after) == len(before) + INSTANCES, "the model's own processes count"
        assert sum(after.values()) > sum(before.values())
    else:
        assert (before, after, memory, memory_before, memory_after) == (None,) * 5
    server.stop()
    assert launched.nothing_left()
    server.stop()  # once more does no harm


def test_what_is_sent_runs_as_what_the_file_says_would(launched: Launched) -> None:
    server = launched.start()
    echo(server.control, launched.folder / "repository")
    sent = server.control.config("echo")
    server.control.unload("echo", 10.0)
    server.control._client.load_model("echo")
    assert server.control.config("echo") == sent
    server.control.unload("echo")
    server.stop()


def test_a_killed_server_says_so_and_stop_ends_what_it_has_left(launched: Launched) -> None:
    server = launched.start()
    echo(server.control, launched.folder / "repository")
    launched.server().kill()
    wait_until(server.exit_reason, "the end of the server", 10.0)
    said = "signal SIGKILL" if launched.starts else "does not answer"
    assert said in str(server.exit_reason())
    server.stop()
    # What is left of somebody else's server is theirs.
    assert not launched.starts or launched.nothing_left()


@only_those_that_start
def test_a_port_that_is_taken_costs_a_second_try_only(launched: Launched) -> None:
    for taken_at in range(3):
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", 0))
            holder.listen()
            tries: list[Sequence[int]] = []

            def pick(
                count: int,
                holder: socket.socket = holder,
                tries: list[Sequence[int]] = tries,
                at: int = taken_at,
            ) -> Sequence[int]:
                ports = free_ports(count)
                if not tries:
                    ports[at] = holder.getsockname()[1]
                tries.append(ports)
                return ports

            server = launched.launcher(pick).start(ServerOptions(), local_slot())
            endpoint = server.endpoint
            addresses = (endpoint.grpc, endpoint.http, endpoint.metrics)
            assert len(tries) == 2
            assert [port_of(each) for each in addresses] == tries[1]
            server.stop()
    assert launched.nothing_left()


@only_those_that_start
def test_ports_that_are_always_taken_are_a_failure_that_says_so(launched: Launched) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        launcher = launched.launcher(lambda count: [port, *free_ports(count - 1)])
        with pytest.raises(ServerFailure, match=rf"127\.0\.0\.1:{port}.*in use") as caught:
            launcher.start(ServerOptions(), local_slot())
    assert caught.value.transient
    assert launched.nothing_left()


@only_those_that_start
@pytest.mark.parametrize("loaded", [False, True], ids=["no model", "a model loaded"])
def test_a_server_does_not_outlive_a_killed_parent(launched: Launched, loaded: bool) -> None:
    folder = launched.folder
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, launched.kind, str(folder), str(int(loaded))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        start_new_session=True,
    )
    try:
        wait_until((folder / "up").exists, "a server", 60.0)
        assert len(launched.processes("stub")) == INSTANCES * loaded
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    if launched.kind == "docker":
        # No engine takes note of that: its container ends when the next optimizer starts a server.
        assert launched.server().is_running()
        launched.start().stop()
    wait_until(launched.nothing_left, "the end of the server", 12.0)
    assert not shared_memory_of(parent.pid)


_PARENT = """
import sys, time
from pathlib import Path
from tests.contracts import test_server_launcher as suite

kind, folder, loaded = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
server = suite.LAUNCHERS[kind](folder, suite.free_ports).start(
    suite.ServerOptions(), suite.local_slot()
)
if loaded:
    suite.echo(server.control, folder / "repository")
(folder / "up").touch()
time.sleep(60)
"""


@only_those_that_start
def test_a_server_that_cannot_start_is_a_failure_with_its_own_words(launched: Launched) -> None:
    with pytest.raises(ServerFailure, match=r"exit code 1.*No backend specified"):
        launched.start(ServerOptions((("", "setting", "value"),)))
    assert launched.nothing_left()
