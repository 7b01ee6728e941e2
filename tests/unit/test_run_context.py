"""The context of a run: what is checked before a study's directory is written, and locked."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optimizer.commands import run_context
from optimizer.commands.run_context import RunContext, open_run
from optimizer.errors import SpaceChangedError, StudyBusyError, UsageError
from optimizer.machine.fingerprint import Machine
from optimizer.machine.slots import Slot
from optimizer.space_file.reader import Space
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Event, Note
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
