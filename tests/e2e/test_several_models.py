"""Several models on one real server: searched together, each with its own demand and limit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from optimizer.study.directory import StudyDirectory
from optimizer.triton.repository import read_config
from tests.e2e import tiny
from tests.e2e.conftest import StartOptimizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def two_models() -> dict[str, Any]:
    """The tiny model twice: the second alone may have two instances, and has a tighter limit."""
    content = tiny.space(
        parameters={"batching": [False], "intra_op_threads": [1], "rate_limit": ["off", 1]},
        budget={"trials": 1},
    )
    model = content["models"]["bert"]
    content["models"] = {
        "bert": {**model, "demand_per_second": 150},
        "ranker": {
            **model,
            "source": {**model["source"], "seed": 1},
            "demand_per_second": 50,
            "limit": {"latency_ms": 1000},
            "parameters": {"batching": [False, True], "max_batch_size": 4},
        },
    }
    del content["traffic"]["demand_per_second"]
    return content


def test_two_models_are_searched_and_handed_out_together(
    tmp_path: Path, start: StartOptimizer
) -> None:
    space = tiny.write_space(tmp_path, two_models())
    optimizer = start(space, "--sampler", "guided")
    assert optimizer.wait() == 0, optimizer.errors + optimizer.output
    study = StudyDirectory(tmp_path / "results" / "tiny")
    [record] = study.trials.read_all().values()
    assert [model.name for model in record.config.models] == ["bert", "ranker"]
    assert record.outcome in ("ok", "bounded"), record.reason
    assert record.measurement is not None
    loads = [level for level in record.measurement.levels if level.kind == "open_loop"]
    for level in loads:
        assert [stream.limit_ms for stream in level.streams] == [2000, 1000]
    bert, ranker = (sum(level.streams[model].sent for level in loads) for model in (0, 1))
    # Each request is for BERT with a probability of 3/4: within 5 standard deviations.
    sent = bert + ranker
    assert bert / sent == pytest.approx(0.75, abs=5 * (0.75 * 0.25 / sent) ** 0.5)
    for level in record.measurement.levels:
        assert [split.model for split in level.server] == ["bert", "ranker"]
    # Each model was calibrated alone too, with its own requests.
    calibration = list(study.calibration.read_all().values())
    alone = {
        record.config.models[0].name: record.measurement
        for record in calibration
        if len(record.config.models) == 1
    }
    assert alone.keys() == {"bert", "ranker"}
    for name, measured in alone.items():
        assert measured is not None
        assert [level.kind for level in measured.levels] == ["saturation", "open_loop"]
        for level in measured.levels:
            assert [stream.name for stream in level.streams] == [name]
            assert [split.model for split in level.server] == [name]
    # Both values of the rate limit were served by the real server.
    served = (record, *calibration)
    assert {record.config.server.executions_per_device for record in served} == {None, 1}
    summary = json.loads(study.summary.read_text())
    assert summary["demand_per_second"] == 200
    assert summary["best"]["description"].startswith("bert: onnxruntime fp32")
    for name in ("bert", "ranker"):
        assert read_config(study.best / name / "config.pbtxt").name == name
        assert (study.best / name / "1" / "model.onnx").is_file()
    assert "ranker" in optimizer.output
