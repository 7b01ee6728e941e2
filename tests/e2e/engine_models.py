"""The models that NVIDIA's builder builds engines of in tests, as sections of a space file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimizer.commands.run_context import open_space
from optimizer.workload.model_spec import ModelSpec
from tests.e2e import minilm, tiny
from tests.e2e.architectures import ARCHITECTURES, TEXT
from tests.e2e.test_public_onnx import SERVED, shipped

_CLASSES = {
    "DistilBERT": "DistilBertForSequenceClassification",
    "RoBERTa": "RobertaForSequenceClassification",
    "DistilGPT-2": "GPT2ForSequenceClassification",
    "ViT": "ViTForImageClassification",
    "ResNet": "ResNetForImageClassification",
}


def _bert(**config: int) -> Mapping[str, Any]:
    source = {"class": "BertForSequenceClassification", "config": {"vocab_size": 100, **config}}
    return {"source": source, **TEXT}


SECTIONS: Mapping[str, Mapping[str, Any]] = {
    # The quickstart's, with fewer words.
    "BERT": _bert(
        hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024
    ),
    # The layers of BERT-large are alike, and 24 of them take ten times as long.
    "BERT-large, 2 of 24 layers": _bert(
        hidden_size=1024, num_hidden_layers=2, num_attention_heads=16, intermediate_size=4096
    ),
    **{
        name: next(each.section for each in ARCHITECTURES if each.class_name == class_name)
        for name, class_name in _CLASSES.items()
    },
    **{
        name: {"source": {"onnx": file}, **model, "calibration": {"samples": 3, "seed": 1}}
        for name, (file, model, _) in SERVED.items()
    },
}

MINILM = "MiniLM, trained weights"
MODELS = (*SECTIONS, MINILM)
CONVOLUTIONAL = frozenset(
    {
        *("ViT", "ResNet", "file type", "detector", "text direction", "text recognition"),
        "voice activity without a rate",
    }
)
"""Models with convolutions outside branches."""


def model_spec(name: str, folder: Path) -> ModelSpec:
    """Return the model as a space file has it, which is written into `folder`."""
    if name == MINILM:
        minilm.write_inputs(folder)
        return open_space(tiny.write_space(folder, minilm.space())).models[0]
    section = dict(SECTIONS[name])
    if "onnx" in section["source"]:
        section["source"] = {"onnx": shipped(section["source"]["onnx"])}
    content = tiny.space(parameters={"batching": [section.get("batched", True)]})
    return open_space(tiny.write_space(folder, {**content, "models": {"model": section}})).models[0]
