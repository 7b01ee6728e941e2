"""Opens tokenizer.json with the tokenizers package. Runs inside Triton, without this package.

The file itself says how texts are truncated and padded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

# Threads of the library would take the cores from the other instances and steps.
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
from tokenizers import Tokenizer

_ATTRIBUTES = {
    "input_ids": "ids",
    "attention_mask": "attention_mask",
    "token_type_ids": "type_ids",
}


def open_session(
    directory: str, outputs: list[str], precision: str, threads: int, gpu: int | None
) -> Callable[[Mapping[str, Any]], list[Any]]:
    """Return run(the texts by name, shape [batch, 1]) -> arrays of the outputs."""
    tokenizer = Tokenizer.from_file(os.path.join(directory, "tokenizer.json"))

    def run(inputs: Mapping[str, Any]) -> list[Any]:
        [texts] = inputs.values()
        decoded = [text.decode("utf-8", "replace") for text in texts[:, 0]]
        encoded = tokenizer.encode_batch(decoded)
        return [
            np.array([getattr(each, _ATTRIBUTES[name]) for each in encoded], dtype=np.int64)
            for name in outputs
        ]

    return run
