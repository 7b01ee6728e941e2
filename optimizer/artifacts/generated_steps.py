"""Generated pipelines: a tokeniser, a softmax with labels, and a model between them.

Each step is a model of its own: it has files, and a reference in Python that its served answers are
compared with. The reference of the pipeline is composed of these.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from optimizer.artifacts.build_results import OpenedModel
from optimizer.artifacts.cache import file_digest, versions
from optimizer.configuration.runtimes.spec import Precision
from optimizer.errors import BuildFailure, RequirementError, UsageError, cause_text
from optimizer.workload.model_spec import (
    PIPELINE_OUTPUTS,
    ModelSpec,
    SoftmaxSource,
    TokenizerSource,
)
from optimizer.workload.streams import OutputTensor, Tensors

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_ATTRIBUTES = {
    "input_ids": "ids",
    "attention_mask": "attention_mask",
    "token_type_ids": "type_ids",
}
"""Attribute of an encoded text that holds each output."""

_PADDING_TOKENS = ("[PAD]", "<pad>", "<|endoftext|>")


@dataclass(frozen=True)
class _NoGraph:
    """A step without a graph."""

    model: ModelSpec

    def export_onnx(self, into: Path) -> None:
        """Refuse: there is nothing to export."""
        raise BuildFailure(f"{self.model.name} is not a model that can be exported")

    def export_torch(self, into: Path, precision: Precision) -> None:
        """Refuse: there is nothing to export."""
        raise BuildFailure(f"{self.model.name} is not a model that can be exported")


@dataclass(frozen=True)
class TokenizerStep(_NoGraph):
    """tokenizer.json with the truncation and the padding of the pipeline."""

    source: TokenizerSource

    def fingerprint(self) -> dict[str, object]:
        """Return the file's digest, the length, the outputs, and the library's version."""
        return {
            "tokenizer": _digest(self.model.name, self.source.path),
            "max_length": self.source.max_length,
            "outputs": list(self.source.outputs),
            "libraries": versions("tokenizers"),
        }

    def open(self) -> OpenedModel:
        """Return the library itself, in this process."""
        tokenizer, outputs = opened_tokenizer(self.model.name, self.source), self.source.outputs
        [text] = self.model.payloads.tensors

        def run(request: Tensors) -> Tensors:
            return encoded_texts(tokenizer, request[text.name], outputs)

        shape = (self.source.max_length,)
        tensors = tuple(OutputTensor(name, "INT64", shape) for name in outputs)
        return OpenedModel(run, tensors, self.source.path.stat().st_size)

    def write(self, into: Path) -> None:
        """Write tokenizer.json."""
        tokenizer = opened_tokenizer(self.model.name, self.source)
        tokenizer.save(str(into / "tokenizer.json"), pretty=False)


@dataclass(frozen=True)
class SoftmaxStep(_NoGraph):
    """labels.json."""

    source: SoftmaxSource

    def fingerprint(self) -> dict[str, object]:
        """Return the labels, and how many are returned."""
        return {"labels": list(self.source.labels), "top_k": self.source.top_k}

    def open(self) -> OpenedModel:
        """Return a softmax in double precision."""
        labels = np.array([label.encode() for label in self.source.labels], dtype=np.object_)
        [logits] = self.model.payloads.tensors
        top_k = self.source.top_k

        def run(request: Tensors) -> Tensors:
            values = np.asarray(request[logits.name], np.float64)
            if values.shape[1:] != labels.shape:
                raise UsageError(
                    f"step {self.model.name}: labels: must be as many as the model's outputs, "
                    f"got {len(labels)} for {logits.name} of shape {list(values.shape[1:])}"
                )
            powers = np.exp(values - values.max(axis=1, keepdims=True))
            scores = powers / powers.sum(axis=1, keepdims=True)
            best = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
            chosen = np.take_along_axis(scores, best, axis=1).astype(np.float32)
            return dict(zip(PIPELINE_OUTPUTS, (labels[best], chosen), strict=True))

        label, score = PIPELINE_OUTPUTS
        outputs = OutputTensor(label, "BYTES", (top_k,)), OutputTensor(score, "FP32", (top_k,))
        return OpenedModel(run, outputs, 0)

    def write(self, into: Path) -> None:
        """Write labels.json."""
        (into / "labels.json").write_text(json.dumps(self.fingerprint(), ensure_ascii=False))


class ReferenceSource(Protocol):
    """What the reference of a pipeline is composed of: the `ModelSource` of each step."""

    def fingerprint(self) -> dict[str, object]:
        """Return everything that decides the outputs."""

    def open(self) -> OpenedModel:
        """Load the model itself."""


@dataclass(frozen=True)
class PipelineModel(_NoGraph):
    """The steps one after the other, in this process."""

    steps: tuple[ReferenceSource, ...]

    def fingerprint(self) -> dict[str, object]:
        """Return those of the steps."""
        return {"steps": [step.fingerprint() for step in self.steps]}

    def open(self) -> OpenedModel:
        """Open every step, the model in FP32."""
        opened = [step.open() for step in self.steps]

        def run(request: Tensors) -> Tensors:
            tensors = request
            for step in opened:
                tensors = step.run(tensors)
            return tensors

        return OpenedModel(run, opened[-1].outputs, sum(step.weight_bytes for step in opened))


def step_of(model: ModelSpec) -> TokenizerStep | SoftmaxStep:
    """Return the implementation of a step without a graph."""
    if isinstance(model.source, TokenizerSource):
        return TokenizerStep(model, model.source)
    assert isinstance(model.source, SoftmaxSource), "the other runtimes belong to models"
    return SoftmaxStep(model, model.source)


def opened_tokenizer(step: str, source: TokenizerSource) -> Tokenizer:
    """Return a tokeniser that truncates and pads to the source's length.

    Args:
        step: name of the step, for messages.

    Raises:
        UsageError: when the file is no tokeniser.
        RequirementError: when the library is missing.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise RequirementError(f"step {step}: {cause_text(error)}") from error
    try:
        tokenizer = Tokenizer.from_file(str(source.path))
    except Exception as error:  # the library raises Exception itself
        raise UsageError(
            f"step {step}: tokenizer: must be a tokenizer.json of the tokenizers package, got "
            f"{source.path}: {cause_text(error)}"
        ) from error
    own = tokenizer.padding or {}
    token = next((t for t in _PADDING_TOKENS if tokenizer.token_to_id(t) is not None), None)
    padding = {"pad_id": tokenizer.token_to_id(token), "pad_token": token} if token else {}
    kept = {name: own[name] for name in ("pad_id", "pad_token", "pad_type_id") if name in own}
    tokenizer.enable_truncation(source.max_length)
    tokenizer.enable_padding(**{**padding, **kept}, length=source.max_length)
    return tokenizer


def encoded_texts(tokenizer: Tokenizer, texts: NDArray[Any], outputs: Sequence[str]) -> Tensors:
    """Return the tokens of texts of shape [batch, 1], each of shape [batch, length]."""
    decoded = [bytes(text).decode("utf-8", "replace") for text in texts[:, 0]]
    encoded = tokenizer.encode_batch(decoded)
    return {
        name: np.array([getattr(each, _ATTRIBUTES[name]) for each in encoded], dtype=np.int64)
        for name in outputs
    }


def _digest(step: str, path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise UsageError(f"step {step}: tokenizer: {cause_text(error)}") from error
