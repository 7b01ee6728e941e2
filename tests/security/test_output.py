"""What leaves the program: terminals, logs, tables, commands, requests, child processes."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
from dataclasses import astuple
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from docker import DockerClient

from optimizer.artifacts.engines import build_locations
from optimizer.cli.output import OutputConsole
from optimizer.cli.terminal import print_line, print_table
from optimizer.commands.serve import _input_text
from optimizer.configuration.serving_config import ServerOptions
from optimizer.export.deployment import Input
from optimizer.files.credentials import without_secrets
from optimizer.files.untrusted import csv_rows, write_csv
from optimizer.machine.docker_engine import ContainerEngine, ContainerTask, Mount
from optimizer.machine.slots import Slot
from optimizer.report.table import Table
from optimizer.study.dashboard.server import _read_only
from optimizer.study.events import Note
from optimizer.study.run_log import run_log
from optimizer.triton import embedded_launcher
from optimizer.triton.embedded import EmbeddedRuntime
from optimizer.triton.embedded_launcher import EmbeddedLauncher
from optimizer.triton.launcher import arguments, free_ports, on_free_ports
from tests.unit.fake_docker import FakeDocker

HOSTILE = "bert\x1b]52;c;cm0gLXJm\x07\x9b2J\u202e"
"""Would write the clipboard, clear the screen and reverse what follows."""


def test_no_text_controls_the_terminal() -> None:
    written = io.StringIO()
    console = OutputConsole(written)
    print_line(console, HOSTILE)
    print_table(console, Table(HOSTILE, (HOSTILE, "b"), ((HOSTILE, "line\nline"),), (HOSTILE,)))
    assert all(each.isprintable() or each == "\n" for each in written.getvalue())
    assert r"bert\x1b]52" in written.getvalue()


def test_no_text_in_a_log_controls_the_terminal(tmp_path: Path) -> None:
    with run_log(tmp_path / "run.log", lambda: datetime.now(UTC)) as log:
        log(Note(HOSTILE))
    assert r"bert\x1b]52" in (tmp_path / "run.log").read_text()
    assert "\x1b" not in (tmp_path / "run.log").read_text()


FORMULAS = ["=1+1", "@SUM(1)", "-2+cmd|' /C calc'!A0", "+1+1", "'=1", "\t=1"]


def test_no_cell_of_a_written_table_is_a_formula() -> None:
    cells = [*FORMULAS, "plain", "-0.5", "1e+10", ""]
    written = io.StringIO()
    write_csv(written, ["cell"], [{"cell": cell} for cell in cells])
    write_csv(returned := io.StringIO(), ["cell"], [{"cell": "a\r=1"}])
    assert returned.getvalue() == "cell\na =1\n"
    [_, *rows] = csv.reader(io.StringIO(written.getvalue(), newline=""))
    shown = [row[0] if row else "" for row in rows]
    assert shown[: len(FORMULAS)] == [f"'{cell}" for cell in FORMULAS]
    assert shown[len(FORMULAS) :] == cells[len(FORMULAS) :]
    read = [row["cell"] for _, row in csv_rows(written.getvalue()).rows]
    assert read == cells


def test_no_name_breaks_out_of_a_printed_command(tmp_path: Path) -> None:
    name = "x'; touch ran; '$(touch ran)`touch ran`"
    text = _input_text(Input(name, "FP32", (1, 2), 0.0))
    said = subprocess.run(
        ["sh", "-c", f"printf %s '{text}'"], cwd=tmp_path, capture_output=True, check=True
    )
    assert json.loads(said.stdout)["name"] == name
    assert not (tmp_path / "ran").exists()


SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "x",
    "AWS_PROFILE": "x",
    "OPTIMIZER_STORAGE": "postgresql://me:x@db/studies",
    "PGPASSWORD": "x",
    "HF_TOKEN": "x",
    "MY_API_KEY": "x",
    "GOOGLE_APPLICATION_CREDENTIALS": "x",
}


def test_secrets_are_known_by_their_names() -> None:
    needed = {"PATH": "/bin", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": "0"}
    assert without_secrets({**SECRETS, **needed}) == needed


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The environments of processes that would be started."""
    environments: list[dict[str, str]] = []

    def start(*_: object, env: dict[str, str], **__: object) -> Any:
        environments.append(env)
        raise OSError(1, "nothing is started", "here")

    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    for module in (embedded_launcher, build_locations):
        monkeypatch.setattr(module.subprocess, "Popen", start)
    return environments


def assert_without_secrets(environments: list[dict[str, str]]) -> None:
    [environment] = environments
    assert not SECRETS.keys() & environment.keys()
    assert environment["PATH"] == os.environ["PATH"]


def test_a_server_is_given_no_secrets(started: list[dict[str, str]], tmp_path: Path) -> None:
    runtime = EmbeddedRuntime(Path("/nowhere/tritonserver"), (), ())
    launcher = EmbeddedLauncher(runtime, tmp_path / "b", tmp_path / "r", tmp_path / "log")
    with pytest.raises(Exception, match="nothing is started"):
        launcher.start(ServerOptions(), Slot((0,), (0,)))
    assert_without_secrets(started)


def test_the_build_of_an_engine_is_given_no_secrets(started: list[dict[str, str]]) -> None:
    with pytest.raises(OSError, match="nothing is started"):
        build_locations._Process(["build"], {})
    assert_without_secrets(started)


def test_a_server_listens_on_this_machine_alone() -> None:
    endpoints: list[Any] = []
    on_free_ports(lambda endpoint: cast(Any, endpoints.append(endpoint)), free_ports)
    [endpoint] = endpoints
    assert {address.partition(":")[0] for address in astuple(endpoint)} == {"127.0.0.1"}
    given = arguments(ServerOptions(), Slot((0,), (0,)), endpoint, "models")
    for service in ("grpc", "http", "metrics"):
        assert f"--{service}-address=127.0.0.1" in given


def test_a_container_has_no_privileges_and_reads_only() -> None:
    docker = FakeDocker(triton=None)
    ContainerEngine(cast(DockerClient, docker)).start(
        ContainerTask("triton", ("tritonserver",), mounts=(Mount(Path("/models"), "/models"),))
    )
    [made] = docker.made
    asked = made.settings
    assert asked["security_opt"] == ["no-new-privileges:true"]
    assert (asked["cap_drop"], asked["cap_add"]) == (["ALL"], ["DAC_OVERRIDE"])
    assert [mount["ReadOnly"] for mount in asked["mounts"]] == [True]
    assert asked["network_mode"] == "none"
    assert "docker.sock" not in str(asked)
    assert not {"privileged", "devices", "pid_mode", "ports", "volumes"} & set(asked)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8080", "200 OK"),
        ("localhost:8080", "200 OK"),
        ("[::1]:8080", "200 OK"),
        ("localhost", "200 OK"),
        ("evil.example:8080", "403 Forbidden"),
        ("127.0.0.1.evil.example:8080", "403 Forbidden"),
    ],
)
def test_the_dashboard_answers_no_page_of_another_name(host: str, status: str) -> None:
    statuses: list[str] = []

    def application(_: object, start: Any) -> list[bytes]:
        start("200 OK", [])
        return []

    list(
        _read_only(application)(
            {"REQUEST_METHOD": "GET", "HTTP_HOST": host}, lambda status, _: statuses.append(status)
        )
    )
    assert statuses == [status]
