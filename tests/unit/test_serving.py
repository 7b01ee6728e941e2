"""What `serve` would start, and what it refuses; tests/e2e/test_serve.py starts it."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from optimizer.analysis.study_reading import read_study
from optimizer.commands import serve as serving
from optimizer.commands.bundle_serving import BundleHost
from optimizer.commands.serve import ServeOptions, find_servable
from optimizer.configuration.hosting import ContainerHost, EmbeddedHost, Host, RemoteHost
from optimizer.configuration.serving_config import ServerOptions, describe
from optimizer.errors import UsageError
from optimizer.export.bundle.repository import Provenance, write_model_repository
from optimizer.files.shipped import shipped
from optimizer.machine.slots import Slot
from optimizer.triton.control import Endpoint
from optimizer.triton.embedded import EmbeddedRuntime
from optimizer.triton.session import ModelFiles
from optimizer.triton.start_commands import container_start_command, embedded_start_commands
from optimizer.workload.streams import OutputTensor
from tests.unit.studies import infeasible, record_of
from tests.unit.whole_studies import WholeStudy, configs

pytestmark = pytest.mark.usefixtures("fast_disk")

SLOT = Slot((0, 1), (0, 1))
SEPARATED = Slot((0, 1, 2), (3,))
ENDPOINT = Endpoint("127.0.0.1:8001", "127.0.0.1:8000", "127.0.0.1:8002")
RUNTIME = EmbeddedRuntime(
    Path("/opt/a server/bin/tritonserver"),
    (Path("/opt/stub"), Path("/opt/libtriton_python.so")),
    (("PATH", "/venv/bin:/usr/bin"), ("LD_LIBRARY_PATH", "/opt/lib")),
)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the study asked to be served by; every machine can."""
    given: dict[str, Any] = {"host": EmbeddedHost()}

    def found(settings: Mapping[str, object], _: object) -> BundleHost:
        given["settings"] = settings
        answer: Host = given["host"]
        return BundleHost(answer, SLOT, ())

    monkeypatch.setattr(serving, "bundle_host", found)
    return given


def request(tmp_path: Path, subject: str = "one", **options: Any) -> ServeOptions:
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0, **options}
    return ServeOptions(subject, results=tmp_path, **ports)


def write_repositories(tmp_path: Path, **which: int) -> None:
    """best= and baseline=, by the number of the configuration."""
    reading = read_study(tmp_path, "one")
    artifact = tmp_path / "artifact"
    artifact.mkdir(exist_ok=True)
    (artifact / "model.xml").write_text("a graph")
    payloads = reading.searched.workload.streams[0].payloads
    files = {"bert": ModelFiles(artifact, payloads, (OutputTensor("logits", "FP32", (2,)),))}
    every = configs(reading.searched.search_space)
    for name, number in which.items():
        target = reading.directory.root / name
        templates = shipped("model_repository_templates")
        write_model_repository(target, templates, every[number], files, Provenance({}, {}))


@pytest.fixture
def study(tmp_path: Path) -> WholeStudy:
    study = WholeStudy(tmp_path / "one", {0: 100.0, 2: 300.0}, {2: (280.0, 290.0)})
    study.written()
    return study


def test_the_best_and_the_baseline_are_found_with_their_server(
    study: WholeStudy, tmp_path: Path, host: dict[str, Any]
) -> None:
    write_repositories(tmp_path, best=2, baseline=0)
    best = find_servable(request(tmp_path))
    every = configs(read_study(tmp_path, "one").searched.search_space)
    assert (best.root, best.config) == (study.root / "best", every[2])
    assert best.description == describe(every[2])
    assert host["settings"]["launcher"] == "embedded"
    assert len({best.endpoint.http, best.endpoint.grpc, best.endpoint.metrics}) == 3
    baseline = find_servable(request(tmp_path, baseline=True))
    assert (baseline.root, baseline.config) == (study.root / "baseline", every[0])


@pytest.mark.parametrize("written", [{}, {"best": 0}], ids=["none", "another one"])
@pytest.mark.usefixtures("study")
def test_what_does_not_hold_the_best_is_not_served(
    written: dict[str, int], tmp_path: Path, host: dict[str, Any]
) -> None:
    write_repositories(tmp_path, **written)
    rule = r"best does not contain openvino int8.*: it is written when the study ends"
    with pytest.raises(UsageError, match=rule):
        find_servable(request(tmp_path))


def test_a_study_without_a_best_says_why(tmp_path: Path, host: dict[str, Any]) -> None:
    directory = WholeStudy(tmp_path / "one", {0: 0.0}).written()
    config = directory.trials.read_all()[0].config
    directory.confirmations.write(record_of(0, config, infeasible(80)))
    with pytest.raises(UsageError, match="study one has nothing to serve: "):
        find_servable(request(tmp_path))


@pytest.mark.usefixtures("study")
def test_a_server_that_runs_already_is_left_to_whoever_runs_it(
    tmp_path: Path, host: dict[str, Any]
) -> None:
    write_repositories(tmp_path, best=2)
    host["host"] = RemoteHost("gpu:8001", "gpu:8000", "gpu:8002", tmp_path)
    with pytest.raises(UsageError, match="on the remote server at gpu:8001: copy"):
        find_servable(request(tmp_path))


@pytest.mark.usefixtures("study")
def test_a_port_that_is_taken_is_refused(tmp_path: Path, host: dict[str, Any]) -> None:
    write_repositories(tmp_path, best=2)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=f"--grpc-port: {port} is in use on 127.0.0.1"):
            find_servable(request(tmp_path, grpc_port=port))
    assert find_servable(request(tmp_path, grpc_port=port)).endpoint.grpc == f"127.0.0.1:{port}"


@pytest.mark.usefixtures("study")
def test_the_example_request_is_a_line_of_shell_with_json_in_it(
    tmp_path: Path, host: dict[str, Any]
) -> None:
    write_repositories(tmp_path, best=2)
    found = find_servable(request(tmp_path))
    line = found.example_request()
    assert f"http://{found.endpoint.http}/v2/models/bert/infer" in line
    shown = line.replace("curl --silent", "printf '%s\\n'")
    said = subprocess.run(["bash", "-c", shown], capture_output=True, text=True, check=True)
    body = json.loads(said.stdout.splitlines()[-1])
    assert body == {
        "inputs": [
            {"name": "input_ids", "shape": [1, 32], "datatype": "INT64", "data": [0] * 32},
        ]
    }


def test_by_hand_the_embedded_server_gets_its_backend_and_its_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    options = ServerOptions((("python", "shm-default-byte-size", "1024"),))
    said = embedded_start_commands(
        RUNTIME, Path("/results/it's mine"), options, SEPARATED, ENDPOINT
    )
    made, linked, entered, started = said.splitlines()
    assert made == "backends=$(mktemp -d) && mkdir $backends/python"
    assert linked == "ln -s /opt/stub /opt/libtriton_python.so $backends/python/"
    assert shlex.split(entered) == ["cd", "/results/it's mine"]
    assert started.startswith(
        'PATH=/venv/bin:"$PATH" LD_LIBRARY_PATH=/opt/lib CUDA_VISIBLE_DEVICES= '
        "taskset --cpu-list 0,1,2 '/opt/a server/bin/tritonserver' --model-repository=. "
    )
    assert "--http-port=8000" in started
    assert "--disable-auto-complete-config" in started
    assert "--backend-config=python,shm-default-byte-size=1024" in started
    assert "--model-control-mode" not in started, "it loads what is there"
    assert started.endswith(" --backend-directory=$backends")


def test_by_hand_the_embedded_server_sees_the_gpus_of_its_slot_alone() -> None:
    gpus = Slot((0, 1), (0, 1), ("GPU-2", "GPU-1"))
    said = embedded_start_commands(RUNTIME, Path("/best"), ServerOptions(), gpus, ENDPOINT)
    assert " CUDA_VISIBLE_DEVICES=GPU-2,GPU-1 '/opt/a server" in said
    assert "--allow-gpu-metrics" not in said


def test_by_hand_a_container_gets_its_image_gpus_and_memory() -> None:
    gpus = Slot((0, 1), (0, 1), ("GPU-1", "GPU-2"))
    host = ContainerHost("nvcr.io/nvidia/tritonserver:26.05-py3", 2**30)
    said = container_start_command(host, Path("/results/best"), ServerOptions(), gpus, ENDPOINT)
    assert shlex.split(said)[:11] == [
        "docker", "run", "--rm", "--network=host", "--cpuset-cpus=0,1", "--shm-size=1073741824",
        '--gpus="device=GPU-1,GPU-2"', "--entrypoint=tritonserver",
        "--volume=/results/best:/models:ro", "nvcr.io/nvidia/tritonserver:26.05-py3",
        "--model-repository=/models",
    ]  # fmt: skip
