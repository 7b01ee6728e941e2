"""Versions of what makes artefacts: the libraries, read without importing them, and our recipes."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from optimizer.errors import RequirementError

RECIPES: Mapping[str, int] = {
    "fp32": 1,
    "fp16": 1,
    "bf16": 1,
    "int8_s8s8": 2,
    "int8_u8s8": 2,
    "int8_u8s7": 1,
    "int8_trt": 1,
    "openvino": 1,
    "torch": 1,
    "reference": 1,
}
"""Version of how each kind of file is made. A change of the code that changes the files raises it,
and no file of an earlier version is used again."""


def versions(*packages: str) -> dict[str, str]:
    """Installed version of each package, by name.

    Raises:
        RequirementError: when one is not installed.
    """
    return {package: _version(package) for package in packages}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError as error:
        raise RequirementError(
            f"building artefacts needs {package}: install it with pip"
        ) from error
