"""The tiny model as it is handed out for production, and how it is asked."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from optimizer.configuration.serving_config import Batching, ModelServing
from optimizer.files.shipped import shipped
from optimizer.triton.repository import ModelRepository
from tests.e2e.conftest import Built
from tests.unit.deployments import BERT, ON_CPU

DEPLOYMENT = replace(ON_CPU, models=(BERT,))
REQUEST = {
    "inputs": [
        {"name": name, "shape": [1, 16], "datatype": "INT64", "data": [value] * 16}
        for name, value in (("input_ids", 7), ("attention_mask", 1))
    ]
}


def write_repository(built: Built, folder: Path) -> Path:
    """The model repository, in a new folder."""
    folder.mkdir()
    spec = built.spec("onnxruntime", "fp32")
    files = built.files[spec]
    model = ModelServing("bert", spec, max_batch_size=8, batching=Batching())
    writing = ModelRepository(folder, shipped("model_repository_templates"), shutil.copyfile)
    writing.write(model, files.artifact, files.payloads, files.outputs)
    (folder / "README.md").write_text("# For people\n")
    return folder
