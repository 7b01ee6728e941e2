"""What the workshop hands out: frozen values that cross from its child process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from optimizer.releases import EngineFacts
from optimizer.serving_config import ArtifactSpec
from optimizer.workload import DataType, Tensors


@dataclass(frozen=True)
class OutputSpec:
    """The tensor that a model answers with.

    Attributes:
        data_type: Triton's name of the element type, such as "FP32".
        shape: dimensions without the batch; -1 stands for any size.
    """

    name: str
    data_type: DataType
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class PreparedModel:
    """What every artefact of a model is made from and judged by.

    Attributes:
        fp32_graph: the ONNX file; external data lies beside it.
        evaluation: held-out requests of batch 1.
        reference: FP32 outputs for them, shape [len(evaluation), ...].
        built: whether this call built anything.
        seconds: that the graph and the reference took when they were built.
        judged: which positions of the outputs are the requests' own, shape [len(evaluation),
            length]; None where outputs have no axis for the length, or no mask tells padding.
    """

    name: str
    fp32_graph: Path
    output: OutputSpec
    evaluation: list[Tensors]
    reference: NDArray[np.generic]
    built: bool
    seconds: float
    judged: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class ModelArtifact:
    """Files that a runtime loads.

    Attributes:
        path: directory that holds them and nothing else. Specs that need the same files share it.
        sha256: digest of the content.
        builder: library that made them and its version, such as "openvino 2026.4.1".
        build_seconds: that they took when they were built, with what had to be built for them.
        cached: whether they were there already.
        engine: what a TensorRT engine was built with and for; None for other files.
        int8_share: of the model's multiply-accumulates that are in INT8, 0 to 1; None for files of
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
