"""Space files, user loads, jobs and Python code in README.md and docs/ are valid."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from optimizer.configuration.hardware import Gpu, Hardware
from optimizer.errors import SpaceFileError
from optimizer.files.shipped import shipped
from optimizer.fleet.price_list import read_prices, usual_prices
from optimizer.load.user_load_file import read_job, read_user_load
from optimizer.space_file.reader import Space, load_space
from optimizer.triton.deployed_pipeline import read_settings
from tests.docs import made_up
from tests.docs.blocks import Block, blocks
from tests.docs.python_blocks import run_block, searches
from tests.e2e import tiny
from tests.e2e.pipeline_models import BLS
from tests.tokenizer_files import write_tokenizer
from tests.unit.pipelines import CONFIGS, write_repository
from tests.unit.repositories import MAIL, write_config

GPUS = tuple(Gpu(f"GPU-{n}", "NVIDIA A10G", (8, 6), 23_028) for n in range(2))
HARDWARE = Hardware(cores=4, memory_mib=16_000, gpus=GPUS)
PRICES = usual_prices(read_prices(shipped("prices.csv")))
OF_A_MODEL = (
    "accuracy", "calibration", "dimensions", "evaluation", "inputs", "lengths", "source",
)  # fmt: skip
NO_JOB = ("TrafficPattern", "StoppingConditions", "ThinkTimeInSeconds")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the files that the documented space files name."""
    rows = np.arange(16 * 16).reshape(16, 16) + 5
    inputs = {"input_ids": rows, "attention_mask": np.ones_like(rows)}
    np.savez(tmp_path / "evaluation.npz", **inputs)
    lines = [
        json.dumps({name: row.tolist() for name, row in zip(inputs, pair, strict=True)})
        for pair in zip(*inputs.values(), strict=True)
    ]
    (tmp_path / "calibration.jsonl").write_text("\n".join(lines) + "\n")
    requests = [json.dumps({"input_ids": row.tolist()}) for row in rows]
    (tmp_path / "requests.jsonl").write_text("\n".join(requests))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "one.jpg").write_bytes(b"\xff\xd8")
    (tmp_path / "metrics.py").write_text("def f1(inputs, outputs):\n    return 1.0\n")
    (tmp_path / "arrivals.csv").write_text("seconds,query\n0.1,a\n0.2,b\n0.35,a\n")
    (tmp_path / "model.onnx").write_bytes(b"")
    (tmp_path / "checkpoint").mkdir()
    write_tokenizer(tmp_path / "tokenizer.json")
    write_config(tmp_path / "models", MAIL, "texts")
    write_repository(tmp_path / "models", {**CONFIGS, "text_bls": BLS})
    return tmp_path


def completed(fragment: Mapping[str, Any]) -> dict[str, Any]:
    """Return a whole space file that contains the fragment."""
    if "study" in fragment:
        return dict(fragment)
    space = tiny.space(parameters={"precision": ["fp32", "int8"]})
    bert = space["models"]["bert"]
    bert["lengths"] = {"fixed": 128}
    bert["source"]["config"]["max_position_embeddings"] = 128
    own = dict(fragment)
    for key in OF_A_MODEL:
        if key in own:
            bert[key] = own.pop(key)
    return {**space, **own}


def read(text: str, folder: Path) -> Space:
    content = completed(YAML(typ="safe").load(text))
    path = tiny.write_space(folder, deepcopy(content))
    accelerator_type = next(iter(content["price"].get("by_accelerator", ())), None)
    return load_space(path, PRICES, HARDWARE, read_settings, accelerator_type=accelerator_type)


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.place)
def test_a_space_file_or_a_part_of_one_is_valid(block: Block, folder: Path) -> None:
    assert len(read(block.text, folder).search_space) > 0


def test_a_mistyped_key_is_found(folder: Path) -> None:
    for text in ("traffic: {arivals: poisson}", "accuracy: {min_cosin: 0.9}", "sever: {}"):
        with pytest.raises(SpaceFileError):
            read(text, folder)


@pytest.mark.parametrize("block", blocks("json"), ids=lambda block: block.place)
def test_a_load_of_users_or_a_job_is_valid(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "users.json"
    path.write_text(block.text)
    if set(json.loads(block.text)) <= set(NO_JOB):
        read_user_load(path)
    else:
        read_job(path)


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.place)
def test_python_that_serves_nothing_runs(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if searches(block):
        compile(block.text, block.place, "exec")  # executed in test_on_a_server
        return
    made_up.fill(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    run_block(block)
