"""From a deployed model repository to a patch of it, and the patched repository verified."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from optimizer.export.bundle.manifest import PATCH
from tests.e2e import tiny
from tests.e2e.running import Optimizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

MODEL = """\
import json, time, numpy as np, triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, args):
        self.scale = float(json.loads(args["model_config"])["parameters"]["scale"]["string_value"])

    def execute(self, requests):
        time.sleep(0.01)  # of any batch, so that batches and instances win for certain
        values = [pb.get_input_tensor_by_name(each, "x").as_numpy() for each in requests]
        return [
            pb.InferenceResponse([pb.Tensor("y", (each * self.scale).astype(np.float32))])
            for each in values
        ]
"""
CONFIG = """\
# Owned by the mail team. Ask before you change it!
name: "mail.v2"
backend: "python"  # no other has a tokenizer
max_batch_size: 8
input [ { name: "x", data_type: TYPE_FP32, dims: [ 4 ] } ]
output < name: "y" data_type: TYPE_FP32 dims: 4 >
version_policy: { specific { versions: [ 2 ] } }
instance_group [
    {
        kind: KIND_CPU
        count: 1    # per socket
    }
]
parameters { key: "scale" value { string_value: "3" } }
"""
BARE = """\
import triton_python_backend_utils as pb

class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.set_max_batch_size(8)
        config.add_input({"name": "x", "data_type": "TYPE_FP32", "dims": [-1]})
        config.add_output({"name": "y", "data_type": "TYPE_FP32", "dims": [-1]})
        return config

    def execute(self, requests):
        values = [pb.get_input_tensor_by_name(each, "x").as_numpy() for each in requests]
        return [pb.InferenceResponse([pb.Tensor("y", each + 1)]) for each in values]
"""
BARE_CONFIG = """\
backend: "python"
max_batch_size: 8
input {
  name: "x"
  data_type: TYPE_FP32
  dims: [-1]
}
output {
  name: "y"
  data_type: TYPE_FP32
  dims: [-1]
}
"""
"""What the server has completed, and none of its defaults."""

X = {"data_type": "FP32", "shape": [4], "minimum": 0, "maximum": 1}
SPACE: dict[str, Any] = {
    **{key: tiny.SPACE[key] for key in ("limit", "price")},
    # So long that each level has requests for both models.
    "measurement": {**tiny.SPACE["measurement"], "check_seconds": 0.6},
    "study": "deployed",
    "models": {
        "mail": {
            "source": {"repository": "./my models", "model": "mail.v2"},
            "inputs": {"x": X},
            "demand_per_second": 200,
            "parameters": {
                "batching": [True],
                "instance_count": [2],
                "max_queue_delay_microseconds": [500],
            },
        },
        "bare": {
            "source": {"repository": "./my models", "model": "my model-1.2"},
            "inputs": {"x": X},
            "demand_per_second": 100,
        },
    },
    "parameters": {},
    # As deployed, or all of it.
    "conditions": [
        "batching == (instance_count == 2)",
        "not batching or max_queue_delay_microseconds == 500",
    ],
    "budget": {"trials": 2, "wall_clock": "5m"},
}


def contents(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def call(folder: Path, *arguments: object, code: int = 0) -> str:
    optimizer = Optimizer(list(arguments), folder)
    try:
        assert optimizer.wait() == code, f"{optimizer.output}{optimizer.errors}"
        return optimizer.output + optimizer.errors
    finally:
        optimizer.end()


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a repository, and a study of one of its models."""
    folder = tmp_path_factory.mktemp("deployed")
    for model, version in (("mail.v2", "1"), ("mail.v2", "2"), ("other", "1")):
        path = folder / "my models" / model / version
        path.mkdir(parents=True)
        (path / "model.py").write_text(MODEL if version == "2" else "not to be loaded")
    (folder / "my models" / "my model-1.2" / "1").mkdir(parents=True)
    (folder / "my models" / "my model-1.2" / "1" / "model.py").write_text(BARE)
    (folder / "my models" / "mail.v2" / "config.pbtxt").write_bytes(
        CONFIG.replace("\n", "\r\n").encode()
    )
    tiny.write_space(folder, SPACE)
    before = contents(folder / "my models")
    call(folder, "run", "space.yaml", "--cache", "cache", "--sampler", "grid")
    assert contents(folder / "my models") == before
    return folder


def test_the_patch_changes_what_was_searched_and_is_verified(
    searched: Path, tmp_path: Path
) -> None:
    repository = searched / "my models"
    export = ("export", "deployed", "--format", "patch", "--to", "patch", "--cache", "cache")
    assert "--format patch: needs --base" in call(searched, *export, code=2)
    call(searched, *export, "--base", repository)
    patch = tmp_path / "patch"
    shutil.move(searched / "patch", patch)
    patched = tmp_path / "patched models"
    shutil.copytree(repository, patched)
    subprocess.run(["git", "apply", "--whitespace=nowarn", patch / PATCH], cwd=patched, check=True)
    text = CONFIG.replace("count: 1 ", "count: 2 ")
    text += "dynamic_batching {\n    max_queue_delay_microseconds: 500\n}\n"
    assert contents(patched) == {
        **contents(repository),
        "mail.v2/config.pbtxt": text.replace("\n", "\r\n").encode(),
        "my model-1.2/config.pbtxt": BARE_CONFIG.encode(),
    }
    lax = ("--within", "100000", "--json", "outcome.json")
    call(tmp_path, "verify", patch, "--patched", patched, *lax)
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert {check["outcome"] for check in outcome["checks"]} == {"pass"}
    assert contents(patched)["mail.v2/config.pbtxt"] == text.replace("\n", "\r\n").encode()


def test_a_base_that_has_changed_is_refused(searched: Path, tmp_path: Path) -> None:
    base = tmp_path / "models"
    shutil.copytree(searched / "my models", base)
    path = base / "mail.v2" / "config.pbtxt"
    path.write_bytes(path.read_bytes() + b"# once more\r\n")
    export = ("export", "deployed", "--format", "patch", "--cache", "cache")
    said = call(searched, *export, "--to", "refused", "--base", base, code=2)
    assert "mail.v2 has changed since the study: config.pbtxt (sha256 of the first" in said
    assert not (searched / "refused").exists()
