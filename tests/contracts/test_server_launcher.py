"""What every launcher promises, on real servers with a model that answers what it is sent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

from optimizer.errors import ModelLoadFailure, ServerFailure
from optimizer.machine.slots import local_slot
from optimizer.serving_config import ServerOptions
from optimizer.triton.control import ServerControl
from optimizer.triton.embedded import find_embedded_runtime
from optimizer.triton.embedded_launcher import EmbeddedLauncher
from optimizer.triton.launcher import RunningServer, ServerLauncher, free_ports
from optimizer.triton.repository import read_config
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
INSTANCES = 2

PickPorts = Callable[[int], Sequence[int]]
MakeLauncher = Callable[[Path, PickPorts], ServerLauncher]


def embedded(folder: Path, pick_ports: PickPorts) -> ServerLauncher:
    runtime = find_embedded_runtime()
    backends = runtime.lay_out(folder / "backends")
    log = folder / "logs" / "server.log"
    return EmbeddedLauncher(runtime, backends, folder / "repository", log, pick_ports)


LAUNCHERS: dict[str, MakeLauncher] = {"embedded": embedded}


@dataclass(frozen=True)
class Launched:
    """A launcher, and sight of everything that it has started."""

    kind: str
    folder: Path
    marked: Marked

    def launcher(self, pick_ports: PickPorts = free_ports) -> ServerLauncher:
        return LAUNCHERS[self.kind](self.folder, pick_ports)

    def start(self, options: ServerOptions | None = None) -> RunningServer:
        return self.launcher().start(options or ServerOptions(), local_slot())

    @property
    def log(self) -> str:
        return (self.folder / "logs" / "server.log").read_text()

    def nothing_left(self) -> bool:
        return not self.marked.processes() and not shared_memory_of(os.getpid())


@pytest.fixture(params=list(LAUNCHERS))
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
    yield Launched(request.param, folder, marked)
    marked.end()


def echo(control: ServerControl, repository: Path) -> None:
    """Load the model and see that it answers."""
    control.load("echo", read_config(repository / "echo" / "config.pbtxt"), 60.0)
    sent = np.array([[1.5, -2.0]], np.float32)
    np.testing.assert_array_equal(control.infer("echo", [{"x": sent}], "y", 20.0), sent)


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def test_a_started_server_is_ready_and_listens_on_this_machine_only(launched: Launched) -> None:
    server = launched.start()
    with ServerControl(server.endpoint) as control:
        assert control.ready()
    listening = {
        connection.laddr
        for process in launched.marked.processes()
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    endpoint = server.endpoint
    expected = {port_of(each) for each in (endpoint.grpc, endpoint.http, endpoint.metrics)}
    # gRPC shows an IPv4 address in its IPv6 form.
    assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
    assert {address.port for address in listening} == expected
    assert server.ended() is None
    server.stop()


def test_options_reach_the_server(launched: Launched) -> None:
    # What this option does shows only once a Python model is loaded.
    server = launched.start(ServerOptions((("python", "shm-default-byte-size", "12 apples"),)))
    with ServerControl(server.endpoint) as control, pytest.raises(ModelLoadFailure):
        echo(control, launched.folder / "repository")
    server.stop()


def test_it_starts_again_after_a_stop_and_keeps_every_log(launched: Launched) -> None:
    launcher = launched.launcher()
    for number in (1, 2):
        server = launcher.start(ServerOptions(), local_slot())
        with ServerControl(server.endpoint) as control:
            assert control.ready()
        server.stop()
        own = server.log_since_start()
        assert own.count("Started GRPCInferenceService") == 1
        assert launched.log.count("Started GRPCInferenceService") == number
        assert launched.log.endswith(own)
    assert launched.nothing_left()


def test_a_loaded_model_is_counted_and_stop_leaves_nothing_of_it(launched: Launched) -> None:
    server = launched.start()
    before, memory_before = server.cpu_seconds(), server.memory_with_models_bytes()
    with ServerControl(server.endpoint) as control:
        echo(control, launched.folder / "repository")
    assert len(launched.marked.processes("python_backend_stub")) == INSTANCES
    assert shared_memory_of(os.getpid())
    after, memory = server.cpu_seconds(), server.memory_bytes()
    assert memory is None or memory > 2**20
    memory_after = server.memory_with_models_bytes()
    if memory_before is not None and memory_after is not None:
        assert memory_after > memory_before + INSTANCES * 2**20, "the model's own processes count"
    if before is not None and after is not None:
        assert after > before, "the model's own processes count"
    server.stop()
    assert launched.nothing_left()
    server.stop()  # once more does no harm


def test_a_killed_server_says_so_and_stop_ends_what_it_has_left(launched: Launched) -> None:
    server = launched.start()
    with ServerControl(server.endpoint) as control:
        echo(control, launched.folder / "repository")
    [process] = launched.marked.servers()
    process.kill()
    wait_until(server.ended, "the end of the server", 10.0)
    assert "signal SIGKILL" in str(server.ended())
    server.stop()
    assert launched.nothing_left()


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


@pytest.mark.parametrize("loaded", [False, True], ids=["no model", "a model loaded"])
def test_a_server_does_not_outlive_a_killed_parent(launched: Launched, loaded: bool) -> None:
    folder = launched.folder
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, launched.kind, str(folder), str(int(loaded))],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    try:
        wait_until((folder / "up").exists, "a server", 60.0)
        assert len(launched.marked.processes("stub")) == INSTANCES * loaded
        assert shared_memory_of(parent.pid) or not loaded
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    launched.marked.wait_gone(12.0)
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
    with suite.ServerControl(server.endpoint) as control:
        suite.echo(control, folder / "repository")
(folder / "up").touch()
time.sleep(60)
"""


def test_a_server_that_cannot_start_is_a_failure_with_its_own_words(launched: Launched) -> None:
    with pytest.raises(ServerFailure, match=r"exit code 1.*No backend specified"):
        launched.start(ServerOptions((("", "setting", "value"),)))
    assert launched.nothing_left()
