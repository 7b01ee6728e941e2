"""Versions of the libraries that make artefacts, read without importing them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from optimizer.errors import RequirementError


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
