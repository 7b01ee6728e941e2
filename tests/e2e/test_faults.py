"""Random faults at random moments: a disturbed study is, in the end, the undisturbed one.

`CASES=all` injects as many as docs/reference/faults.md states; by default a sample of them.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from optimizer.study.directory import StudyDirectory
from tests.e2e import tiny
from tests.e2e.conftest import Mount, StartOptimizer, fill
from tests.e2e.replayed_runs import Replayed, TableEvaluator, told
from tests.e2e.running import wait_until
from tests.sampling import ALL_CASES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

REPLAYED_KILLS = 200 if ALL_CASES else 5
REAL_KILLS = 30 if ALL_CASES else 1
FULL_DISKS = 50 if ALL_CASES else 3
FAULTS_OF_A_STUDY = 8
"""After these, a study is left to run to its end."""

LATEST = 0.4
"""Of the time that an undisturbed study takes; each fault comes that soon after a start, so that a
study has several before its end."""

SAMPLERS = ("random", "tpe", "grid")


@dataclass(frozen=True)
class Undisturbed:
    """A study that ran to its end at once.

    Attributes:
        seconds: that it took.
    """

    content: dict[str, Any]
    seconds: float


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Undisturbed]:
    """By sampler."""
    studies = {}
    for sampler in SAMPLERS:
        study = Replayed(tmp_path_factory.mktemp(sampler), sampler)
        began = time.monotonic()
        assert study.run() == 0, study.errors
        studies[sampler] = Undisturbed(study.content(), time.monotonic() - began)
        assert study.leftovers() == []
        assert all(len(each) == 1 for each in told(study.directory).values())
    return studies


def assert_as(undisturbed: Undisturbed, study: Replayed) -> None:
    """The study is finished and holds what an undisturbed one does, each trial told once."""
    content = study.content()
    for key, expected in undisturbed.content.items():
        assert content[key] == expected, key
    assert study.leftovers() == []


def records(directory: StudyDirectory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.trials.folder.glob("[0-9]*.json")}


def assert_sound(study: Replayed, before: dict[str, bytes]) -> dict[str, bytes]:
    """No record is lost, changed or half written; return those that there are now."""
    now = records(study.directory)
    assert {name: now.get(name) for name in before} == before
    assert len(study.directory.trials.read_all()) == len(now)
    return now


def test_killed_at_random_moments_a_search_ends_as_if_it_had_not_been(
    undisturbed: dict[str, Undisturbed], tmp_path: Path
) -> None:
    moments, kills, studies = random.Random(1), 0, 0
    while kills < REPLAYED_KILLS:
        sampler = SAMPLERS[studies % len(SAMPLERS)]
        study = Replayed(tmp_path / f"{studies}", sampler)
        studies += 1
        before: dict[str, bytes] = {}
        for _ in range(FAULTS_OF_A_STUDY):
            process = study.start()
            process.join(moments.uniform(0.0, LATEST * undisturbed[sampler].seconds))
            process.kill()
            process.join()
            kills += process.exitcode == -signal.SIGKILL
            before = assert_sound(study, before)
        assert study.run() == 0, study.errors
        assert_as(undisturbed[sampler], study)


def test_a_disk_that_fills_up_at_random_moments_costs_nothing_but_time(
    undisturbed: dict[str, Undisturbed], mount: Mount, tmp_path: Path
) -> None:
    moments, full, studies = random.Random(2), 0, 0
    disk = mount("disk", "size=32m")
    while full < FULL_DISKS:
        study = Replayed(tmp_path / f"{studies}", "tpe", disk / f"{studies}")
        studies += 1
        before: dict[str, bytes] = {}
        for _ in range(FAULTS_OF_A_STUDY):
            process = study.start()
            process.join(moments.uniform(0.0, LATEST * undisturbed["tpe"].seconds))
            ballast = fill(disk)
            process.join(60)
            if process.exitcode != 0:
                assert process.exitcode == 4, study.errors
                assert study.errors.startswith(f"error: cannot write {disk}/"), study.errors
                assert study.errors.endswith(": No space left on device\n"), study.errors
                assert study.leftovers() == []
                full += 1
            ballast.unlink()
            before = assert_sound(study, before)
        assert study.run() == 0, study.errors
        assert_as(undisturbed["tpe"], study)


def configurations(directory: StudyDirectory) -> list[str]:
    """In the order of their first trials; a busy machine has some tried a second time."""
    every = directory.trials.read_all().values()
    return list(dict.fromkeys(record.config.digest for record in every))


def test_killed_at_random_moments_a_search_on_a_server_measures_the_same(
    tmp_path: Path, start: StartOptimizer
) -> None:
    moments, kills, studies = random.Random(4), 0, 0
    batches = {"batching": [True], "max_batch_size": [2, 4, 8, 16]}
    space = tiny.write_space(tmp_path, tiny.space(parameters=batches))
    options = ("--sampler", "grid", "--trials", 4 if ALL_CASES else 2)
    began = time.monotonic()
    whole = start(space, *options, "--study", "whole")
    assert whole.wait() == 0, whole.errors
    seconds = time.monotonic() - began
    expected = configurations(StudyDirectory(tmp_path / "results" / "whole"))
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    while kills < REAL_KILLS:
        directory = StudyDirectory(tmp_path / "results" / f"killed-{studies}")
        command = (space, *options, "--study", directory.name)
        studies += 1
        before: dict[str, bytes] = {}
        for _ in range(min(FAULTS_OF_A_STUDY, REAL_KILLS)):
            killed = start(*command, environment={"TMPDIR": str(temporary)})
            with suppress(subprocess.TimeoutExpired):
                killed.process.wait(moments.uniform(0.0, LATEST * seconds))
            killed.kill()
            kills += killed.process.returncode == -signal.SIGKILL
            killed.assert_nothing_left()
            now = records(directory)
            assert {name: now.get(name) for name in before} == before
            before = now
        again = start(*command, environment={"TMPDIR": str(temporary)})
        assert again.wait() == 0, again.errors
        assert configurations(directory) == expected
        assert {**records(directory), **before} == records(directory)
        assert all(len(each) == 1 for each in told(directory).values())
        assert [path for path in directory.root.rglob(".*") if path.name != ".gitkeep"] == []
        # ONNX Runtime keeps one file of this name there, killed or not.
        assert [path.name for path in temporary.iterdir() if path.name != ".ses"] == []


def let_the_clock_jump(patch: pytest.MonkeyPatch) -> None:
    """By up to a day forward or back, whenever it is read."""
    clock, jumps = time.time, random.Random(3)
    patch.setattr(time, "time", lambda: clock() + jumps.uniform(-86400, 86400))


def test_a_clock_that_jumps_changes_nothing(
    undisturbed: dict[str, Undisturbed], tmp_path: Path
) -> None:
    study = Replayed(tmp_path / "study", "tpe", fault=let_the_clock_jump)
    assert study.run() == 0, study.errors
    assert_as(undisturbed["tpe"], study)


def test_a_process_that_is_stopped_for_a_while_goes_on(
    undisturbed: dict[str, Undisturbed], tmp_path: Path
) -> None:
    study = Replayed(tmp_path / "study", "tpe")
    process = study.start()
    wait_until(lambda: records(study.directory), "a record")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(1.0)
    os.kill(process.pid, signal.SIGCONT)
    process.join(60)
    assert process.exitcode == 0, study.errors
    assert_as(undisturbed["tpe"], study)


def test_results_that_vanish_end_the_run_with_their_path(
    undisturbed: dict[str, Undisturbed], tmp_path: Path
) -> None:
    study = Replayed(tmp_path / "study", "tpe")
    results, away = study.directory.root.parent, tmp_path / "away"
    process = study.start()
    wait_until(lambda: records(study.directory), "a record")
    results.rename(away)
    process.join(60)
    assert process.exitcode == 4, study.errors
    assert study.errors.startswith("error: "), study.errors
    assert f" {results}/" in study.errors
    shutil.rmtree(results, ignore_errors=True)  # what the run has written there since
    away.rename(results)
    assert study.run() == 0, study.errors
    assert_as(undisturbed["tpe"], study)


def run_out_of_memory(patch: pytest.MonkeyPatch) -> None:
    """As Python does where the kernel gives this process no more."""

    def fail(*_: object) -> None:
        raise MemoryError

    patch.setattr(TableEvaluator, "evaluate", fail)


def test_a_process_without_memory_ends_with_one_message_and_is_resumed(
    undisturbed: dict[str, Undisturbed], tmp_path: Path
) -> None:
    study = Replayed(tmp_path / "study", "tpe")
    assert replace(study, fault=run_out_of_memory).run() == 4
    assert study.errors == "error: memory ran out; make room, and rerun the command to resume\n"
    assert study.run() == 0, study.errors
    assert_as(undisturbed["tpe"], study)
