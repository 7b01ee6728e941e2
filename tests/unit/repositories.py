"""Model repositories as other people write them, without model code, and spaces of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from optimizer.configuration.hardware import Hardware
from optimizer.measurement.cost import Price
from optimizer.space_file.reader import Space, load_space
from optimizer.triton.deployed_pipeline import read_settings
from tests.e2e import tiny

MAIL = """\
# The classifier of the mail room.
name: "mail"
backend: "python"   # our own code
max_batch_size: 8
input [ { name: "IDS" data_type: TYPE_INT32 dims: [ -1, 4 ] } ]
output [ { name: "SCORES" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "labels.txt" } ]
version_policy { specific { versions: [ 2, 7 ] } }
instance_group [ { kind: KIND_CPU count: 2 } ]
dynamic_batching {
  preferred_batch_size: [ 8, 4 ]
  max_queue_delay_microseconds: 300  # do not raise
  preserve_ordering: true
}
parameters { key: "greeting" value { string_value: "hello" } }
"""
INPUTS = {"IDS": {"data_type": "INT32", "shape": ["rows", 4], "minimum": 0, "maximum": 9}}
HARDWARE = Hardware(2, 24_000)


def config_of(text: str) -> ModelConfig:
    return text_format.Parse(text, ModelConfig())


def write_config(folder: Path, text: str = MAIL, name: str = "mail") -> Path:
    """Write a model without code; return its folder."""
    (folder / name / "1").mkdir(parents=True)
    (folder / name / "config.pbtxt").write_text(text)
    return folder / name


def content(parameters: Mapping[str, Any], **model: Any) -> dict[str, Any]:
    """A space of the model in the folder `mail` beside it."""
    made = tiny.space()
    section = {
        "source": {"repository": ".", "model": "mail"},
        "inputs": INPUTS,
        "dimensions": {"rows": {"uniform": [1, 5]}},
    }
    made["models"] = {"mail": {**section, **model}}
    made["parameters"] = dict(parameters)
    return made


def space_of(folder: Path, parameters: Mapping[str, Any], text: str = MAIL, **model: Any) -> Space:
    write_config(folder, text)
    path = tiny.write_space(folder, content(parameters, **model))
    prices: dict[str, Price] = {}
    return load_space(path, prices, HARDWARE, read_settings)
