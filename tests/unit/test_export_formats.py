from __future__ import annotations

import getpass
import json
import os
import re
import socket
import tarfile
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from optimizer.configuration.model_graph import ComposedModel, ModelGraph, in_sequence
from optimizer.configuration.serving_config import (
    Batching,
    InstanceGroup,
    ServerOptions,
    ServingConfig,
)
from optimizer.errors import UsageError
from optimizer.export import rendering
from optimizer.export.deployment import (
    Deployment,
    Input,
    container_image,
    deployment_of,
    embedded_image,
    resource_name,
    startup_seconds,
)
from optimizer.export.platforms.formats import PLATFORMS
from optimizer.measurement.cost import Candidate, Demand, Price, Score
from optimizer.measurement.level import BatchPoint, LoadLevel, ServerSplit
from optimizer.measurement.resource_use import MachineUse
from optimizer.triton.embedded import SERVER_PACKAGE
from optimizer.workload.request_sizes import LengthDistribution
from optimizer.workload.streams import Payloads, TensorSpec, Workload
from optimizer.workload.transport import Transport
from tests.unit.deployments import ALL, ON_CPU, ON_GPU, SEVERAL, platform_files
from tests.unit.studies import LIMIT_MS, measured
from tests.unit.tables import WORKLOAD as STUDIED
from tests.unit.test_export_kubernetes import documents
from tests.unit.test_model_config import MODEL


def repository(folder: Path, deployment: Deployment) -> Path:
    root = folder / "bundle"
    for model in deployment.models:
        version = root / model.name / "1"
        version.mkdir(parents=True)
        (version / "model.py").write_text("pass\n")
        (version.parent / "config.pbtxt").write_text(f'name: "{model.name}"\n')
    (root / "manifest.json").write_text("{}\n")
    return root


def written(platform: str, deployment: Deployment, folder: Path) -> Path:
    target = folder / "target"
    target.mkdir()
    PLATFORMS[platform].write(deployment, repository(folder, deployment), target)
    return target


def cases() -> Iterator[tuple[str, Deployment]]:
    for name in PLATFORMS:
        for deployment in ALL:
            if (name, deployment) != ("sagemaker", SEVERAL):
                yield name, deployment


HOSTILE = 'a"b: {{ $x }} # ${Image} \\ \u2028 \n - é'


@pytest.mark.parametrize("name", sorted(PLATFORMS))
def test_a_value_cannot_break_out_of_its_place(name: str) -> None:
    """Whatever a template prints is one scalar of YAML or JSON."""
    deployment = replace(
        ON_GPU, flags=(HOSTILE, "null"), models=(replace(ON_GPU.models[0], name=HOSTILE),)
    )
    plain = platform_files(name, replace(ON_GPU, flags=("a", "b")))
    for path, text in platform_files(name, deployment).items():
        if path.endswith(".json"):
            read, expected = json.loads(text), json.loads(plain[path])
        elif path.endswith((".yaml", ".yml")):
            read, expected = documents(text), documents(plain[path])
        else:
            continue
        assert keys(read) == keys(expected), path


def keys(value: Any) -> Any:
    """The keys of nested mappings and the lengths of lists, without any value."""
    if isinstance(value, dict):
        return {key: keys(item) for key, item in value.items()}
    return [keys(item) for item in value] if isinstance(value, list) else None


def test_every_folder_of_templates_is_a_format() -> None:
    folders = {path.name for path in (Path(rendering.__file__).parent / "templates").iterdir()}
    assert folders - {"bundle", "patch", "shared", "space"} == set(PLATFORMS)


def texts(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("*"):
        if path.name == "model.tar.gz":
            with tarfile.open(path) as archive:
                for entry in archive:
                    file = archive.extractfile(entry)
                    yield entry.name, file.read() if file is not None else b""
                    yield f"owner of {entry.name}", f"{entry.uname} {entry.gname}".encode()
        elif path.is_file():
            yield str(path.relative_to(folder)), path.read_bytes()


SECRETS = re.compile(
    rb"AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY|\b\d{12}\b"
    rb"|(?i:\b(?:password|secret|token)\b)\s*[:=]\s*\S"
)


@pytest.mark.parametrize(
    ("platform", "deployment"), list(cases()), ids=lambda value: str(value)[:20]
)
def test_nothing_names_this_machine_holds_a_secret_or_a_pickle(
    platform: str, deployment: Deployment, tmp_path: Path
) -> None:
    own = {socket.gethostname(), os.uname().nodename, str(tmp_path), str(Path.cwd())}
    own |= {str(Path.home()), os.environ.get("VIRTUAL_ENV", str(tmp_path))}
    if getpass.getuser() not in {"root", "user"}:  # these are words of the files themselves
        own.add(getpass.getuser())
    for name, content in texts(written(platform, deployment, tmp_path)):
        for word in own - {"/", "localhost"}:
            found = re.search(rb"(?<!\w)" + re.escape(word.encode()) + rb"\b", content)
            assert found is None, f"{name} names {word}"
        assert SECRETS.search(content) is None, name
        assert b"pickle" not in content.lower(), name
        assert not content.startswith((b"\x80\x04", b"\x80\x05")), f"{name} is a pickle"


@pytest.mark.parametrize("platform", ["kubernetes", "kserve", "compose"])
def test_the_repository_goes_with_the_image_that_holds_it(platform: str, tmp_path: Path) -> None:
    target = written(platform, SEVERAL, tmp_path)
    assert (target / "repository/bert/config.pbtxt").exists()
    assert (target / "repository/manifest.json").exists()
    assert "repository /models\n" in (target / "Dockerfile").read_text()
    assert (target / "monitoring/triton-rules.yaml").exists()
    assert "## Roll back" in (target / "README.md").read_text()


def test_sagemaker_gets_the_models_as_an_archive(tmp_path: Path) -> None:
    target = written("sagemaker", ON_CPU, tmp_path)
    with tarfile.open(target / "model.tar.gz") as archive:
        assert "bert/config.pbtxt" in archive.getnames()
        assert "manifest.json" not in archive.getnames()


def test_what_sagemaker_cannot_host_is_refused_before_anything_is_moved(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        written("sagemaker", SEVERAL, tmp_path)
    assert (tmp_path / "bundle/manifest.json").exists()


def test_monitoring_alone_is_rules_test_and_dashboard(tmp_path: Path) -> None:
    target = written("monitoring", ON_GPU, tmp_path)
    assert {path.relative_to(target).as_posix() for path in target.rglob("*.*")} == {
        "README.md",
        "monitoring/grafana-dashboard.json",
        "monitoring/triton-rules.yaml",
        "monitoring/triton-rules-test.yaml",
    }


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("quickstart", "quickstart"),
        ("bert-large-v2", "bert-large-v2"),
        ("x" * 40, "x" * 40),
        ("BERT_large_v2", "bert-large-v2-[0-9a-f]{6}"),
        ("42", "triton-42-[0-9a-f]{6}"),
        ("0___", "triton-0-[0-9a-f]{6}"),
        ("x" * 32 + "_" * 20 + "y", "x" * 32 + "-[0-9a-f]{6}"),
    ],
)
def test_names_are_such_as_kubernetes_and_sagemaker_take(text: str, name: str) -> None:
    assert re.fullmatch(name, resource_name(text))


@given(st.sets(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", fullmatch=True), min_size=2))
@example({"bert-large", "bert_large", "BERT-large", "bert-large-"})
@example({"x" * 40, "x" * 41, "x" * 42})
def test_no_two_studies_come_to_one_name(studies: set[str]) -> None:
    names = {resource_name(study) for study in studies}
    assert len(names) == len(studies)
    for name in names:
        assert re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", name)


@pytest.mark.parametrize(
    ("price", "node_type"),
    [
        (Price("ml.g4dn.12xlarge", 4.89, "list", "2026-01-01"), "g4dn.12xlarge"),
        (Price("c7i.metal-24xl", 4.28, "list", "2026-01-01"), "c7i.metal-24xl"),
        (Price("m5.large", 0.1, "space file", "2026-01-01"), "m5.large"),
        (Price("test.large", 0.1, "space file", "2026-01-01"), None),
        (Price("my-machine", 0.5, "our contract", "2026-01-01"), None),
        (Price("n2-standard-4", 0.2, "space file", "2026-01-01"), None),
        (Price("m5.large", 0.3, "bought", "2026-01-01", rate="owned"), None),
    ],
    ids=lambda value: value.instance_type if isinstance(value, Price) else "",
)
def test_nodes_are_called_after_what_ec2_has(price: Price, node_type: str | None) -> None:
    assert replace(ON_CPU, price=price).node_type == node_type


def test_the_summary_tells_what_measured_from_what_is_paid_for() -> None:
    measured = replace(ON_CPU, description="int8", measured_on="Some CPU, 2 cores")
    assert measured.summary == (
        "int8: 850 requests/s per instance, measured on Some CPU, 2 cores;"
        " 8 x ml.c5.xlarge (the priced type) for 5000 requests/s"
    )
    assert replace(measured, measured_on=None).summary == (
        "int8: 850 requests/s per instance; 8 x ml.c5.xlarge (the priced type) for 5000 requests/s"
    )


CONFIG = ServingConfig(
    (
        replace(
            MODEL,
            max_batch_size=8,
            batching=Batching(max_queue_delay_us=2500),
            groups=(InstanceGroup("KIND_GPU", 2, (0, 1)),),
        ),
    ),
    server=ServerOptions(backend_config=(("tensorrt", "execution-policy", "BLOCKING"),)),
)
DEMAND = Demand(200, headroom=0.5)
PRICE = Price("ml.c5.xlarge", 0.204, "tested", "2026-09-01")
IMAGE = container_image("triton:26.05", [])


def candidate(machine: MachineUse | None = None, server: tuple[ServerSplit, ...] = ()) -> Candidate:
    found = measured(40.0, 60.0, demand=STUDIED.demand_per_second)
    levels: tuple[LoadLevel, ...] = tuple(
        replace(level, machine=machine, server=server) for level in found.levels
    )
    return Candidate(CONFIG, replace(found, levels=levels), Score(1.0, 8, 1.6, 1.0), 50.0)


def workload(transport: Transport) -> Workload:
    return replace(STUDIED, transport=transport)


def test_a_deployment_is_what_was_measured() -> None:
    split = ServerSplit("bert", 10, 3.5, 0, 1, 0, (BatchPoint(2, 4, 1.0), BatchPoint(8, 4, 2.0)))
    machine = MachineUse(2.0, 4, 3.0, 500.0, None)
    found = deployment_of(
        "My study",
        candidate(machine, (split,)),
        workload(Transport("http")),
        DEMAND,
        PRICE,
        IMAGE,
        load_seconds=20.0,
    )
    assert found.name == resource_name("My study")
    assert found.flags == (
        "--disable-auto-complete-config",
        "--backend-config=tensorrt,execution-policy=BLOCKING",
    )
    [model] = found.models
    assert model.requests_per_second == pytest.approx(40)
    assert (model.limit.percentile, model.limit.latency_ms) == (95, LIMIT_MS)
    assert (model.latency_ms, model.queue_ms, model.batch_size) == (60.0, 3.5, 5.0)
    assert (model.largest_batch, model.queue_delay_ms) == (8, 2.5)
    assert (found.resources.cores, found.resources.memory_mib) == (1.5, 500.0)
    assert found.resources.gpus == 2
    # 200 a second, and half of that free, by instances of 40.
    assert found.replicas == 8
    assert found.target_per_second == pytest.approx(40 / 1.5)
    assert found.protocol == "http"
    assert startup_seconds(found) == 100


def test_a_request_is_shown_as_long_as_the_longest_that_was_measured() -> None:
    tensors = (TensorSpec("ids", "INT64", (None,), 3, 9), TensorSpec("scale", "FP32", (2,), -1, 1))
    payloads = Payloads(tensors, LengthDistribution((8, 32), (0.5, 0.5)))
    [stream] = STUDIED.streams
    asked = replace(STUDIED, streams=(replace(stream, payloads=payloads),))
    [model] = deployment_of("s", candidate(), asked, DEMAND, PRICE, IMAGE).models
    assert model.inputs == (
        Input("ids", "INT64", (1, 32), 3),
        Input("scale", "FP32", (1, 2), -1),
    )


def test_the_steps_of_a_pipeline_are_watched_and_not_sent_to() -> None:
    whole = candidate()
    [served] = whole.config.models
    steps = (replace(served, name="tokenizer"), replace(served, name="encoder"))
    top = ComposedModel("bert", "ensemble", in_sequence(("tokenizer", "encoder")))
    config = replace(whole.config, models=(*steps, served), graph=ModelGraph((top,)))
    batches = (BatchPoint(2, 4, 1.0), BatchPoint(8, 4, 2.0))
    splits = (
        ServerSplit("tokenizer", 10, 0.5, 0, 1, 0, (BatchPoint(1, 10, 1.0),), step=True),
        ServerSplit("encoder", 20, 3.5, 0, 1, 0, batches, step=True),
        ServerSplit("bert", 10, 0.0, 0, 2, 0, batches, ensemble=True),
    )
    measured = candidate(None, splits).measurement
    asked = workload(Transport())
    own = replace(whole, config=config, measurement=measured)
    found = deployment_of("s", own, asked, DEMAND, PRICE, IMAGE)
    [model] = found.models
    assert (model.name, model.queue_ms, model.batch_size) == ("bert", None, None)
    tokenizer, encoder = found.steps
    assert (tokenizer.queue_ms, tokenizer.batch_size) == (0.5, 1.0)
    assert (encoder.queue_ms, encoder.batch_size, encoder.step) == (3.5, 5.0, True)
    # It is called twice for each request.
    assert encoder.requests_per_second == pytest.approx(2 * model.requests_per_second)


def test_what_was_not_seen_stays_unknown() -> None:
    found = deployment_of("s", candidate(), workload(Transport()), DEMAND, PRICE, IMAGE)
    assert (found.models[0].queue_ms, found.models[0].batch_size) == (None, None)
    assert (found.resources.cores, found.resources.memory_mib) == (None, None)


def test_nothing_is_deployed_that_served_nothing() -> None:
    none = replace(candidate(), measurement=replace(candidate().measurement, load_factor_low=0.0))
    with pytest.raises(ValueError, match="the limits were met at no load"):
        deployment_of("s", none, workload(Transport()), DEMAND, PRICE, IMAGE)


def test_images() -> None:
    embedded = embedded_image(["numpy==1.26.4"], SERVER_PACKAGE, "3.12")
    assert embedded.base == "python:3.12-slim-bookworm"
    assert embedded.packages == (SERVER_PACKAGE, "numpy==1.26.4")
    assert container_image("triton:1", [], 3 * 2**20).shared_memory_mib == 3
    assert container_image("triton:1", []).shared_memory_mib == 1024


def test_the_server_in_the_image_is_the_one_that_is_installed_here() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert SERVER_PACKAGE in project["project"]["optional-dependencies"]["embedded"]
