"""Fixtures of the unit tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.unit.fake_triton import Answer, FakeTriton, Serve, at_once


@pytest.fixture
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk after every record, and every line of Optuna's journal."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts fake Tritons, which end with the test."""
    servers: list[FakeTriton] = []

    def start(answer: Answer = at_once) -> FakeTriton:
        servers.append(FakeTriton(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.die()
