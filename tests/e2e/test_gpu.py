"""The acceptance test for a machine with a GPU: `make test-gpu`.

Three precisions of MiniLM with its trained weights, at 512 tokens, are built as TensorRT engines,
served by NVIDIA's container beside ONNX Runtime's CUDA provider, held against the FP32 reference,
and searched for six trials. The winner is exported and verified, and its engine built anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from optimizer.artifacts.build_process import BuildProcess
from optimizer.artifacts.cache import ArtifactCache
from optimizer.commands.run_context import open_space
from optimizer.configuration.hardware import Gpu
from optimizer.configuration.releases import tensorrt_image, triton_image
from optimizer.errors import RequirementError
from optimizer.machine.docker_engine import ContainerEngine, ContainerTask, Mount
from optimizer.machine.gpus import present_gpus
from optimizer.study.directory import StudyDirectory
from tests.e2e import engine_on_gpu, minilm, tiny
from tests.e2e.gpu_search import SearchOnGpu, fused_attentions
from tests.e2e.running import Optimizer, run_to_end

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(3600)]

TRIALS = 6
LENGTH = 512
PRECISIONS = ("fp32", "fp16", "int8")
ATTENTIONS = 6
"""Of MiniLM."""


@pytest.fixture(scope="module")
def gpu() -> Gpu:
    """The first GPU of this machine, where a container can use it."""
    gpus = present_gpus()
    if not gpus:
        pytest.skip("no NVIDIA driver answers on this machine")
    try:
        for image in (triton_image(), tensorrt_image()):
            ContainerEngine.connect().image(image)
    except RequirementError as error:
        pytest.skip(str(error))
    return gpus[0]


def write_inputs(folder: Path) -> None:
    """Write texts of 8 to 512 tokens: half of them fill a request, half are nearly all padding."""
    texts: dict[Path, list[list[str]]] = {}
    for length in (minilm.LENGTH, LENGTH):
        minilm.write_inputs(folder, length)
        for file in (folder / "calibration.jsonl", folder / "evaluation.jsonl"):
            texts.setdefault(file, []).append(file.read_text().splitlines())
    for file, (short, long) in texts.items():
        file.write_text("".join(f"{line}\n" for line in (*short[::2], *long[1::2])))


def space(gpu: Gpu) -> dict[str, Any]:
    content = minilm.space(LENGTH)
    content["parameters"] = {
        "runtime": ["tensorrt", "onnxruntime"],
        "precision": list(PRECISIONS),
        "batching": [False, True],
        "max_batch_size": [4, 16],
        "instance_count": [1, 2],
        "cuda_graphs": [False, True],
        "execution_policy": ["device_blocking", "blocking"],
    }
    content["limit"] = {"latency_ms": 500}
    content["budget"] = {"trials": TRIALS, "wall_clock": "40m"}
    content["server"] = {"launcher": "docker", "gpus": [gpu.uuid]}
    return content


@dataclass(frozen=True)
class Searched(SearchOnGpu):
    """One search on the GPU, and the same once more."""

    gpu: Gpu
    folder: Path
    again: Optimizer


@pytest.fixture(scope="module")
def searched(gpu: Gpu, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searched]:
    folder = tmp_path_factory.mktemp("gpu")
    write_inputs(folder)
    path = tiny.write_space(folder, space(gpu))
    # At random: all of them are measured.
    arguments = ["run", path, "--cache", folder / "cache", "--sampler", "random"]
    first = Optimizer(arguments, folder)
    try:
        assert first.wait(3000) == 0, first.errors + first.output
    finally:
        first.end()
    other = ["run", path, "--cache", folder / "cache", "--study", "again", "--trials", 1]
    again = Optimizer(other, folder)
    try:
        assert again.wait(1200) == 0, again.errors + again.output
        study = StudyDirectory(folder / "results" / "minilm")
        yield Searched(study, gpu.name, gpu, folder, again)
    finally:
        again.end()


def test_three_precisions_are_built_served_and_near_the_reference(searched: Searched) -> None:
    engines = [name for name in searched.artifacts if "tensorrt" in name]
    assert {name.split("/")[1] for name in engines} == set(PRECISIONS)
    for name in engines:
        searched.assert_near_the_reference(name)


def test_every_attention_is_one_kernel(searched: Searched) -> None:
    """In FP16 and INT8, as NVIDIA's builder does without a GPU; in FP32 none is."""
    space = open_space(searched.folder / "space.yaml")
    cache, log = ArtifactCache(searched.folder / "cache"), searched.folder / "layers.log"
    specs = [s for s in space.search_space.artifacts if s.runtime == "tensorrt"]
    with BuildProcess(cache, log, threads=1, engines=space.engines) as builds:
        folders = {spec: builds.build(spec, space.models[0]).path for spec in specs}
    program = Path(engine_on_gpu.__file__)
    for spec, folder in folders.items():
        look = ContainerTask(
            tensorrt_image(),
            ("python3", f"/program/{program.name}", "layers", "/engine/model.plan"),
            mounts=(Mount(program.parent, "/program"), Mount(folder, "/engine")),
            gpu_uuids=(searched.gpu.uuid,),
        )
        running = ContainerEngine.connect().start(look)
        try:
            code, lines = running.wait(300), list(running.lines())
        finally:
            running.stop(0)
        assert code == 0, lines
        layers = json.loads(lines[-1])
        wanted = 0 if spec.precision == "fp32" else ATTENTIONS
        assert fused_attentions(layers) == wanted, f"{spec.label}: {layers}"


def test_onnx_runtime_serves_on_the_gpu_too(searched: Searched) -> None:
    for precision in ("fp32", "fp16"):
        searched.assert_near_the_reference(f"onnxruntime/{precision}")


def test_six_trials_were_measured_on_the_gpu(searched: Searched) -> None:
    searched.assert_measured(TRIALS)


def test_the_winner_names_what_it_was_built_with_and_for(searched: Searched) -> None:
    summary = searched.study.read_json(searched.study.summary)
    assert summary["machine"]["gpus"] == [searched.gpu.name]
    assert triton_image() in summary["machine"]["server"]
    model = searched.study.best / "minilm"
    assert (model / "config.pbtxt").is_file()
    if summary["best"]["config"]["models"][0]["artifact"]["runtime"] == "tensorrt":
        facts = json.loads((model / "1" / "plan.json").read_text())
        assert facts["gpu_name"] == searched.gpu.name
        assert tuple(facts["compute_capability"]) == searched.gpu.compute_capability
        assert (model / "1" / "model.plan").stat().st_size > 0


def test_a_second_search_builds_no_engine(searched: Searched) -> None:
    summary = json.loads(
        (searched.study.root.parent / "again" / "summary.json").read_text(encoding="utf-8")
    )
    assert summary["building_seconds"] == 0
    assert "built in" not in searched.again.output


def test_the_winner_is_exported_verified_and_its_engine_built_anew(searched: Searched) -> None:
    folder, gpu = searched.folder, searched.gpu
    exported = run_to_end(folder, "export", "minilm", "--to", "bundle")
    assert exported.process.returncode == 0, exported.errors
    bundle = folder / "bundle"
    plan = bundle / "minilm" / "1" / "model.plan"
    assert plan.is_file(), "TensorRT is faster than ONNX Runtime"
    before = plan.stat().st_mtime_ns
    lax = ("--within", 100_000)  # other work on the machine is no fault of the bundle
    verified = run_to_end(folder, "verify", bundle, *lax)
    assert verified.process.returncode == 0, verified.output + verified.errors
    rebuild = ContainerTask(
        tensorrt_image(),
        ("python3", "rebuild_engines.py"),
        working_directory="/bundle",
        mounts=(Mount(bundle, "/bundle", read_only=False),),
        gpu_uuids=(gpu.uuid,),
    )
    running = ContainerEngine.connect().start(rebuild)
    try:
        assert running.wait(1200) == 0, list(running.lines())
    finally:
        running.stop(0)
    assert plan.stat().st_mtime_ns > before
    verified = run_to_end(folder, "verify", bundle, "--allow-code", *lax)
    assert verified.process.returncode == 0, verified.output + verified.errors


def test_nothing_is_left_in_the_engine(searched: Searched) -> None:
    assert searched.study.summary.is_file()
    assert ContainerEngine.connect().reap() == ()
