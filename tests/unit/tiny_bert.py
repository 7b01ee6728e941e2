"""A tiny BERT with random weights, and requests for it."""

from __future__ import annotations

import json

import numpy as np

from optimizer.configuration.hardware import processor_lacks
from optimizer.configuration.runtimes import PRECISIONS_OF, RUNTIME_PACKAGE, Runtime
from optimizer.configuration.runtimes.spec import Precision
from optimizer.configuration.serving_config import ArtifactSpec
from optimizer.machine.fingerprint import cpu_flags
from optimizer.workload.model_spec import AccuracyLimits, DataSet, ModelSpec, TransformersSource
from optimizer.workload.request_sizes import LengthDistribution
from optimizer.workload.streams import Payloads, Tensors, TensorSpec

VOCABULARY = 100
LONGEST = 16
CONFIG = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": VOCABULARY,
    "num_labels": 3,
    # Larger than usual: the outputs of so small a model would hardly differ.
    "initializer_range": 0.2,
}
MODEL = ModelSpec(
    name="tiny",
    source=TransformersSource("BertForSequenceClassification", config=json.dumps(CONFIG)),
    payloads=Payloads(
        (
            TensorSpec("input_ids", "INT64", (None,), minimum=5, maximum=VOCABULARY - 1),
            TensorSpec("attention_mask", "INT64", (None,), minimum=1, maximum=1),
        ),
        LengthDistribution((6, LONGEST), (0.5, 0.5)),
    ),
    calibration=DataSet(None, 16, 0),
    evaluation=DataSet(None, 8, 0),
    accuracy=AccuracyLimits(0.9, 0.9),
)
PAIRS = [
    (runtime, precision)
    for runtime, precisions in PRECISIONS_OF["KIND_CPU"].items()
    for precision in precisions
    if runtime in RUNTIME_PACKAGE and processor_lacks(runtime, precision, cpu_flags()) is None
]
"""Runtimes that make files of a model, and their precisions that this machine serves."""


def artifact(runtime: Runtime, precision: Precision) -> ArtifactSpec:
    return ArtifactSpec(MODEL.name, runtime, "python", precision)


def request(batch: int, length: int) -> Tensors:
    """A batch whose last row is half padding."""
    rng = np.random.default_rng([batch, length])
    mask = np.ones((batch, length), np.int64)
    mask[-1, length // 2 :] = 0
    return {"input_ids": rng.integers(5, VOCABULARY, (batch, length)), "attention_mask": mask}
