"""The acceptance test for a machine with a GPU: `make test-gpu`.

Three precisions of a small BERT are built as TensorRT engines, served by NVIDIA's container beside
ONNX Runtime's CUDA provider, held against the FP32 reference, and searched for six trials.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from optimizer.configuration.hardware import Gpu
from optimizer.configuration.releases import triton_image
from optimizer.errors import RequirementError
from optimizer.machine.docker_engine import ContainerEngine
from optimizer.machine.gpus import present_gpus
from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.directory import StudyDirectory
from tests.e2e import tiny
from tests.e2e.running import Optimizer

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(3600)]

TRIALS = 6
LEAST_COSINE = {"fp32": 0.99999, "fp16": 0.999, "int8": 0.98}


@pytest.fixture(scope="module")
def gpu() -> Gpu:
    """The first GPU of this machine, where a container can use it."""
    gpus = present_gpus()
    if not gpus:
        pytest.skip("no NVIDIA driver answers on this machine")
    try:
        ContainerEngine.connect().image(triton_image())
    except RequirementError as error:
        pytest.skip(str(error))
    return gpus[0]


def space(gpu: Gpu) -> dict[str, Any]:
    content = tiny.space(
        parameters={
            "runtime": ["tensorrt", "onnxruntime"],
            "precision": ["fp32", "fp16", "int8"],
            "batching": [False, True],
            "max_batch_size": [4, 16],
            "instance_count": [1, 2],
            "cuda_graphs": [False, True],
            "execution_policy": ["device_blocking", "blocking"],
        },
        limit={"latency_ms": 200},
        budget={"trials": TRIALS, "wall_clock": "40m"},
    )
    model = content["models"]["bert"]
    model["source"]["config"] |= {
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
        "max_position_embeddings": 128,
        "initializer_range": 0.05,
    }
    model["lengths"] = {"fixed": 128}
    model["accuracy"] = {"min_argmax_agreement": 0.7, "min_cosine": 0.95}
    content["server"] = {"launcher": "docker", "gpus": [gpu.uuid]}
    return content


@dataclass(frozen=True)
class Searched:
    """One search on the GPU, and the same once more."""

    gpu: Gpu
    study: StudyDirectory
    output: str
    again: Optimizer

    @property
    def artifacts(self) -> dict[str, dict[str, Any]]:
        rows = self.study.read_json(self.study.prepared)["artifacts"]
        return {row["artifact"].removeprefix("bert/"): row for row in rows}

    @property
    def records(self) -> list[TrialRecord]:
        return list(self.study.trials.read_all().values())


@pytest.fixture(scope="module")
def searched(gpu: Gpu, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searched]:
    folder = tmp_path_factory.mktemp("gpu")
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
        yield Searched(gpu, StudyDirectory(folder / "results" / "tiny"), first.output, again)
    finally:
        again.end()


def test_three_precisions_are_built_served_and_near_the_reference(searched: Searched) -> None:
    engines = {name: row for name, row in searched.artifacts.items() if "tensorrt" in name}
    assert {name.split("/")[1] for name in engines} == set(LEAST_COSINE)
    for name, row in engines.items():
        assert row["dropped"] is None, name
        assert row["accuracy"]["mean_cosine"] > LEAST_COSINE[name.split("/")[1]], name
        assert row["instance_mib"] > 0


def test_onnx_runtime_serves_on_the_gpu_too(searched: Searched) -> None:
    for precision in ("fp32", "fp16"):
        row = searched.artifacts[f"onnxruntime/{precision}"]
        assert row["dropped"] is None
        assert row["accuracy"]["mean_cosine"] > LEAST_COSINE[precision]


def test_six_trials_were_measured_on_the_gpu(searched: Searched) -> None:
    assert len(searched.records) == TRIALS
    for record in searched.records:
        assert record.outcome in ("ok", "infeasible", "bounded"), record.reason
        assert record.measurement is not None
        [use] = (record.measurement.levels[0].machine or pytest.fail("no machine")).gpus
        assert use.name == searched.gpu.name
        assert (use.utilization_percent or 0) > 0


def test_the_winner_names_what_it_was_built_with_and_for(searched: Searched) -> None:
    summary = searched.study.read_json(searched.study.summary)
    assert summary["machine"]["gpus"] == [searched.gpu.name]
    assert triton_image() in summary["machine"]["server"]
    model = searched.study.best / "bert"
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


def test_nothing_is_left_in_the_engine(searched: Searched) -> None:
    assert searched.study.summary.is_file()
    assert ContainerEngine.connect().reap() == ()
