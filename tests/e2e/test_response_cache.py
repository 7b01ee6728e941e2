"""The response cache on the real server: its share of hits, and whether it is recommended."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import tiny
from tests.e2e.repository_models import write_model
from tests.e2e.running import Optimizer, run_to_end

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

# A response takes 4 KiB of the cache, which holds a few hundred of them.
CONFIG = """\
backend: "python"
max_batch_size: 4
input [ { name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "VECTOR" data_type: TYPE_FP32 dims: [ 1000 ] } ]
"""
CODE = """
        time.sleep(0.002)
        rows = [len(tensor(request, "TEXT")) for request in requests]
        return [response(VECTOR=np.ones((n, 1000), dtype=np.float32)) for n in rows]
"""
POPULATION = 2000


def search(folder: Path, traffic: Mapping[str, Any]) -> Optimizer:
    """Search the cache on and off."""
    write_model(folder / "models", "embedder", CONFIG, CODE)
    content = tiny.space(
        measurement={"saturation_seconds": 0.6, "check_seconds": 0.5, "confirm_seconds": 0.3},
        traffic={"demand_per_second": 20_000, **traffic},
        budget={"trials": 2},
    )
    content["models"] = {
        "embedder": {
            "source": {"repository": "models", "model": "embedder"},
            "inputs": {"TEXT": {"data_type": "BYTES", "shape": [1], "pattern": "[a-z]{12,20}"}},
            "evaluation": {"samples": 6},
        }
    }
    content["parameters"] = {"response_cache": [False, True], "response_cache_mib": 1}
    optimizer = run_to_end(folder, "run", tiny.write_space(folder, content), "--sampler", "grid")
    assert optimizer.process.returncode == 0, optimizer.output + optimizer.errors
    return optimizer


def cached_splits(folder: Path) -> list[dict[str, Any]]:
    """What the server counted in every level with the cache."""
    study = folder / "results" / "tiny"
    files = [*study.glob("trials/*.json"), *study.glob("confirmations/*.json")]
    records = [json.loads(file.read_text()) for file in files]
    cached = [each for each in records if each["config"]["models"][0]["cache"]]
    assert {each["outcome"] for each in cached} <= {"ok", "bounded"}
    return [s for each in cached for x in each["measurement"]["levels"] for s in x["server"]]


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Optimizer]:
    folder = tmp_path_factory.mktemp("repeated")
    return folder, search(folder, {"repeats": {"zipf": 1.1, "population": POPULATION}})


@pytest.fixture(scope="module")
def unique(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Optimizer]:
    folder = tmp_path_factory.mktemp("unique")
    return folder, search(folder, {})


def test_the_share_of_hits_on_zipf_traffic_is_the_expected_one(
    repeated: tuple[Path, Optimizer],
) -> None:
    splits = cached_splits(repeated[0])
    hits = sum(split["cache_hits"] for split in splits)
    asked = sum(split["requests"] for split in splits)
    [expected] = {split["expected_hit_rate"] for split in splits}
    assert 0.6 < expected < 0.9, "neither everything nor nothing fits"
    assert asked > 2000
    assert hits / asked == pytest.approx(expected, abs=0.02)
    for split in splits:
        executed = sum(point["batch_size"] * point["executions"] for point in split["batches"])
        assert executed == pytest.approx(split["requests"] - split["cache_hits"], abs=8)


def test_the_cache_is_recommended_where_requests_repeat(repeated: tuple[Path, Optimizer]) -> None:
    folder, optimizer = repeated
    assert "Serve as deployed, no batching, 1 instance, response_cache, cache size 1 MiB" in (
        optimizer.output
    )
    assert "Response cache" in optimizer.output
    text = (folder / "results" / "tiny" / "best" / "embedder" / "config.pbtxt").read_text()
    assert text.startswith(CONFIG.rstrip())
    assert "response_cache" in text
    readme = (folder / "results" / "tiny" / "best" / "README.md").read_text()
    assert "--cache-config=local,size=1048576" in readme


def test_unique_requests_are_never_answered_by_the_cache(unique: tuple[Path, Optimizer]) -> None:
    splits = cached_splits(unique[0])
    assert sum(split["cache_misses"] for split in splits) > 100
    assert {split["cache_hits"] for split in splits} == {0}
    assert {split["expected_hit_rate"] for split in splits} == {0.0}


def test_no_cache_is_recommended_where_requests_are_unique(
    unique: tuple[Path, Optimizer],
) -> None:
    folder, optimizer = unique
    assert "Serve as deployed, no batching, 1 instance on" in optimizer.output
    text = (folder / "results" / "tiny" / "best" / "embedder" / "config.pbtxt").read_text()
    assert "response_cache" not in text


def test_the_simulator_predicts_what_the_cache_leaves_to_the_model(
    repeated: tuple[Path, Optimizer],
) -> None:
    per_second = {}
    for cache in ("false", "true"):
        simulated = run_to_end(repeated[0], "simulate", "tiny", "--set", f"response_cache={cache}")
        assert simulated.process.returncode == 0, simulated.errors
        [rate] = re.findall(r"saturates at ([\d,]+)/s", simulated.output)
        per_second[cache] = float(rate.replace(",", ""))
    [expected] = {split["expected_hit_rate"] for split in cached_splits(repeated[0])}
    answered = 1 - per_second["false"] / per_second["true"]
    assert answered == pytest.approx(expected, abs=0.05)
