"""The files of a model that are code: whoever serves the model runs them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tritonclient.grpc import model_config_pb2

from optimizer.triton.deployed_config import CONFIG_FILE, backend_of, read_if_present

_CODE_SUFFIXES = {".py", ".pyc", ".so", ".plan", ".pt", ".pt2"}
"""Python, native libraries, TensorRT engines and PyTorch programs, whose own readers run code."""

COMPILED = "__pycache__"
"""Folder of what Python has compiled from other files of the model; it is never served."""

_READ_AS_DATA = {"", "onnxruntime", "openvino", "python"}
"""Backends that read every other file of a model as data; an ensemble has none."""


def code_files(folder: Path) -> list[Path]:
    """Return the files of a model that run, or that may run, when it is served.

    Of a backend whose files are not known to be data, these are all files of its versions.

    Raises:
        UsageError: where its config.pbtxt is no configuration.
    """
    config = read_if_present(folder)[1]
    named = {Path(name).name for name in _named_code(config)}
    data = backend_of(config) in _READ_AS_DATA

    def is_code(path: Path) -> bool:
        version = path.relative_to(folder).parts[0]
        return (
            bool(_CODE_SUFFIXES & set(path.suffixes))
            or path.name in named
            or (not data and version.isdecimal() and path.name != CONFIG_FILE)
        )

    files = (path for path in files_below(folder) if COMPILED not in path.parts)
    return sorted(filter(is_code, files))


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and below; a linked folder is entered, but none within itself."""
    for parent, folders, names in os.walk(folder, followlinks=True):
        above = {Path(parent).resolve(), *Path(parent).resolve().parents}
        folders[:] = [each for each in folders if Path(parent, each).resolve() not in above]
        yield from (path for name in names if (path := Path(parent, name)).is_file())


def _named_code(config: model_config_pb2.ModelConfig) -> Iterator[str]:
    """Yield the names of files that a configuration gives as code, whatever they end with."""
    yield from config.model_operations.op_library_filename
    yield config.parameters["EXECUTION_ENV_PATH"].string_value
    if backend_of(config) == "python":
        yield config.default_model_filename
