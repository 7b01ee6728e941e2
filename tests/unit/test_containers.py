from __future__ import annotations

import gc
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from docker import DockerClient

from optimizer.errors import ContainerFailure, RequirementError
from optimizer.machine import docker_engine as engine_module
from optimizer.machine.docker_engine import ContainerEngine, ContainerTask, EngineContent, Mount
from optimizer.machine.docker_errors import unreachable
from tests.unit.fake_docker import FakeContainer, FakeDocker, refusal

TASK = ContainerTask("triton", ("tritonserver", "--help"))


@pytest.fixture
def docker() -> FakeDocker:
    return FakeDocker(triton=["PATH=/bin", "TRT_VERSION=10.8.0.43+cuda12.8.0.038"], bare=None)


@pytest.fixture
def engine(docker: FakeDocker) -> ContainerEngine:
    return ContainerEngine(cast(DockerClient, docker))


def test_an_image_tells_its_environment(engine: ContainerEngine) -> None:
    found = engine.image("triton")
    assert found.id == "sha256:1234"
    assert found.environment == {"PATH": "/bin", "TRT_VERSION": "10.8.0.43+cuda12.8.0.038"}
    assert engine.image("bare").environment == {}


def test_the_engine_tells_its_version_runtimes_and_the_names_of_its_images(
    engine: ContainerEngine, docker: FakeDocker
) -> None:
    docker.runtimes.append("nvidia")
    docker.nameless = [{"RepoTags": None}, {"RepoTags": ["<none>:<none>"]}]
    assert engine.content() == EngineContent("28.5.1", ("nvidia", "runc"), ("bare", "triton"))


def test_a_missing_image_is_named_with_its_remedy(engine: ContainerEngine) -> None:
    told = r"the Docker engine has no image other:1: docker pull other:1"
    with pytest.raises(RequirementError, match=told):
        engine.image("other:1")
    with pytest.raises(RequirementError, match=told):
        engine.start(ContainerTask("other:1", ()))


def test_a_container_in_the_machines_own_shared_memory_has_no_size_of_it(
    engine: ContainerEngine, docker: FakeDocker
) -> None:
    engine.start(replace(TASK, shared_memory_bytes=2**30, shares_memory=True))
    [made] = docker.made
    assert (made.settings["ipc_mode"], made.settings["shm_size"]) == ("host", None)


def test_a_container_has_what_its_task_says_and_no_privileges(
    engine: ContainerEngine, docker: FakeDocker, tmp_path: Path
) -> None:
    engine.start(
        ContainerTask(
            "triton",
            ("tritonserver",),
            environment=(("KEY", "value"),),
            mounts=(Mount(tmp_path, "/models"), Mount(tmp_path, "/out", read_only=False)),
            gpu_uuids=("GPU-1", "GPU-2"),
            cores=(2, 3),
            shared_memory_bytes=2**30,
            network="host",
        )
    )
    [made] = docker.made
    asked = made.settings
    assert asked["environment"] == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "KEY": "value"}
    assert [(m["Source"], m["Target"], m["ReadOnly"]) for m in asked["mounts"]] == [
        (str(tmp_path), "/models", True),
        (str(tmp_path), "/out", False),
    ]
    [gpus] = asked["device_requests"]
    assert (gpus["DeviceIDs"], gpus["Capabilities"]) == (["GPU-1", "GPU-2"], [["gpu"]])
    assert (asked["cpuset_cpus"], asked["shm_size"]) == ("2,3", 2**30)
    assert asked["ipc_mode"] is None
    assert asked["network_mode"] == "host"
    assert {(limit["Name"], limit["Soft"], limit["Hard"]) for limit in asked["ulimits"]} == {
        ("memlock", -1, -1),
        ("stack", 64 * 2**20, 64 * 2**20),
    }
    assert asked["init"] is True
    assert not {"privileged", "restart_policy", "devices", "pid_mode"} & set(asked)


def test_a_container_without_gpus_sees_none_whatever_its_image_says(
    engine: ContainerEngine, docker: FakeDocker
) -> None:
    engine.start(TASK)
    [made] = docker.made
    assert made.settings["device_requests"] is None
    assert made.settings["environment"] == {"NVIDIA_VISIBLE_DEVICES": "void"}
    assert made.settings["network_mode"] == "none"


def test_an_engine_that_may_not_lock_memory_starts_it_with_its_own_limit(
    engine: ContainerEngine, docker: FakeDocker
) -> None:
    docker.refuses_to_start = [refusal(500, "error setting rlimit type 8: not permitted")]
    engine.start(TASK)
    [made] = docker.made
    assert [limit["Name"] for limit in made.settings["ulimits"]] == ["stack"]


@pytest.mark.parametrize(
    ("said", "error", "told"),
    [
        ("no space left", ContainerFailure, r"cannot start a container of triton: no space left"),
        ("could not select device driver", RequirementError, "install nvidia-container-toolkit"),
    ],
)
def test_a_container_that_does_not_start_is_told_and_removed(
    engine: ContainerEngine, docker: FakeDocker, said: str, error: type[Exception], told: str
) -> None:
    docker.refuses_to_start = [refusal(500, said)]
    with pytest.raises(error, match=told):
        engine.start(TASK)
    assert docker.made == []


def test_output_is_told_line_by_line_however_it_comes(
    engine: ContainerEngine, docker: FakeDocker
) -> None:
    running = engine.start(TASK)
    [made] = docker.made
    made.chunks = [b"one\r\ntw", b"o\n\nthree \xff\nfo", b"ur"]
    four = ["one", "two", "", "three \N{REPLACEMENT CHARACTER}", "four"]
    assert list(running.lines()) == four
    made.last_chunks = [b"\nfive\nsi", b"x"]
    assert list(running.lines()) == [*four, "five", "six"]


def test_file_pages_do_not_count_as_memory(engine: ContainerEngine, docker: FakeDocker) -> None:
    running = engine.start(TASK)
    [made] = docker.made
    second = {"inactive_file": 300, "active_file": 50, "anon": 600}
    made.statistics = {"memory_stats": {"usage": 1000, "stats": second}}
    assert running.memory_bytes() == 650
    first = {"inactive_file": 0, "total_inactive_file": 200, "total_active_file": 100}
    made.statistics = {"memory_stats": {"usage": 1000, "stats": first}}
    assert running.memory_bytes() == 700
    made.statistics = {"memory_stats": {}}
    assert running.memory_bytes() is None


def test_a_container_that_somebody_removed_has_been_killed(
    engine: ContainerEngine, docker: FakeDocker
) -> None:
    running = engine.start(TASK)
    assert (running.exit_code(), running.pid()) == (None, 7)
    docker.made.clear()
    assert (running.exit_code(), running.pid(), running.out_of_memory()) == (137, None, False)
    running.stop(1.0)


def test_only_what_dead_processes_of_this_user_have_left_is_reaped(
    engine: ContainerEngine, docker: FakeDocker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def left_by(pid: int | str, **changed: str) -> FakeContainer:
        labels = {**engine_module._owner(), engine_module._OWNER_PID: str(pid)}
        labels |= {f"triton-cost-optimizer.owner-{key}": value for key, value in changed.items()}
        container = FakeContainer(docker, f"of {pid} {changed}", labels)
        docker.made.append(container)
        return container

    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    gone = [left_by(dead.pid), left_by(os.getpid(), started="1")]
    kept = [
        left_by(os.getpid()),
        left_by(dead.pid, user="123456"),
        left_by(dead.pid, machine="another"),
        FakeContainer(docker, "of nobody"),
    ]
    docker.made.append(kept[-1])
    assert engine.reap() == tuple(container.name for container in gone)
    assert docker.made == kept


@pytest.mark.parametrize(
    ("options", "userns_mode", "rootless"),
    [
        ([], None, False),
        (["name=seccomp,profile=builtin", "name=userns"], "host", False),
        (["name=seccomp,profile=builtin", "name=rootless"], None, True),
    ],
)
def test_a_container_reads_and_writes_what_this_user_may(
    engine: ContainerEngine,
    docker: FakeDocker,
    options: list[str],
    userns_mode: str | None,
    rootless: bool,
) -> None:
    docker.security_options = options
    engine.start(TASK)
    assert docker.made[0].settings["userns_mode"] == userns_mode
    assert engine.rootless == rootless


def test_a_zombie_owns_nothing() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    try:
        assert engine_module._started(str(child)) is None
    finally:
        os.waitpid(child, 0)
    assert (
        engine_module._started(str(os.getpid()))
        == engine_module._owner()[engine_module._OWNER_STARTED]
    )


@pytest.mark.parametrize(
    ("host", "told"),
    [
        ("unix:///nowhere/docker.sock", r"no Docker engine runs at unix:///nowhere/docker\.sock"),
        ("tcp://127.0.0.1:1", r"no Docker engine runs at tcp://127\.0\.0\.1:1: .*start it"),
        ("carrier-pigeon://x", r"the Docker engine at carrier-pigeon://x cannot be used"),
    ],
)
# The SDK leaves a socket that could not be connected to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_engine_that_is_not_there_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, host: str, told: str
) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)
    with pytest.raises(RequirementError, match=told) as caught:
        ContainerEngine.connect()
    assert caught.value.exit_code == 3
    del caught
    gc.collect()


def test_a_user_without_permission_is_told_how_to_get_it() -> None:
    # As the SDK wraps it: by requests, and by urllib3 within.
    error = ConnectionError("Connection aborted.", PermissionError(13, "Permission denied"))
    assert "usermod --append --groups docker USER" in str(unreachable(ConnectionError(error)))


def test_the_package_is_whole_without_the_sdk() -> None:
    code = (
        "import sys; sys.modules['docker'] = None\n"
        "import optimizer.commands.run\n"
        "from optimizer.machine.docker_engine import ContainerEngine\n"
        "ContainerEngine.connect()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "RequirementError: containers need" in done.stderr
    assert "pip install 'triton-cost-optimizer[docker]'" in done.stderr
