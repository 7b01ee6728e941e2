"""The time of a run on the real server: it ends by then, whatever it is doing."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import tiny
from tests.e2e.conftest import Built
from tests.e2e.running import Optimizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LONG_CONFIRM = tiny.space(
    parameters={"batching": [True], "max_batch_size": [4]},
    measurement={"confirm_seconds": 300, "confirm_requests": 200_000},
)
"""A space whose one trial takes seconds, and its confirm phase twenty minutes."""


def run(folder: Path, space: Path, cache: Path, *options: object) -> Optimizer:
    command = ["run", space, "--cache", cache, "--sampler", "random", *options]
    optimizer = Optimizer(command, folder)
    optimizer.wait()
    return optimizer


def run_until(seconds: float, folder: Path, space: Path, cache: Path) -> Optimizer:
    until = datetime.datetime.now().astimezone() + datetime.timedelta(seconds=seconds)
    return run(folder, space, cache, "--until", f"{until:%H:%M:%S}")


def summary_in(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "results" / "tiny" / "summary.json").read_text()))


def test_a_confirm_phase_of_twenty_minutes_is_shortened_to_end_by_a_time_of_day(
    built: Built, tmp_path: Path
) -> None:
    space = tiny.write_space(tmp_path, LONG_CONFIRM)
    ended = run_until(30, tmp_path, space, built.cache)
    if "ok: confirmed" not in ended.output:
        # On a machine that is busy with something else.
        ended = run_until(150, tmp_path, space, built.cache)
    assert ended.process.returncode == 0, ended.output + ended.errors
    shortened = "shortened to end in time: load levels of at most"
    assert f"the confirm phase is {shortened}" in ended.output
    assert f"The confirm phase was {shortened}" in ended.output
    assert summary_in(tmp_path)["confirm_shortened"]


def test_a_run_without_time_to_prepare_leaves_nothing_unfinished_and_is_resumed(
    built: Built, tmp_path: Path
) -> None:
    space = tiny.write_space(tmp_path, tiny.SPACE)
    empty = tmp_path / "cache"
    short = run(tmp_path, space, empty, "--timeout", "6s")
    assert short.process.returncode == 4
    assert "the time limit of 6 s ended in the prepare phase" in short.errors
    assert not (tmp_path / "results" / "tiny" / "summary.json").exists()
    resumed = run(tmp_path, space, built.cache)
    assert resumed.process.returncode == 0, resumed.output + resumed.errors
    assert "confirm_shortened" not in summary_in(tmp_path)
