"""The artefacts of the tiny model, which the end-to-end tests need too."""

from tests.e2e.conftest import artifacts, built

__all__ = ["artifacts", "built"]
