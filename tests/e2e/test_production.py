"""What is written for production, started: by a real Triton, as the platforms would."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import tarfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.error import URLError

import boto3
import botocore.session
import botocore.validate
import pytest

from optimizer.export.monitoring.rules import monitoring_files
from optimizer.export.platforms.formats import PLATFORMS
from optimizer.export.platforms.sagemaker import write_model_archive
from optimizer.export.platforms.server import REPOSITORY, server_command
from optimizer.triton.embedded import find_embedded_runtime
from optimizer.triton.launcher import free_ports
from tests.e2e.conftest import Built, Searched, StartOptimizer
from tests.e2e.production import DEPLOYMENT, REQUEST, write_repository
from tests.e2e.running import wait_until
from tests.unit.deployments import platform_files

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def repository(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, as it is handed out."""
    return write_repository(built, tmp_path_factory.mktemp("exported") / "repository")


@contextmanager
def started(command: list[str], folder: Path, **environment: str) -> Iterator[None]:
    """A program that finds `tritonserver` on its PATH, as in an image."""
    runtime = find_embedded_runtime()
    own = dict(runtime.environment)
    programs = folder / "bin"
    programs.mkdir()
    (programs / "tritonserver").symlink_to(runtime.binary)
    backends = runtime.lay_out(folder / "backends")
    command = [*command, f"--backend-directory={backends}"]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, **own, **environment, "PATH": f"{programs}:{own['PATH']}"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()


def answers(url: str, body: object = None) -> str | None:
    """The reply's text; None where nobody answers, or not yet."""
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            text: str = reply.read().decode()
            return text
    except (URLError, ConnectionError):
        return None


class Runtime:
    """The client of boto3 by which endpoints are asked, before a server on this machine.

    Attributes:
        sent: content types of the requests.
    """

    def __init__(self, port: int) -> None:
        self._address = f"http://127.0.0.1:{port}/invocations"
        self.sent: list[str] = []

    def invoke_endpoint(self, **given: Any) -> dict[str, Any]:
        shape = botocore.session.get_session().get_service_model("sagemaker-runtime")
        botocore.validate.validate_parameters(
            given, shape.operation_model("InvokeEndpoint").input_shape
        )
        assert given["EndpointName"] == DEPLOYMENT.name
        self.sent.append(given["ContentType"])
        body = given["Body"]
        request = urllib.request.Request(
            self._address,
            body.encode() if isinstance(body, str) else body,
            {"Content-Type": given["ContentType"]},
        )
        with urllib.request.urlopen(request, timeout=10) as reply:
            return {"ContentType": reply.headers["Content-Type"], "Body": BytesIO(reply.read())}


def ask_as_the_readme_does(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    [code] = re.findall(
        "```python\n(.*?)```", platform_files("sagemaker", DEPLOYMENT)["README.md"], re.DOTALL
    )
    monkeypatch.setattr(boto3, "client", {"sagemaker-runtime": runtime}.__getitem__)
    exec(compile(code, "README.md", "exec"), {})


def test_the_archive_of_sagemaker_answers_ping_and_invocations(
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_model_archive(repository, ["bert"], tmp_path / "model.tar.gz")
    files = platform_files("sagemaker", DEPLOYMENT)
    (tmp_path / "serve").write_text(files["image/serve"])
    with tarfile.open(tmp_path / "model.tar.gz") as archive:
        archive.extractall(tmp_path / "opt-ml-model", filter="data")
    environment = json.loads(files["create-model.json"])["PrimaryContainer"]["Environment"]
    [port] = free_ports(1)
    with started(
        ["sh", str(tmp_path / "serve")],
        tmp_path,
        **environment,
        MODEL_REPOSITORY=str(tmp_path / "opt-ml-model"),
        SAGEMAKER_BIND_TO_PORT=str(port),
    ):
        address = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(f"{address}/ping") is not None, "an answer to /ping")
        reply = answers(f"{address}/invocations", REQUEST)
        assert reply is not None
        [output] = json.loads(reply)["outputs"]
        assert output["shape"] == [1, 3]
        assert answers(f"{address}/v2/models/bert") is None
        runtime = Runtime(port)
        ask_as_the_readme_does(runtime, monkeypatch)
    binary, text = runtime.sent
    assert binary.startswith("application/vnd.sagemaker-triton.binary+json;json-header-size=")
    assert text == "application/json"
    as_bytes, as_json = capsys.readouterr().out.strip().split("\n")
    [told] = ast.literal_eval(as_json)
    name, _, values = as_bytes.partition(" ")
    assert (name, told["shape"]) == (told["name"], output["shape"])
    assert [float(each) for each in values.strip("[]").split()] == pytest.approx(
        told["data"], rel=1e-4
    )
    assert told["data"] == pytest.approx(output["data"], rel=1e-4)


def test_a_server_of_the_manifests_shows_every_metric_that_is_watched(
    repository: Path, tmp_path: Path
) -> None:
    http, grpc, metrics = free_ports(3)
    command = [
        re.sub("^--metrics-port=.*", f"--metrics-port={metrics}", argument)
        for argument in server_command(DEPLOYMENT, http, grpc)
    ]
    command[command.index(f"--model-repository={REPOSITORY}")] = f"--model-repository={repository}"
    command += [f"--{what}-address=127.0.0.1" for what in ("http", "grpc", "metrics")]
    with started(command, tmp_path):
        address, counters = f"http://127.0.0.1:{http}/v2", f"http://127.0.0.1:{metrics}/metrics"
        wait_until(lambda: answers(f"{address}/health/ready") is not None, "a ready server")
        # Triton opens this port after the others.
        wait_until(lambda: answers(counters) is not None, "its metrics")
        idle = answers(counters)
        for _ in range(5):
            assert answers(f"{address}/models/bert/infer", REQUEST) is not None
        shown = answers(counters)
    assert idle is not None
    assert shown is not None
    files = monitoring_files(DEPLOYMENT) | platform_files("kubernetes", DEPLOYMENT)
    watched = set(re.findall(r"\bnv_\w+", "".join(files.values())))
    for name in watched:
        assert f"\n{name}{{" in shown, f"Triton has no {name}"
    assert 'nv_inference_request_summary_us{model="bert",version="1",quantile="0.95"}' in shown
    for reason in ("BACKEND", "CANCELED"):
        assert re.search(f'nv_inference_request_failure{{.*reason="{reason}".*}} 0', shown)
    model = '{model="bert",version="1"}'
    assert f"\nnv_inference_request_success{model} 0\n" in idle, "asked for nothing, it is up"
    assert f"\nnv_inference_request_success{model} 5\n" in shown
    for found in (idle, shown):
        assert f"\nnv_inference_pending_request_count{model} 0\n" in found, "none is left waiting"


def test_a_study_is_exported_for_every_platform(
    searched: Searched, start: StartOptimizer, tmp_path: Path
) -> None:
    searched.copy_to(tmp_path)
    for name in PLATFORMS:
        export = start("tiny", "--format", name, "--no-examples", "--to", name, command="export")
        assert export.wait() == 0, export.errors
        assert f"{name}: {name}" in export.output
        assert (tmp_path / name / "README.md").exists()
    manifests = (tmp_path / "kubernetes/base/deployment.yaml").read_text()
    assert "cpu:" in manifests, "what the server used is known"
    with tarfile.open(tmp_path / "sagemaker/model.tar.gz") as archive:
        assert "bert/1/model.onnx" in archive.getnames()


def test_what_a_platform_cannot_host_is_refused_and_nothing_is_left(
    searched: Searched, start: StartOptimizer, tmp_path: Path
) -> None:
    searched.copy_to(tmp_path)
    searched_space = tmp_path / "results" / "tiny" / "searched.json"
    text = searched_space.read_text()
    assert "ml.c5.xlarge" in text
    searched_space.write_text(text.replace("ml.c5.xlarge", "test.large"))
    export = start("tiny", "--format", "sagemaker", "--to", "out", command="export")
    assert export.wait() == 2
    assert "begin with 'ml.', the study's is test.large" in export.errors
    assert not (tmp_path / "out").exists()
