"""Fixtures of the unit tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from optimizer.cli import main
from tests.unit.commands import Commands, Said
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


@pytest.fixture
def own_signals() -> Iterator[None]:
    """`main` takes the signals of its process over; here that is pytest's."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def optimizer(
    own_signals: None,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Commands:
    """Runs a command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> Said:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        captured = capsys.readouterr()
        return Said(ended.value.code, captured.out, captured.err)

    return command
