"""Bursts on the real server: what they do to a configuration, and a search under such traffic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import repository_models as models
from tests.e2e import tiny
from tests.e2e.running import run_to_end

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

_CONFIG = f"{models.NUMBER}dynamic_batching {{ }}\n"
_PERIOD_SECONDS = 3.0
_IN_BURSTS = {"bursts": 3, "burst_seconds": 0.5, "period_seconds": _PERIOD_SECONDS}

_SPACE: dict[str, Any] = {
    **tiny.space(
        traffic={"demand_per_second": 400}, limit={"latency_ms": 400}, budget={"trials": 1}
    ),
    "study": "steady",
    "models": {
        "number": {
            "source": {"repository": ".", "model": "number"},
            "inputs": {"X": {"data_type": "FP32", "shape": [4], "minimum": -1, "maximum": 1}},
            "evaluation": {"samples": 6},
        }
    },
    "parameters": {"batching": [True]},
}


def test_every_request_is_answered_rejected_or_shown_as_an_error(tmp_path: Path) -> None:
    models.write_model(tmp_path, "number", _CONFIG, models.STEADY_CODE)
    path = tiny.write_space(tmp_path, _SPACE)
    optimizer = run_to_end(
        tmp_path, "run", path, "--sampler", "random", "--timeout", "200s", "--with", "bursts"
    )
    assert optimizer.process.returncode == 0, optimizer.output + optimizer.errors
    found = tmp_path / "results" / "steady" / "winner" / "bursts.json"
    assert found.exists(), optimizer.output + optimizer.errors
    unbounded, bounded = json.loads(found.read_text())["queues"]
    assert [queue["bounds"][0]["max_queue_size"] > 0 for queue in (unbounded, bounded)] == [
        False,
        True,
    ]
    for level in (*unbounded["levels"], *bounded["levels"]):
        # While a bounded queue is full, Triton 2.51 executes one batch each 500 ms.
        assert (level["first_error"] is not None) == (level["errors"] > 0)
        assert level["within_limit"] + level["rejected"] + level["errors"] / level["sent"] <= 1
    assert all(level["rejected"] == 0 for level in unbounded["levels"])
    assert bounded["levels"][-1]["rejected"] > 0
    void = any(level["void"] for level in (*unbounded["levels"], *bounded["levels"]))
    concluded = "are answered within the limit with an unbounded queue" in " ".join(
        optimizer.output.split()
    )
    assert concluded != void


def test_a_search_under_bursts_certifies_what_they_leave(tmp_path: Path) -> None:
    models.write_model(tmp_path, "number", _CONFIG, models.STEADY_CODE)
    traffic = {**_SPACE["traffic"], "arrivals": _IN_BURSTS}
    path = tiny.write_space(tmp_path, {**_SPACE, "traffic": traffic})
    optimizer = run_to_end(tmp_path, "run", path, "--sampler", "random")
    assert optimizer.process.returncode == 0, optimizer.output + optimizer.errors
    trials = (tmp_path / "results" / "steady" / "trials").glob("*.json")
    records = [json.loads(path.read_text()) for path in sorted(trials)]
    assert {record["outcome"] for record in records} <= {"ok"}
    levels = [each for record in records for each in record["measurement"]["levels"]]
    whole = [
        level["seconds"] / _PERIOD_SECONDS
        for level in levels
        if level["kind"] == "open_loop" and level["verdict"] is None
    ]
    assert whole
    assert whole == [pytest.approx(round(each)) for each in whole]
    saturation = levels[0]["load_factor"]
    capacity = records[0]["measurement"]["load_factor"]
    assert capacity < 0.9 * saturation, "a steady rate could be nearer to saturation"
