"""The context of a run: what is checked before a study's directory is written, and locked."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from docker import DockerClient

from optimizer.commands import run_context
from optimizer.commands.run_context import RunContext, open_run
from optimizer.configuration.hosting import ContainerHost, RemoteHost
from optimizer.errors import RequirementError, SpaceChangedError, StudyBusyError, UsageError
from optimizer.files.owned_names import FOLDER_PREFIX, owned_name
from optimizer.machine import docker_engine, gpus, quiet
from optimizer.machine.fingerprint import Machine
from optimizer.machine.quiet import ForeignUse
from optimizer.machine.slots import Slot
from optimizer.space_file.reader import Space
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Event, Note
from tests.unit.fake_docker import FakeContainer, FakeDocker
from tests.unit.fake_nvml import UUID, Card, install
from tests.unit.studies import MACHINE, SETTING
from tests.unit.test_wiring import SPACE

pytestmark = pytest.mark.usefixtures("fast_disk")


@pytest.fixture(autouse=True)
def _this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_context, "require_machine", lambda _: (SETTING.slot, MACHINE))
    monkeypatch.setattr(run_context, "require_packages", lambda _: None)


def opened(root: Path, **options: Any) -> AbstractContextManager[RunContext]:
    return open_run(SPACE, StudyDirectory(root), root / "cache", "start another", **options)


def test_a_refused_check_leaves_no_file(tmp_path: Path) -> None:
    def refuse(space: Space) -> tuple[Slot, Machine]:
        assert space == SPACE
        raise UsageError("not here")

    with (
        pytest.raises(UsageError, match="not here"),
        opened(tmp_path / "study", require=refuse),
    ):
        pytest.fail("it was opened")
    assert list(tmp_path.iterdir()) == []


def test_an_open_run_holds_its_directory(tmp_path: Path) -> None:
    with opened(tmp_path, seed=7, extra_limits_ms=(50.0,)) as context:
        assert context.cache.root == tmp_path / "cache"
        assert (context.seed, context.study_context.extra_limits_ms) == (7, (50.0,))
        assert context.machine_json["server_cores"] == list(SETTING.slot.cores)
        with pytest.raises(StudyBusyError), opened(tmp_path):
            pytest.fail("two runs of one study")
    with (
        pytest.raises(SpaceChangedError, match=r"another space or machine:\n.*also_limit_ms"),
        opened(tmp_path, extra_limits_ms=()),
    ):
        pytest.fail("it has another limit")


@pytest.mark.parametrize("owner_lives", [False, True])
def test_what_a_killed_run_left_on_a_gpu_is_removed_before_others_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner_lives: bool
) -> None:
    """A fake of Docker has a container whose process computes on a card of a fake NVML."""
    engine, card = FakeDocker(), Card(pids=(4711,))
    labels = {
        **docker_engine._owner(),
        **({} if owner_lives else {docker_engine._OWNER_STARTED: "1"}),
    }
    engine.made.append(FakeContainer(engine, "left", labels))
    engine.freed = lambda: setattr(card, "pids", ())
    connected = docker_engine.ContainerEngine(cast(DockerClient, engine))
    monkeypatch.setattr(docker_engine.ContainerEngine, "connect", lambda: connected)
    monkeypatch.setattr(gpus, "_RELEASE_SECONDS", 0.0)
    install(monkeypatch, {UUID: card})
    with opened(tmp_path) as opened_run:
        host = ContainerHost("triton:1", 2**28)
        on_gpu = replace(SETTING.slot, gpu_uuids=(UUID,))
        run = replace(opened_run, slot=on_gpu, space=replace(SPACE, host=host))
        if owner_lives:
            with pytest.raises(RequirementError, match="must be free to be measured"):
                run.announce(lambda _: None)
        else:
            run.announce(lambda _: None)
    assert bool(engine.made) == owner_lives


def test_machine_and_folders_are_announced(tmp_path: Path) -> None:
    events: list[Event] = []
    with opened(tmp_path) as context:
        apart = replace(SETTING.slot, cores=(0, 1), client_cores=(2, 3))
        replace(context, slot=apart).announce(events.append)
        replace(context, slot=replace(apart, client_cores=(0, 1))).announce(events.append)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert notes[0] == f"machine: {MACHINE.summary}"
    assert "server and load generator have their own cores" in notes
    assert "server and load generator share cores (fewer than four available)" in notes
    assert notes[-1] == f"results: {tmp_path}; artefact cache: {tmp_path / 'cache'}"


def test_a_run_waits_for_quiet_where_it_is_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quiet, "foreign_use", lambda slot: ForeignUse(1.9, len(slot.cores)))
    remote = replace(SPACE, host=RemoteHost("gpu:8001", "gpu:8000", "gpu:8002", tmp_path))

    def busy(context: RunContext, **changes: Any) -> bool:
        events: list[Event] = []
        replace(context, **changes).announce(events.append)
        return any("still busy" in event.text for event in events if isinstance(event, Note))

    with opened(tmp_path) as context:
        assert busy(context, wait_for_quiet_seconds=0.0)
        assert not busy(context)
        # The processes of another machine cannot be seen.
        assert not busy(context, wait_for_quiet_seconds=0.0, space=remote)


def test_what_killed_processes_left_is_removed_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = [
        tmp_path / "study" / owned_name(".summary.json.new"),
        tmp_path / "study" / "trials" / owned_name(".00007.json.new"),
        tmp_path / "tmp" / owned_name(FOLDER_PREFIX),
    ]
    left = [
        path.with_name(path.name.replace(f"-{os.getpid()}-", f"-{ended.pid}-")) for path in left
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with opened(tmp_path / "study"):
        assert not any(path.exists() for path in left)
