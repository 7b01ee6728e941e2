"""Documented commands and Python code that serve models run on the real server with tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.docs.blocks import Command, blocks, commands
from tests.docs.how_checked import on_a_server
from tests.docs.parsing import command_of
from tests.docs.python_blocks import run_block, searches
from tests.e2e import tiny
from tests.e2e.conftest import Built
from tests.e2e.running import Optimizer
from tests.sampling import sampled

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SERVED = [command for command in commands() if on_a_server(command)]
SEARCHES = [command for command in SERVED if {"--study", "--search"} & {*command.words}]
"""They make a study of their own, and no other command needs it."""
PARAMETERS = {
    "runtime": ["openvino"],
    "precision": ["fp32", "int8"],
    "max_batch_size": [32],
}
"""Four configurations, including those that the pages name."""
USERS = {
    "TrafficPattern": {
        "TrafficType": "PHASES",
        "Phases": [{"InitialNumberOfUsers": 2, "SpawnRate": 1, "DurationInSeconds": 2}],
    },
    "StoppingConditions": {"MaxInvocations": 30000},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with files named as in the pages; its studies are shared by the commands."""
    folder = tmp_path_factory.mktemp("served")
    space = tiny.space(parameters=PARAMETERS)
    tiny.write_space(folder, {**space, "study": "my-model"})
    (folder / "users.json").write_text(json.dumps(USERS))
    job = {**USERS, "ResourceLimit": {"MaxNumberOfTests": 1}, "JobDurationInSeconds": 120}
    (folder / "job.json").write_text(json.dumps(job))
    return folder


@pytest.mark.parametrize(
    "command",
    [each for each in SERVED if each not in SEARCHES or each in sampled(SEARCHES, every=5)],
    ids=str,
)
def test_a_command_that_serves_runs(command: Command, folder: Path, built: Built) -> None:
    environment = {
        "OPTIMIZER_CACHE": str(built.cache),
        "XDG_CONFIG_HOME": str(folder / "config"),
    }
    optimizer = Optimizer(command.words[3:], folder, environment=environment)
    try:
        code = optimizer.wait(580)
    finally:
        optimizer.end()
    # The capacity of the tiny model varies with the load of the machine.
    expected = (0, 1, 5) if command_of(command) == "verify" else (0,)
    assert code in expected, optimizer.output + optimizer.errors
    assert optimizer.output != ""


def test_python_that_searches(folder: Path, built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OPTIMIZER_CACHE", str(built.cache))
    searching = [block for block in blocks("python") if searches(block)]
    assert searching
    for block in searching:
        run_block(block)
