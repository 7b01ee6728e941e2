"""Make the headline model's graphs for TensorRT, and print the memory that each takes.

    python -m tests.e2e.graph_memory LAYERS LIMIT_BYTES FOLDER

The model is bert-large-uncased with random weights, 512 tokens and LAYERS layers. The process may
not have more than LIMIT_BYTES of private memory.
"""

from __future__ import annotations

import json
import logging
import re
import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from optimizer.artifacts.cache import ArtifactCache
from optimizer.artifacts.precision_graphs import PrecisionGraphs
from optimizer.configuration.runtimes.spec import GraphKind
from optimizer.workload.model_spec import AccuracyLimits, DataSet, ModelSpec, TransformersSource
from optimizer.workload.request_sizes import LengthDistribution
from optimizer.workload.streams import Payloads, TensorSpec

WIDTH, INNER, TOKENS, WORDS = 1024, 4096, 512, 30522
KINDS: tuple[GraphKind, ...] = ("fp32", "fp16", "int8_s8s8", "int8_trt")
"""Each is made from those before it."""

_ROWS = 3
"""For calibration, so that the values of two batches are in memory."""


def headline_model(layers: int) -> ModelSpec:
    """Return the model of search_spaces/bert_large.yaml with random weights."""
    config = {
        "hidden_size": WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "intermediate_size": INNER,
    }
    tensors = (
        TensorSpec("input_ids", "INT64", ("length",), minimum=1000, maximum=WORDS - 1),
        TensorSpec("attention_mask", "INT64", ("length",), minimum=1, maximum=1),
    )
    return ModelSpec(
        "bert-large",
        TransformersSource("BertForSequenceClassification", config=json.dumps(config)),
        Payloads(tensors, LengthDistribution((TOKENS,), (1.0,))),
        calibration=DataSet(None, _ROWS, 0),
        evaluation=DataSet(None, 1, 0),
        accuracy=AccuracyLimits(0.9, 0.9),
    )


def weights(layers: int) -> int:
    """Return how many weights the model has, but for biases and normalisations."""
    return (WORDS + TOKENS + WIDTH) * WIDTH + layers * (4 * WIDTH + 2 * INNER) * WIDTH


class Estimates(logging.Handler):
    """Reads the estimates of memory in the log, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Read one message."""
        found = re.findall(r"needs about ([\d.]+) GiB of memory", record.getMessage())
        self.bytes += [float(gib) * 2**30 for gib in found]


@contextmanager
def sampled_memory() -> Iterator[list[int]]:
    """Yield a list that receives the size of this process's private memory, in bytes."""
    process, end = psutil.Process(), threading.Event()
    samples = [process.memory_info().data]

    def sample() -> None:
        while not end.wait(0.05):
            samples.append(process.memory_info().data)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        end.set()
        thread.join()


def main(layers: int, limit: int, folder: Path) -> None:
    """Print the estimate for the calibration, and memory before and at the peak of each graph."""
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    estimates, log = Estimates(), logging.getLogger("optimizer")
    log.setLevel(logging.INFO)
    log.addHandler(estimates)
    graphs = PrecisionGraphs(headline_model(layers), ArtifactCache(folder))
    memory = {}
    for kind in KINDS:
        with sampled_memory() as samples:
            graphs.entry(kind)
        memory[kind] = (samples[0], max(samples))
    sys.stdout.write(json.dumps({"estimates": estimates.bytes, "memory": memory}) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
