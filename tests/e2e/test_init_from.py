"""`init --from` a repository, and `measure` with the file that it wrote, on a real server."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.running import Optimizer

pytestmark = pytest.mark.timeout(300)

MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.set_max_batch_size(8)
        config.add_input({"name": "ids", "data_type": "TYPE_UINT16", "dims": [-1]})
        config.add_input({"name": "a: b", "data_type": "TYPE_STRING", "dims": [1]})
        config.add_input(
            {"name": "hint", "data_type": "TYPE_FP16", "dims": [2], "optional": True}
        )
        config.add_output({"name": "total", "data_type": "TYPE_FP32", "dims": [1]})
        return config

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        ids, text = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("ids", "a: b")
        )
        lengths = np.vectorize(len, otypes=[np.int64])(text)
        total = (ids.sum(axis=1, keepdims=True) + lengths).astype(np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("total", total)])
"""
CONFIG = "instance_group [ { kind: KIND_CPU } ]  # the rest is in model.py"


@pytest.mark.slow
def test_the_written_file_measures_the_model_as_it_is_deployed(tmp_path: Path) -> None:
    folder = tmp_path / "my models" / "a model.v2"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(MODEL)
    (folder / "config.pbtxt").write_text(CONFIG)
    measure = ["measure", "space.yaml", "--rate", 100, "--cache", tmp_path / "cache"]
    for arguments in (["init", "--from", folder.parent], measure):
        with ExitStack() as stack:
            optimizer = Optimizer(arguments, tmp_path)
            stack.callback(optimizer.end)
            assert optimizer.wait() == 0, optimizer.errors
    results = tmp_path / "results" / "a-model-v2" / "measured" / "00000" / "measured.json"
    measured = json.loads(results.read_text())
    [level] = measured["levels"]
    assert level["streams"][0]["errors"] == 0
    assert level["server"][0]["batches"]
    assert measured["config"]["models"][0]["batching"] is None
