"""A repository with an ensemble of three steps, without model code, and spaces of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimizer.space_file.reader import Space, load_space
from optimizer.triton.deployed_pipeline import read_settings
from tests.e2e import pipeline_models as models
from tests.e2e import tiny
from tests.unit.repositories import HARDWARE, write_config

STEPS = ("tokenizer", "classifier", "labeller")
TOP = "text_classifier"
CONFIGS = {
    "tokenizer": models.TOKENIZER,
    "classifier": models.CLASSIFIER,
    "labeller": models.LABELLER,
    TOP: models.ENSEMBLE,
}
TEXT = {"TEXT": {"data_type": "BYTES", "shape": [1], "values": ["a", "b"]}}

OUTER = """\
platform: "ensemble"
max_batch_size: 4
input [ { name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "FIRST" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "IDS" data_type: TYPE_INT64 dims: [ 4 ] } ]
ensemble_scheduling {
  step [
    { model_name: "text_classifier" model_version: -1
      input_map { key: "TEXT" value: "TEXT" } output_map { key: "LABEL" value: "FIRST" } },
    { model_name: "tokenizer" model_version: -1
      input_map { key: "TEXT" value: "TEXT" } output_map { key: "IDS" value: "IDS" } }
  ]
}
"""
"""An ensemble of the other ensemble and of one of its steps."""


def write_repository(folder: Path, configs: Mapping[str, str] = CONFIGS) -> Path:
    """Write the models' configurations; return the repository."""
    for name, text in configs.items():
        write_config(folder, text, name)
    return folder


def space_of(
    folder: Path,
    parameters: Mapping[str, Any],
    configs: Mapping[str, str] = CONFIGS,
    names: Mapping[str, str] = {TOP: TOP},
    calls: object = None,
    **keys: Any,
) -> Space:
    """Return a space of pipelines in `folder`.

    Args:
        names: of the pipelines in the space file and in the repository.
        calls: key of each source; None leaves it out.
    """
    write_repository(folder, configs)
    content = {**tiny.space(), **keys}
    content["models"] = {
        key: {
            "source": {
                "repository": ".",
                "model": name,
                **({} if calls is None else {"calls": calls}),
            },
            "inputs": TEXT,
            **({"demand_per_second": 10} if len(names) > 1 else {}),
        }
        for key, name in names.items()
    }
    content["parameters"] = dict(parameters)
    return load_space(tiny.write_space(folder, content), {}, HARDWARE, read_settings)
