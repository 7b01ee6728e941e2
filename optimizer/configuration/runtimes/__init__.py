"""The runtimes that execute models: one module each, and one line in `_ALL`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from optimizer.configuration.runtimes.onnxruntime import ONNXRUNTIME
from optimizer.configuration.runtimes.openvino import OPENVINO
from optimizer.configuration.runtimes.pytorch import PYTORCH
from optimizer.configuration.runtimes.repository import REPOSITORY
from optimizer.configuration.runtimes.softmax import SOFTMAX
from optimizer.configuration.runtimes.spec import Kind, Precision, RuntimeSpec
from optimizer.configuration.runtimes.tensorrt import TENSORRT
from optimizer.configuration.runtimes.tokenizers import TOKENIZERS

_ALL = (ONNXRUNTIME, OPENVINO, PYTORCH, TENSORRT, REPOSITORY, TOKENIZERS, SOFTMAX)

RUNTIMES: Mapping[str, RuntimeSpec] = {spec.name: spec for spec in _ALL}

if TYPE_CHECKING:
    Runtime = str
else:  # what a space file or a record names is held against the table
    Runtime = Literal[tuple(RUNTIMES)]

PRECISIONS_OF: Mapping[Kind, Mapping[Runtime, tuple[Precision, ...]]] = {
    kind: {spec.name: spec.precisions[kind] for spec in _ALL if kind in spec.precisions}
    for kind in get_args(Kind)
}
"""Precisions that each runtime serves, by kind of instance."""

HOSTED_PACKAGE: Mapping[Runtime, str] = {
    name: spec.package for name, spec in RUNTIMES.items() if spec.package is not None
}
"""Python package of each runtime that Triton's Python backend can host."""

STEP_RUNTIMES = frozenset(spec.name for spec in _ALL if spec.step)
"""The runtimes that execute no model, only a step before or after one."""

RUNTIME_PACKAGE: Mapping[Runtime, str] = {
    name: package for name, package in HOSTED_PACKAGE.items() if name not in STEP_RUNTIMES
}
"""The packages of those that execute models."""


def session_file(runtime: Runtime) -> Path:
    """Return the code that opens the runtime's files in Triton's Python backend."""
    return Path(__file__).with_name(f"{runtime}_session.py")
