"""The sections that say where the server runs and how engines are built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from optimizer.configuration.hardware import Gpu, Hardware
from optimizer.configuration.hosting import ContainerHost, EmbeddedHost, EngineSettings, RemoteHost
from optimizer.configuration.releases import triton_image
from optimizer.errors import RequirementError, SpaceFileError
from optimizer.files.shipped import shipped
from optimizer.fleet.price_list import shipped_prices
from optimizer.space_file.reader import Space, load_space

GPUS = tuple(Gpu(f"GPU-{n}", "Tesla T4", (7, 5), 15360) for n in range(3))
HARDWARE = Hardware(4, 16_000, GPUS)
REST = """
study: there
models:
  bert:
    source: {class: BertForSequenceClassification, config: {vocab_size: 100}}
    inputs: {input_ids: {minimum: 0, maximum: 99}}
    lengths: {fixed: 32}
price: {instance_type: ml.g4dn.xlarge}
"""
DOCKER = "server: {launcher: docker, image: 'mine:26.07', gpus: all}\n"
ON_GPUS = "parameters: {runtime: tensorrt}\n"
ON_CPU = "parameters: {runtime: onnxruntime}\n"
SMALLEST = (
    "{source: {class: B, config: {}}, inputs: {x: {minimum: 0, maximum: 1}}, lengths: {fixed: 4}"
)
ADDRESSES = "grpc: 'a:1', http: 'a:2', metrics: 'a:3', repository: models"


def load(folder: Path, text: str, hardware: Hardware = HARDWARE) -> Space:
    path = folder / "space.yaml"
    path.write_text(text + REST)
    return load_space(path, shipped_prices(), hardware)


def mistakes(folder: Path, text: str) -> list[str]:
    with pytest.raises(SpaceFileError) as caught:
        load(folder, text)
    return [f"{mistake.key}: {mistake.rule}" for mistake in caught.value.mistakes]


def test_the_embedded_server_is_what_one_gets(tmp_path: Path) -> None:
    space = load(tmp_path, ON_CPU)
    assert space.host == EmbeddedHost()
    assert space.engines is None
    assert space.search_space.hardware.gpus == ()


def test_the_embedded_server_has_its_python_backend_alone_on_gpus_too(tmp_path: Path) -> None:
    space = load(tmp_path, "server: {gpus: [GPU-1]}\n" + ON_CPU)
    assert space.host == EmbeddedHost()
    assert space.search_space.hardware.gpus == (GPUS[1],)
    [spec] = space.search_space.artifacts
    assert (spec.runtime, spec.backend) == ("onnxruntime", "python")


def test_a_container_serves_on_the_gpus_that_are_named(tmp_path: Path) -> None:
    text = "server: {launcher: docker, gpus: [GPU-2, 0], shared_memory_mib: 2048}\n" + ON_GPUS
    space = load(tmp_path, text)
    assert space.host == ContainerHost(triton_image(), 2048 * 2**20)
    assert [gpu.uuid for gpu in space.search_space.hardware.gpus] == ["GPU-0", "GPU-2"]


def test_engines_are_built_in_the_servers_own_image(tmp_path: Path) -> None:
    space = load(tmp_path, DOCKER + ON_GPUS)
    assert space.engines == EngineSettings("trtexec", "mine:26.07", GPUS[0])


def test_or_in_the_tensorrt_image_of_the_same_release(tmp_path: Path) -> None:
    engines = "engines: {build_in: container, workspace_mib: 512, timeout: 2h}\n"
    space = load(tmp_path, DOCKER + engines + ON_GPUS)
    image = "nvcr.io/nvidia/tensorrt:26.07-py3"
    assert space.engines == EngineSettings("container", image, GPUS[0], 512, 3, 7200.0)


def test_or_by_the_local_package(tmp_path: Path) -> None:
    space = load(tmp_path, DOCKER + "engines: {build_in: local}\n" + ON_GPUS)
    assert space.engines == EngineSettings("local", "", GPUS[0])


def test_a_remote_servers_repository_is_a_folder_here(tmp_path: Path) -> None:
    space = load(tmp_path, f"server: {{launcher: remote, {ADDRESSES}}}\n" + ON_CPU)
    assert space.host == RemoteHost("a:1", "a:2", "a:3", tmp_path.resolve() / "models")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("server: {image: 'x:1'}\n" + ON_CPU, ["server.image: needs launcher docker"]),
        (
            "server: {launcher: remote, grpc: here}\n" + ON_CPU,
            ["server.grpc: must match pattern"],
        ),
        (
            "server: {launcher: remote}\n" + ON_CPU,
            [f"server.{key}: is needed" for key in ("grpc", "http", "metrics", "repository")],
        ),
        ("server: {http: 'a:1'}\n" + ON_CPU, ["server.http: is needed with launcher remote"]),
        (
            f"server: {{launcher: remote, {ADDRESSES}}}\nparameters: {{rate_limit: ['off', 1]}}\n",
            ["parameters.rate_limit: must be off with launcher remote"],
        ),
        (
            DOCKER + "traffic: {transport: {shared_memory: true}}\n" + ON_GPUS,
            ["traffic.transport.shared_memory: needs launcher embedded"],
        ),
        (DOCKER + "engines: {optimization_level: 6}\n" + ON_GPUS, ["engines.optimization_level"]),
        (DOCKER + "parameters: {runtime: openvino}\n", ["parameters: no combination of values"]),
    ],
)
def test_what_does_not_go_together_is_named(tmp_path: Path, text: str, found: list[str]) -> None:
    said = mistakes(tmp_path, text)
    assert len(said) == len(found)
    for line in found:
        assert any(each.startswith(line) for each in said), said


@pytest.mark.parametrize("gpus", ["[3]", "[GPU-9]", "[0, 7]"])
def test_a_gpu_that_is_not_there_is_named(tmp_path: Path, gpus: str) -> None:
    text = f"server: {{launcher: docker, gpus: {gpus}}}\n" + ON_GPUS
    with pytest.raises(
        RequirementError, match=r"this machine has 0, 1, 2, GPU-0.*; got (3|GPU-9|7)"
    ):
        load(tmp_path, text)


def test_a_machine_without_gpus_says_so(tmp_path: Path) -> None:
    with pytest.raises(RequirementError, match=r"gpus is all, but this machine has no working"):
        load(tmp_path, DOCKER + ON_GPUS, Hardware(4, 16_000))


def test_several_models_have_their_own_demands_limits_and_parameters(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(
        "study: two\nmodels:\n"
        f"  a: {SMALLEST}, demand_per_second: 30}}\n"
        f"  b: {SMALLEST}, demand_per_second: 10, limit: {{latency_ms: 50}},"
        " parameters: {instance_count: 7}}\n"
        "price: {instance_type: ml.g4dn.xlarge}\n"
        "parameters: {runtime: tensorrt, instance_count: 2}\n" + DOCKER
    )
    space = load_space(path, shipped_prices(), HARDWARE)
    a, b = space.workload.streams
    assert (a.demand_per_second, b.demand_per_second) == (30, 10)
    assert (a.limit.latency_ms, b.limit.latency_ms) == (500, 50)
    assert space.demand.requests_per_second == 40
    config = space.search_space.config(space.search_space.baseline)
    assert [model.groups[0].count for model in config.models] == [2, 7]


@pytest.mark.parametrize(("models", "demand"), [("a", ", demand_per_second: 3"), ("ab", "")])
def test_demand_stands_where_it_belongs(tmp_path: Path, models: str, demand: str) -> None:
    path = tmp_path / "space.yaml"
    rows = "".join(f"  {name}: {SMALLEST}{demand}}}\n" for name in models)
    path.write_text(f"study: s\nmodels:\n{rows}price: {{instance_type: ml.g4dn.xlarge}}\n" + ON_CPU)
    with pytest.raises(SpaceFileError) as caught:
        load_space(path, shipped_prices(), HARDWARE)
    keys = [mistake.key for mistake in caught.value.mistakes]
    assert keys == [f"models.{name}.demand_per_second" for name in models]


@pytest.mark.parametrize("count", [1, 4])
def test_the_benchmarks_space_loads_on_a_machine_with_t4s(count: int) -> None:
    gpus = tuple(Gpu(f"GPU-{n}", "Tesla T4", (7, 5), 15360) for n in range(count))
    path = shipped("search_spaces/bert_large.yaml")
    space = load_space(path, shipped_prices(), Hardware(4, 16_000, gpus))
    [stream] = space.workload.streams
    assert (stream.demand_per_second, stream.limit.percentile) == (500, 95)
    assert (stream.limit.latency_ms, stream.payloads.lengths.longest) == (500, 512)
    labels = {f"{spec.runtime}/{spec.precision}" for spec in space.search_space.artifacts}
    assert labels == {
        "pytorch/fp32", "pytorch/fp16", "tensorrt/fp32", "tensorrt/fp16", "tensorrt/int8",
    }  # fmt: skip
    baseline = space.search_space.config(space.search_space.baseline).models[0]
    assert (baseline.artifact.runtime, baseline.artifact.precision) == ("pytorch", "fp32")
    assert isinstance(space.host, ContainerHost)
    dockerfile = shipped("search_spaces/bert_large.Dockerfile").read_text()
    assert f"FROM {triton_image()}\n" in dockerfile
    json.dumps(space.content, allow_nan=False)
