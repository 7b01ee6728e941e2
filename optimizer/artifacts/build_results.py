"""What builds return: values that cross from the child process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from optimizer.configuration.releases import EngineFacts
from optimizer.configuration.serving_config import ArtifactSpec
from optimizer.workload.streams import OutputTensor, Tensors


@dataclass(frozen=True)
class OpenedModel:
    """A model's own FP32 implementation.

    Attributes:
        run: returns the outputs for one request, by name.
        weight_bytes: size of its weights.
    """

    run: Callable[[Tensors], Tensors]
    outputs: tuple[OutputTensor, ...]
    weight_bytes: int


@dataclass(frozen=True, eq=False)
class Reference:
    """Held-out requests of one length, and the model's own FP32 outputs.

    Attributes:
        length: tokens that the requests are padded to.
        requests: of batch 1 and equal shapes.
        outputs: of each request executed by itself, by name, shape [len(requests), ...].
        judged: by output, the positions that belong to the requests and not to padding, shape
            [len(requests), length]; without an entry where the output has no length axis, or no
            mask marks padding.
        sizes: of the dimensions besides the length, where they are the smallest; else empty.
    """

    length: int
    requests: list[Tensors]
    outputs: Tensors
    judged: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    sizes: str = ""

    @property
    def shape(self) -> str:
        """Its shape for messages, such as "128 tokens" or "width 160"."""
        return self.sizes or f"{self.length} tokens"


@dataclass(frozen=True, eq=False)
class PreparedModel:
    """What the accuracy of every artefact of a model is measured against.

    Attributes:
        references: one for each length that requests are padded to, the longest first; then one of
            the smallest sizes of other dimensions, if they have several.
        weight_bytes: size of its FP32 weights.
        no_batching: why the model was executed without batches though its requests have a batch
            axis; empty for all other models.
        built: whether this call computed anything.
        seconds: that the references took when they were computed.
    """

    name: str
    outputs: tuple[OutputTensor, ...]
    references: tuple[Reference, ...]
    weight_bytes: int
    built: bool
    seconds: float
    no_batching: str = ""

    @property
    def evaluation(self) -> list[Tensors]:
        """The held-out requests at the longest length."""
        return self.references[0].requests


@dataclass(frozen=True)
class ModelArtifact:
    """Files that a runtime loads.

    Attributes:
        path: directory that holds them and nothing else; specs that need the same files share it.
        sha256: digest of the content.
        builder: library that made them and its version, such as "openvino 2026.4.1".
        build_seconds: that they took when they were built, with what had to be built for them.
        cached: whether they were in the cache already.
        engine: TensorRT and GPU that an engine was built with and for; None for other files.
        int8_share: share of the model's multiply-accumulates in INT8, 0 to 1; None for files of
            another precision.
    """

    spec: ArtifactSpec
    path: Path
    sha256: str
    builder: str
    build_seconds: float
    cached: bool
    engine: EngineFacts | None = None
    int8_share: float | None = None
