"""A study of a team: in PostgreSQL, with artefacts that hosts share. Its password stays hidden."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

import psutil
import pytest

from optimizer.artifacts.build_process import BuildProcess
from optimizer.artifacts.cache import ArtifactCache
from optimizer.artifacts.shared_cache import SharedCache
from optimizer.commands.run_context import open_space
from optimizer.simulator.calibration import CALIBRATION_RUNS
from optimizer.study.directory import StudyDirectory
from tests.e2e import tiny
from tests.e2e.conftest import Built, StartOptimizer
from tests.e2e.postgresql import PASSWORD, QUOTED, PostgreSql, running_server
from tests.e2e.running import Optimizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def server() -> Iterator[PostgreSql]:
    with running_server() as running:
        yield running


@pytest.fixture
def space(tmp_path: Path) -> Path:
    """Two trials of different configurations."""
    return tiny.write_space(tmp_path, tiny.space(budget={"trials": 2}))


def in_trial(optimizer: Optimizer, number: int) -> None:
    optimizer.wait_for(f"  {number}/2 ", 120.0)


def titles(optimizer: Optimizer) -> str:
    """The command lines of a run and of all that it has started, as `ps` shows them."""
    lines = []
    for process in optimizer.marked.processes():
        try:
            lines.append(" ".join(process.cmdline()))
        except psutil.NoSuchProcess:
            continue
    return "\n".join(lines)


def pages_of(dashboard: Optimizer) -> list[str]:
    """What a dashboard answers."""
    dashboard.wait_for("(Ctrl-C ends it)")
    address = re.search(r"http://127\.0\.0\.1:\d+", dashboard.output)
    assert address is not None
    paths = ("/dashboard", "/api/meta", "/api/studies", "/api/studies/1", "/api/studies/none")
    open_url = build_opener(ProxyHandler({})).open
    pages = []
    for path in paths:
        try:
            with open_url(f"{address[0]}{path}", timeout=30.0) as page:
                pages.append(page.read().decode())
        except HTTPError as error:
            pages.append(error.read().decode())
    assert '"tiny"' in pages[2]
    return pages


def assert_hidden(*texts: str) -> None:
    for text in texts:
        assert PASSWORD not in text
        assert QUOTED not in text


def assert_in_no_file(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert PASSWORD.encode() not in content, path
            assert QUOTED.encode() not in content, path


def test_it_is_run_by_one_coordinator_killed_resumed_and_outlasts_a_restart(
    server: PostgreSql, space: Path, start: StartOptimizer, tmp_path: Path
) -> None:
    first = start(space, "--storage", server.url, "--verbose")
    in_trial(first, 2)
    assert "run" in titles(first)
    assert_hidden(titles(first))
    first.process.send_signal(signal.SIGSTOP)  # the trial cannot end before the process is killed
    other = start(
        space, "--results", tmp_path / "other", environment={"OPTIMIZER_STORAGE": server.url}
    )
    assert other.wait() == 2
    assert f"study tiny in {server.shown} is being run by process {first.pid} of " in other.errors
    first.kill()
    first.assert_nothing_left()

    study = StudyDirectory(tmp_path / "results" / "tiny")
    measured = list(study.trials.read_all())
    assert measured == [0]
    resumed = start(space, environment={"OPTIMIZER_STORAGE": server.url})
    in_trial(resumed, 2)
    assert f"was being run by process {first.pid}" in resumed.output
    assert "which is gone: this run takes it over" in resumed.output
    server.stop()
    time.sleep(2.0)
    server.start()
    assert resumed.wait() == 0, resumed.errors
    records = study.trials.read_all()
    assert list(records) == [0, 1], "the trial that was cut off goes on under its number"

    elsewhere = start(
        space, "--results", tmp_path / "host", environment={"OPTIMIZER_STORAGE": server.url}
    )
    status = start("tiny", command="status")
    report = start("tiny", command="report")
    export = start(
        *("tiny", "--to", tmp_path / "exported", "--no-examples"),
        command="export",
        environment={"OPTIMIZER_STORAGE": server.url},
    )
    dashboard = start("tiny", "--port", "0", "--storage", server.url, command="dashboard")
    pages = pages_of(dashboard)
    assert_hidden(titles(dashboard), *pages)
    assert (status.wait(), report.wait(), export.wait()) == (0, 0, 0), export.errors
    assert elsewhere.wait() == 2
    assert f"they are in {study.root} on {socket.gethostname()}" in elsewhere.errors
    server.stop()
    refused = start("tiny", "--port", "0", "--storage", server.url, command="dashboard")
    assert refused.wait() == 4, refused.errors
    server.start()
    for each in (first, other, resumed, elsewhere, status, report, export, dashboard, refused):
        assert_hidden(each.output, each.errors)
        assert "Traceback" not in each.errors
    assert_in_no_file(tmp_path)


def test_artefacts_that_one_host_built_are_fetched_by_the_builds_of_another(
    built: Built, tmp_path: Path
) -> None:
    """Hosts have a cache of their own, and nothing else in common but the shared one."""
    [model] = open_space(tiny.write_space(tmp_path, tiny.space())).models
    shared = SharedCache(f"file://{tmp_path}/shared")
    shutil.copytree(built.cache, tmp_path / "one")
    spec = built.spec("onnxruntime", "fp32")
    fetched = []
    for name in ("one", "two"):
        cache = ArtifactCache(tmp_path / name, shared)
        with BuildProcess(cache, tmp_path / "build.log", threads=1) as builds:
            assert not builds.prepare_model(model).built
            fetched.append(builds.build(spec, model))
    assert [each.cached for each in fetched] == [True, True]
    assert fetched[0].sha256 == fetched[1].sha256
    assert fetched[1].path.is_relative_to(tmp_path / "two")


def test_the_service_times_of_a_study_are_lent_to_another(
    tmp_path: Path, start: StartOptimizer
) -> None:
    """Here on the same machine, whose times differ by chance alone."""
    parameters = {"max_batch_size": [4, 16], "instance_count": [1, 2], "intra_op_threads": [1, 2]}
    content = tiny.space(parameters=parameters, budget={"trials": 1})
    space = tiny.write_space(tmp_path, content)
    first = start(space, "--sampler", "guided")
    assert first.wait() == 0, first.errors
    second = start(space, "--sampler", "guided", "--study", "second", "--prior", "tiny")
    assert second.wait() == 0, second.errors
    study = StudyDirectory(tmp_path / "results" / "second")
    saved = CALIBRATION_RUNS - 1 - len(study.calibration.read_all())
    assert saved > 0
    assert "the service times of study tiny are taken over up to a scale" in second.output
    assert "The service times of study tiny were taken over up to a scale" in second.output
    assert {record.origin for record in study.prior.read_all().values()} == {"tiny"}
