"""A search on a server that somebody else has started, and what can be wrong with that."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from optimizer.study.directory import StudyDirectory
from optimizer.triton.control import Endpoint, ServerControl
from optimizer.triton.embedded import find_embedded_runtime
from optimizer.triton.launcher import free_ports
from tests.e2e import tiny
from tests.e2e.conftest import StartOptimizer
from tests.e2e.running import Optimizer, wait_until

pytestmark = pytest.mark.timeout(300)

Serve = Callable[..., Endpoint]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "shared"
    folder.mkdir()
    return folder


@pytest.fixture
def serve(tmp_path: Path, repository: Path) -> Iterator[Serve]:
    """Start a server as somebody would who reads the README."""
    runtime = find_embedded_runtime()
    backends = runtime.lay_out(tmp_path / "backends")
    with ExitStack() as stack:

        def run(mode: str = "explicit") -> Endpoint:
            grpc, http, metrics = free_ports(3)
            command: list[object] = [runtime.binary, f"--model-repository={repository}"]
            command += [f"--backend-directory={backends}", f"--model-control-mode={mode}"]
            command += ["--disable-auto-complete-config", "--allow-gpu-metrics=false"]
            for name, port in (("grpc", grpc), ("http", http), ("metrics", metrics)):
                command += [f"--{name}-address=127.0.0.1", f"--{name}-port={port}"]
            with (tmp_path / "somebodys.log").open("wb") as log:
                server = subprocess.Popen(
                    [*map(str, command)],
                    env={**os.environ, **dict(runtime.environment)},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            stack.callback(server.wait)
            stack.callback(server.terminate)
            endpoint = Endpoint(*(f"127.0.0.1:{port}" for port in (grpc, http, metrics)))
            with ServerControl(endpoint) as control:
                wait_until(control.ready, "somebody's server")
            return endpoint

        yield run


def space(folder: Path, endpoint: Endpoint) -> Path:
    content = tiny.space()
    content["server"] = {
        "launcher": "remote",
        "grpc": endpoint.grpc,
        "http": endpoint.http,
        "metrics": endpoint.metrics,
        "repository": "shared",
    }
    return tiny.write_space(folder, content)


def assert_refused(run: Optimizer, *texts: str) -> None:
    assert run.wait() == 3
    assert run.errors.startswith("error: ")
    assert "Traceback" not in run.errors
    for text in texts:
        assert text in run.errors


@pytest.mark.slow
def test_a_search_and_verify_use_a_server_that_runs_already_and_leave_it_running(
    tmp_path: Path, repository: Path, serve: Serve, start: StartOptimizer
) -> None:
    endpoint = serve()
    file = space(tmp_path, endpoint)
    run = start(file, "--trials", 1)
    assert run.wait() == 0, run.errors
    assert (
        f"the server at {endpoint.grpc} runs already: its use of its machine is not measured"
        in run.output
    )
    study = StudyDirectory(tmp_path / "results" / "tiny")
    assert study.read_json(study.summary)["trials"]["ok"] == 1
    for record in study.trials.read_all().values():
        assert record.measurement is not None
        for level in record.measurement.levels:
            assert level.machine is not None
            assert level.machine.server_cpu_seconds is None
            assert level.server, "its own statistics are asked for all the same"
    copied = [path for path in (repository / "bert" / "1").iterdir() if path.is_symlink()]
    assert copied == [], "its machine need not have what a link leads to"
    with ServerControl(endpoint) as control:
        assert control.ready()
        assert control.models_present() == ()
    again = start(file, "--trials", 2)
    assert again.wait() == 0, "what is in the repository is its own"

    exported = start("tiny", "--to", "bundle", command="export")
    assert exported.wait() == 0, exported.errors
    unsaid = start("bundle", command="verify")
    assert unsaid.wait() == 2
    assert "give --launcher remote with --grpc, --http, --metrics and --repo" in unsaid.errors
    where = [f"--{name}={getattr(endpoint, name)}" for name in ("grpc", "http", "metrics")]
    place = ("--launcher=remote", *where, f"--repository={repository}", "--within=100000")
    verified = start("bundle", *place, command="verify")
    assert verified.wait() == 0, verified.output + verified.errors
    with ServerControl(endpoint) as control:
        assert control.ready()
        assert control.models_present() == ()


def test_a_server_that_does_not_answer_is_told_with_how_to_start_one(
    tmp_path: Path, repository: Path, start: StartOptimizer
) -> None:
    nobody = Endpoint("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")
    run = start(space(tmp_path, nobody))
    assert_refused(run, "no server answers at 127.0.0.1:1: start it with --model-control-mode=expl")
    assert not (tmp_path / "results").exists()
    assert list(repository.iterdir()) == []


@pytest.mark.parametrize("mode", ["none", "poll"])
def test_a_server_that_loads_no_model_when_asked_is_refused(
    tmp_path: Path, serve: Serve, start: StartOptimizer, mode: str
) -> None:
    run = start(space(tmp_path, serve(mode)))
    assert_refused(
        run, "is not in explicit model-control mode: start it with --model-control-mode=explicit"
    )


def test_a_model_of_somebody_else_is_not_replaced(
    tmp_path: Path, repository: Path, serve: Serve, start: StartOptimizer
) -> None:
    (repository / "bert").mkdir()
    (repository / "bert" / "config.pbtxt").write_text("theirs")
    run = start(space(tmp_path, serve()))
    assert_refused(run, f"{repository / 'bert'} exists already and would be replaced")
    assert (repository / "bert" / "config.pbtxt").read_text() == "theirs"


def test_a_repository_that_is_none_is_named(
    tmp_path: Path, repository: Path, serve: Serve, start: StartOptimizer
) -> None:
    endpoint = serve()
    repository.rmdir()
    assert_refused(start(space(tmp_path, endpoint)), f"server.repository: {repository} is no fold")
