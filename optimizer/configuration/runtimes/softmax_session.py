"""Opens labels.json: a softmax, and the most probable labels. Runs inside Triton."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def open_session(
    directory: str, outputs: list[str], precision: str, threads: int, gpu: int | None
) -> Callable[[Mapping[str, Any]], list[Any]]:
    """Return run(the logits by name, shape [batch, labels]) -> [labels, scores], each [batch, k].

    The most probable label comes first.
    """
    with open(os.path.join(directory, "labels.json"), encoding="utf-8") as file:
        content = json.load(file)
    labels = np.array([label.encode() for label in content["labels"]], dtype=np.object_)

    def run(inputs: Mapping[str, Any]) -> list[Any]:
        [logits] = inputs.values()
        if logits.shape[1] != len(labels):
            raise ValueError(f"{len(labels)} labels for {logits.shape[1]} outputs of the model")
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores = powers / powers.sum(axis=1, keepdims=True)
        best = np.argsort(-scores, axis=1, kind="stable")[:, : content["top_k"]]
        return [labels[best], np.take_along_axis(scores, best, axis=1)]

    return run
