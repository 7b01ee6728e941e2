"""Every client of a server of ours is made in one place, and none goes through a proxy."""

from __future__ import annotations

import ast
import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

import optimizer
from optimizer.configuration.hosting import RemoteHost
from optimizer.configuration.serving_config import ServerOptions
from optimizer.errors import ServerFailure
from optimizer.machine.slots import Slot
from optimizer.triton import connections
from optimizer.triton.control import Endpoint, ServerControl
from optimizer.triton.launcher import free_ports
from optimizer.triton.metrics import gauges
from optimizer.triton.remote_launcher import RemoteLauncher
from tests.unit.fake_triton import FakeTriton

PACKAGE = Path(optimizer.__file__).parent
VARIABLES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")
MAKERS = {
    "ClientSession",
    "InferenceServerClient",
    "HTTPConnection",
    "Session",
    "build_opener",
    "create_connection",
    "insecure_channel",
    "secure_channel",
    "urlopen",
}
"""Functions and classes, by their last name, that connect to something over a network."""


@pytest.fixture(autouse=True)
def _closed_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        for spelt in (name, name.upper()):
            monkeypatch.setenv(spelt, f"http://127.0.0.1:{free_ports(1)[0]}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def metrics() -> Iterator[str]:
    class Metrics(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"nv_cpu_utilization 0.5\n")

        def log_message(self, format: str, *_: object) -> None:  # noqa: A002, of the base class
            """Requests are not worth a line each."""

    with HTTPServer(("127.0.0.1", 0), Metrics) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def calls(path: Path) -> set[str]:
    """The last names of everything that a module calls."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {f.attr for f in functions if isinstance(f, ast.Attribute)} | {
        f.id for f in functions if isinstance(f, ast.Name)
    }


def test_clients_are_made_in_one_place_alone() -> None:
    made = {
        path.relative_to(PACKAGE).as_posix(): names
        for path in PACKAGE.rglob("*.py")
        if (names := calls(path) & MAKERS)
    }
    assert made == {
        "triton/connections.py": {
            "ClientSession",
            "InferenceServerClient",
            "build_opener",
            "insecure_channel",
        },
        # It goes to an address outside, where the proxies of the environment lead.
        "study/notification.py": {"urlopen"},
    }


def test_the_control_channel_goes_to_the_server() -> None:
    server = FakeTriton()
    try:
        with ServerControl(Endpoint(server.endpoint, "", "")) as control:
            assert not control.alive()  # it knows no such method
            assert "Method not found" in control.last_error_text
    finally:
        server.die()


def test_the_load_channel_goes_to_the_server() -> None:
    server = FakeTriton()
    try:
        with connections.load_channel(server.endpoint) as channel:
            infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer", None, None)
            assert infer(b"tensors", timeout=10) == b"logits"
    finally:
        server.die()


def test_metrics_are_read_from_the_server(metrics: str) -> None:
    assert gauges(metrics) == (("nv_cpu_utilization", 0.5),)


def test_http_requests_go_to_the_server(metrics: str) -> None:
    async def status() -> int:
        async with connections.http_session() as session, session.get(f"http://{metrics}/") as got:
            return got.status

    assert asyncio.run(status()) == 200


def test_a_client_that_is_a_program_of_its_own_is_given_no_proxy() -> None:
    environment = connections.environment_without_proxies()
    assert "PATH" in environment
    assert not {name.lower() for name in environment} & set(VARIABLES)


def test_a_time_out_tells_the_last_error() -> None:
    closed = f"127.0.0.1:{free_ports(1)[0]}"
    launcher = RemoteLauncher(RemoteHost(closed, closed, closed, Path()), start_seconds=0.2)
    with pytest.raises(ServerFailure, match=r"; the last error: failed to connect.*refused"):
        launcher.start(ServerOptions(), Slot((0,), (0,)))
