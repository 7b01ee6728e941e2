from pathlib import Path
from typing import cast

from docker import DockerClient

from optimizer.configuration.hosting import ContainerHost
from optimizer.configuration.serving_config import ServerOptions
from optimizer.machine.docker_engine import ContainerEngine, Mount
from optimizer.machine.slots import Slot, local_slot
from optimizer.triton import launcher
from optimizer.triton.control import Endpoint
from optimizer.triton.docker_launcher import DockerLauncher
from tests.unit.fake_docker import FakeDocker

ENDPOINT = Endpoint("127.0.0.1:1001", "127.0.0.1:1002", "127.0.0.1:1003")
GPU = Slot((0,), (0,), ("GPU-1",))


def test_the_command_line_says_where_it_listens_and_what_was_asked() -> None:
    options = ServerOptions((("python", "shm-default-byte-size", "1024"),), 3)
    said = launcher.arguments(options, local_slot(), ENDPOINT, "models", "--backend-directory=b")
    assert said == [
        "--model-repository=models",
        "--backend-directory=b",
        "--model-control-mode=explicit",
        "--disable-auto-complete-config",
        "--grpc-address=127.0.0.1",
        "--grpc-port=1001",
        "--http-address=127.0.0.1",
        "--http-port=1002",
        "--metrics-address=127.0.0.1",
        "--metrics-port=1003",
        "--allow-gpu-metrics=false",
        "--exit-timeout-secs=3",
        "--backend-config=python,shm-default-byte-size=1024",
        "--rate-limit=execution_count",
        "--rate-limit-resource=execution:3",
    ]


def test_a_server_on_gpus_tells_their_metrics_and_limits_nothing_unasked() -> None:
    said = launcher.arguments(ServerOptions(), GPU, ENDPOINT, "models")
    assert not [each for each in said if "gpu-metrics" in each or "rate-limit" in each]


def test_a_server_completes_configurations_only_where_it_is_asked_to() -> None:
    said = launcher.arguments(ServerOptions(), GPU, ENDPOINT, "models")
    completing = launcher.arguments(ServerOptions(), GPU, ENDPOINT, "models", completes=True)
    assert set(said) - set(completing) == {"--disable-auto-complete-config"}


def test_a_container_gets_the_gpus_and_sees_what_links_lead_to(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "by another name").symlink_to(tmp_path / "cache")
    docker_launcher = DockerLauncher(
        ContainerEngine(cast(DockerClient, FakeDocker())),
        ContainerHost("triton:1", 2**28),
        tmp_path / "study" / "repository",
        [tmp_path / "by another name"],
        tmp_path / "log",
    )
    task = docker_launcher._task(ServerOptions(), GPU, ENDPOINT)
    assert (task.image, task.command[0], task.entrypoint) == ("triton:1", "tritonserver", None)
    assert (task.network, task.gpu_uuids, task.cores) == ("host", ("GPU-1",), (0,))
    assert task.shared_memory_bytes == 2**28
    completing = docker_launcher._task(ServerOptions(), GPU, ENDPOINT, completes=True)
    assert set(task.command) - set(completing.command) == {"--disable-auto-complete-config"}
    assert task.working_directory == str(tmp_path / "study")
    repository, cache = tmp_path / "study" / "repository", tmp_path / "cache"
    assert task.mounts == (Mount(repository, str(repository)), Mount(cache, str(cache)))


def test_a_container_shares_the_machines_memory_only_for_clients_that_use_it(
    tmp_path: Path,
) -> None:
    flags = {}
    for image, version in (("old", "2.67.0"), ("new", "2.68.0")):
        docker = FakeDocker(**{image: [f"TRITON_SERVER_VERSION={version}"]})
        docker_launcher = DockerLauncher(
            ContainerEngine(cast(DockerClient, docker)),
            ContainerHost(image, 2**28),
            tmp_path / "repository",
            [],
            tmp_path / "log",
        )
        plain = docker_launcher._task(ServerOptions(), GPU, ENDPOINT)
        shared = docker_launcher._task(ServerOptions(client_shared_memory=True), GPU, ENDPOINT)
        assert (plain.shares_memory, shared.shares_memory) == (False, True)
        flags[image] = set(shared.command) - set(plain.command)
        [prefix] = flags[image] - {"--allow-client-shm=true"}
        assert prefix.startswith("--backend-config=python,shm-region-prefix-name=tco_")
    assert "--allow-client-shm=true" in flags["new"]
    assert "--allow-client-shm=true" not in flags["old"]


def test_free_ports_are_distinct() -> None:
    ports = launcher.free_ports(3)
    assert len(set(ports)) == 3


def test_the_last_errors_of_a_log_are_told_without_their_prefix() -> None:
    log = (
        'I1123 10:00:00.000000 7 server.cc:1] "fine"\n'
        'E1123 10:00:01.000000 7 server.cc:2] "first"\n'
        'E1123 10:00:02.000000 7 server.cc:3] "second"\n'
    )
    assert launcher.last_errors(log, lines=1) == "its log says: second"
    assert launcher.last_errors("one\ntwo\n") == "its log ends: two"
    assert launcher.last_errors("") == "its log is empty"
