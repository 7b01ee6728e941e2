"""A search in a container of a real engine, and what can be wrong with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path

import docker
import psutil
import pytest
from tritonclient.utils import shared_memory

from optimizer.configuration.hosting import ContainerHost
from optimizer.configuration.serving_config import ServerOptions
from optimizer.errors import ServerFailure
from optimizer.machine.docker_engine import ContainerEngine
from optimizer.machine.slots import local_slot
from optimizer.study.directory import StudyDirectory
from optimizer.triton import processes
from optimizer.triton.docker_launcher import DockerLauncher
from optimizer.triton.shared_memory import region_prefix
from tests.docker.engine import (
    containers_in,
    prepared_image,
    processes_in,
    remove_containers_in,
)
from tests.e2e import tiny
from tests.e2e.conftest import StartOptimizer
from tests.e2e.running import Optimizer, wait_until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

PARAMETERS = {
    "runtime": ["onnxruntime", "openvino"],
    "precision": ["fp32"],
    "batching": [False, True],
}


@pytest.fixture(scope="session", autouse=True)
def image() -> str:
    """Asked for before anything is built, which would take longer."""
    return prepared_image()


@pytest.fixture
def study(tmp_path: Path) -> Iterator[StudyDirectory]:
    study = StudyDirectory(tmp_path / "results" / "tiny")
    yield study
    remove_containers_in(study.repository.parent)


def space(folder: Path, image: str, **sections: dict[str, object]) -> Path:
    content = tiny.space(parameters=PARAMETERS, **sections)
    content["server"] = {"launcher": "docker", "image": image, "shared_memory_mib": 256}
    return tiny.write_space(folder, content)


def server_of(study: StudyDirectory) -> psutil.Process:
    [server] = [p for p in processes_in(study.repository.parent) if p.name() == "tritonserver"]
    return server


def assert_one_message(run: Optimizer, code: int, *texts: str) -> None:
    assert run.wait() == code
    assert run.errors.startswith("error: ")
    assert "Traceback" not in run.errors
    for text in texts:
        assert text in run.errors


def test_a_search_runs_in_a_container_and_leaves_none(
    image: str, tmp_path: Path, study: StudyDirectory, start: StartOptimizer
) -> None:
    run = start(space(tmp_path, image), "--trials", 4)
    run.wait_for("  2/4 ")
    [container] = containers_in(study.repository.parent)
    host = container.attrs["HostConfig"]
    assert (host["NetworkMode"], host["Privileged"]) == ("host", False)
    assert host["RestartPolicy"]["Name"] in ("", "no")
    assert all(not mount["RW"] for mount in container.attrs["Mounts"])
    assert run.wait() == 0, run.errors
    assert containers_in(study.repository.parent) == []
    summary = study.read_json(study.summary)
    assert sum(summary["trials"].values()) == 4
    assert summary["trials"]["failed"] == 0
    assert "Started GRPCInferenceService" in study.server_log.read_text()
    record = study.trials.read_all()[0]
    assert record.measurement is not None
    for level in record.measurement.levels:
        assert level.machine is not None
        assert (level.machine.server_cpu_seconds or 0) > 0
        assert (level.machine.server_memory_mib or 0) > 50


def test_what_a_container_has_served_is_exported_and_verified_in_one(
    image: str, tmp_path: Path, study: StudyDirectory, start: StartOptimizer
) -> None:
    run = start(space(tmp_path, image), "--trials", 1)
    assert run.wait() == 0, run.errors
    exported = start("tiny", "--to", "bundle", command="export")
    assert exported.wait() == 0, exported.errors
    manifest = json.loads((tmp_path / "bundle/manifest.json").read_text())
    assert manifest["versions"]["image"] == image
    verified = start("bundle", "--within", 100000, command="verify")
    assert verified.wait() == 0, verified.output + verified.errors
    (tmp_path / "bundle/bert/1/model.py").write_text("another")
    changed = start("bundle", command="verify")
    assert changed.wait() == 1
    assert "bert/1/model.py differs" in changed.output
    composed = start("tiny", "--to", "image", "--format", "compose", command="export")
    assert composed.wait() == 0, composed.errors
    assert f"FROM {image}\n" in (tmp_path / "image/Dockerfile").read_text()


def test_a_container_killed_amid_a_trial_fails_that_trial_which_is_tried_again(
    image: str, tmp_path: Path, study: StudyDirectory, start: StartOptimizer
) -> None:
    run = start(space(tmp_path, image, measurement={"check_seconds": 1.5}), "--trials", 2)
    run.wait_for("  1/2 ")
    seen = run.output.index("  1/2 ")
    wait_until(lambda: "saturation:" in run.output[seen:], "a saturated server")
    [container] = containers_in(study.repository.parent)
    container.kill()
    assert run.wait() == 0, run.errors
    failed, again, other = study.trials.read_all().values()
    assert failed.outcome == "failed"
    assert "the server ended with signal SIGKILL" in failed.reason
    assert (again.config, again.outcome) == (failed.config, "ok")
    assert other.config != failed.config
    assert containers_in(study.repository.parent) == []


def test_what_a_killed_run_has_left_is_removed_by_the_next(
    image: str, tmp_path: Path, study: StudyDirectory, start: StartOptimizer
) -> None:
    file = space(tmp_path, image)
    killed = start(file, "--trials", 2)
    killed.wait_for("  2/2 ")
    killed.kill()
    [left] = containers_in(study.repository.parent)
    assert left.status == "running"
    again = start(file, "--trials", 2)
    assert again.wait() == 0, again.errors
    assert containers_in(study.repository.parent) == []
    assert [r.outcome for r in study.trials.read_all().values()] == ["ok", "ok"]


def test_a_missing_image_is_named_before_anything_starts(
    tmp_path: Path, study: StudyDirectory, start: StartOptimizer
) -> None:
    run = start(space(tmp_path, "nobody/has:it"))
    assert_one_message(run, 3, "no image nobody/has:it: docker pull nobody/has:it")
    assert not study.root.exists()


def test_an_engine_that_is_down_is_named_before_anything_starts(
    image: str, tmp_path: Path, study: StudyDirectory, start: StartOptimizer
) -> None:
    nowhere = f"unix://{tmp_path}/docker.sock"
    run = start(space(tmp_path, image), environment={"DOCKER_HOST": nowhere})
    assert_one_message(run, 3, f"no Docker engine runs at {nowhere}: install one, or start it")
    assert not study.root.exists()


@pytest.fixture
def bare_image(image: str) -> Iterator[str]:
    """The tests' image without OpenVINO and without a server."""
    client, name = docker.from_env(), "triton-cost-optimizer-test:bare"
    hide = "mv $(dirname $(python3 -c 'import openvino; print(openvino.__file__)')) /mnt"
    container = client.containers.create(
        image,
        ["sh", "-c", f"{hide}; rm /opt/tritonserver/bin/tritonserver"],
        network_mode="none",
    )
    with ExitStack() as stack:
        stack.callback(container.remove, force=True)
        container.start()
        assert container.wait()["StatusCode"] == 0
        container.commit("triton-cost-optimizer-test", "bare")
        stack.callback(client.images.remove, name)
        yield name


def test_what_an_image_lacks_is_named_before_anything_starts(
    tmp_path: Path, study: StudyDirectory, start: StartOptimizer, bare_image: str
) -> None:
    run = start(space(tmp_path, bare_image))
    assert_one_message(run, 3, f"the image {bare_image} lacks openvino, tritonserver: ")
    assert not study.root.exists()


def test_a_user_who_may_not_look_into_the_container_serves_and_sees_its_memory(
    image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: int) -> set[int]:
        raise psutil.AccessDenied

    monkeypatch.setattr(processes, "listening_below", refused)
    monkeypatch.setattr(processes, "memory_bytes", lambda _: None)
    host = ContainerHost(image, 64 * 2**20)
    launcher = DockerLauncher(
        ContainerEngine.connect(), host, tmp_path / "repository", [], tmp_path / "server.log"
    )
    server = launcher.start(ServerOptions(), local_slot())
    assert server.control.ready()
    assert (server.memory_with_models_bytes() or 0) > 2 * 2**20
    server.stop()
    assert not containers_in(tmp_path)
    assert list((tmp_path / "repository").iterdir()) == []


def test_a_client_shares_memory_with_a_server_that_was_started_for_it(
    image: str, tmp_path: Path
) -> None:
    host = ContainerHost(image, 64 * 2**20)
    launcher = DockerLauncher(
        ContainerEngine.connect(), host, tmp_path / "repository", [], tmp_path / "server.log"
    )
    name = f"{region_prefix(0)}of_a_test"
    region = shared_memory.create_shared_memory_region(name, f"/{name}", 64)
    try:
        for options in (ServerOptions(), ServerOptions(client_shared_memory=True)):
            server = launcher.start(options, local_slot())
            expected = (
                nullcontext()
                if options.client_shared_memory
                else pytest.raises(ServerFailure, match="cannot register the shared memory")
            )
            try:
                with expected:
                    server.control.register_shared_memory(name, f"/{name}", 64)
            finally:
                server.stop()
    finally:
        shared_memory.destroy_shared_memory_region(region)
