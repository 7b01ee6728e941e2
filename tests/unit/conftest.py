"""Fixtures of the unit tests."""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk after every record, and every line of Optuna's journal."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
