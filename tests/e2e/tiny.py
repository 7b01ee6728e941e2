"""A space that is searched in seconds: a BERT so small that its figures mean nothing."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

SPACE: Mapping[str, Any] = {
    "study": "tiny",
    "models": {
        "bert": {
            "source": {
                "class": "BertForSequenceClassification",
                "config": {
                    "hidden_size": 32,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                    "intermediate_size": 64,
                    "vocab_size": 1000,
                    "max_position_embeddings": 64,
                    "num_labels": 3,
                    # Larger than usual: the outputs of so small a model would hardly differ.
                    "initializer_range": 0.2,
                },
            },
            "inputs": {
                "input_ids": {"shape": ["length"], "minimum": 5, "maximum": 999},
                "attention_mask": {"shape": ["length"], "minimum": 1, "maximum": 1},
            },
            "lengths": {"fixed": 16},
            "evaluation": {"samples": 16, "seed": 2},
            "accuracy": {"min_argmax_agreement": 0.8, "min_cosine": 0.95},
        }
    },
    "traffic": {"demand_per_second": 200},
    # So lax that a machine that is busy with something else meets it too.
    "limit": {"latency_ms": 2000},
    "price": {"instance_type": "test.large", "usd_per_hour": 0.36},
    "parameters": {"runtime": ["onnxruntime"], "precision": ["fp32"], "batching": [False, True]},
    # Short, and so imprecise: no test judges how fast the model is.
    "measurement": {
        "saturation_seconds": 0.3,
        "check_seconds": 0.3,
        "warmup_seconds": 0.1,
        "confirm_seconds": 0.3,
        "confirm_requests": 50,
    },
    "budget": {"trials": 1, "wall_clock": "10m"},
}

ALL_ARTIFACTS = {"runtime": ["onnxruntime", "openvino"], "precision": ["fp32", "int8"]}


def _with_labels(model: Mapping[str, Any]) -> dict[str, Any]:
    config = {key: v for key, v in model["source"]["config"].items() if key != "num_labels"}
    labels = {"id2label": {"0": "no", "1": "perhaps", "2": "yes"}}
    return {**model, "source": {**model["source"], "config": {**config, **labels}}}


def space(**sections: Mapping[str, Any]) -> dict[str, Any]:
    """SPACE with keys of its sections replaced."""
    content = deepcopy(dict(SPACE))
    for name, keys in sections.items():
        content[name] = {**content[name], **keys}
    return content


def write_space(folder: Path, content: Mapping[str, Any], name: str = "space.yaml") -> Path:
    """Write a space file and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    YAML(typ="safe").dump(dict(content), path)
    return path


LABELLED = space(
    models={"bert": _with_labels(SPACE["models"]["bert"])},
    price={"instance_type": "ml.c5.xlarge"},
    parameters={
        "runtime": ["onnxruntime"],
        "precision": ["fp32"],
        "batching": [True],
        "max_batch_size": [4],
        "max_queue_delay_us": [500],
    },
)
"""One configuration of a model whose classes have names, on an instance type of SageMaker."""
