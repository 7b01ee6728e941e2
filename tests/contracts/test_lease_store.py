"""A study is run by one process at a time, wherever its lease is kept."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from optimizer.errors import StorageError, StudyBusyError
from optimizer.study import lease as module
from optimizer.study.coordinator_lease import DatabaseLease
from optimizer.study.folder_lease import FolderLease
from optimizer.study.lease import Holder, Lease, LeaseStore

NewStore = Callable[[], LeaseStore]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.1)


@pytest.fixture(params=["folder", "database"])
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NewStore]:
    """Makes the store of one more process."""
    with ExitStack() as stack:

        def folder() -> FolderLease:
            (tmp_path / "lease").mkdir(exist_ok=True)
            return FolderLease(tmp_path / "lease")

        def database() -> DatabaseLease:
            store = DatabaseLease(f"sqlite:///{tmp_path}/study.db", "test", lambda _: None)
            stack.callback(store.close)
            return store

        yield folder if request.param == "folder" else database


def lease_of(store: LeaseStore, events: list[str] | None = None) -> Lease:
    return Lease("test", store, events.append if events is not None else lambda _: None)


def held_by(store: LeaseStore, holder: Holder) -> Lease:
    """A lease of another process, which shows no sign of life."""
    lease = lease_of(store)
    lease._own = holder
    lease._take()
    return lease


def elsewhere() -> Holder:
    return replace(Holder.this_process(), host="other", process=7, machine="another boot")


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", ""])
    process.wait()
    return process.pid


def test_a_second_process_is_refused_by_the_name_of_the_first(new_store: NewStore) -> None:
    store = new_store()
    with lease_of(store), pytest.raises(StudyBusyError) as refused, lease_of(new_store()):
        pass
    own, message = Holder.this_process(), str(refused.value)
    assert f"study test in {store.where} is being run by process {os.getpid()} of {own.user}" in (
        message
    )
    assert f"on {own.host}, since 20" in message
    assert "--study NEW" in message


def test_a_lease_that_was_given_back_can_be_taken(new_store: NewStore) -> None:
    for _ in range(3):
        events: list[str] = []
        with lease_of(new_store(), events) as lease:
            lease.require()
        assert not events


def test_the_lease_of_a_process_that_is_gone_is_taken_over_at_once(
    new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SILENT_SECONDS", 1e9)
    held_by(new_store(), replace(Holder.this_process(), process=ended_process()))
    events: list[str] = []
    with lease_of(new_store(), events):
        assert "which is gone: this run takes it over" in "\n".join(events)


def test_a_process_that_has_the_id_of_one_that_is_gone_does_not_hold_its_lease(
    new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SILENT_SECONDS", 1e9)
    own = Holder.this_process()
    held_by(new_store(), replace(own, started=own.started - 1))
    with lease_of(new_store()) as lease:
        lease.require()


def test_a_change_of_the_clock_does_not_make_a_holder_another_process(
    new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time at which a process was started, in seconds since 1970, moves with the clock."""
    with lease_of(new_store()):
        monkeypatch.setattr("psutil.boot_time", lambda: 0.0)
        monkeypatch.setattr("psutil._pslinux.boot_time", lambda: 0.0)
        with pytest.raises(StudyBusyError), lease_of(new_store()):
            pass


def test_a_process_of_the_same_id_in_another_container_does_not_answer_for_a_holder(
    new_store: NewStore,
) -> None:
    """Its number alone shows whether the holder is alive."""
    boot = Holder.this_process().machine.partition(" ")[0]
    other = replace(Holder.this_process(), machine=f"{boot} pid:[1]")
    living = held_by(new_store(), other)
    living._thread.start()
    with pytest.raises(StudyBusyError), lease_of(new_store()):
        pass
    living.__exit__()


def test_a_holder_of_before_a_reboot_is_taken_over_without_a_sign_of_life(
    new_store: NewStore,
) -> None:
    """Another machine may have the same name, so that its number is watched first."""
    held_by(new_store(), replace(Holder.this_process(), machine="an-earlier-boot pid:[1]"))
    events: list[str] = []
    with lease_of(new_store(), events):
        assert "watching for a sign of life" in "\n".join(events)


def test_a_silent_holder_on_another_machine_is_taken_over_and_finds_out(
    new_store: NewStore,
) -> None:
    silent = held_by(new_store(), elsewhere())
    events: list[str] = []
    with lease_of(new_store(), events) as lease:
        assert "may be run by process 7" in "\n".join(events)
        assert "on other" in "\n".join(events)
        with pytest.raises(StorageError, match=f"taken over by process {os.getpid()} "):
            silent.require()
        silent._store.release()
        lease.require()


def test_a_living_holder_on_another_machine_is_not_taken_over(new_store: NewStore) -> None:
    """However wrong its clock is: only its number is looked at."""
    living = held_by(new_store(), replace(elsewhere(), since="1970-01-01 00:00:00 UTC"))
    living._thread.start()
    try:
        with (
            pytest.raises(StudyBusyError, match=r"process 7 .* on other, since 1970"),
            lease_of(new_store()),
        ):
            pass
        living.require()
    finally:
        living.__exit__()


def test_of_several_that_take_over_at_once_one_goes_on(new_store: NewStore) -> None:
    held_by(new_store(), elsewhere())
    begin, ends = threading.Barrier(3), list[str]()

    def take() -> None:
        begin.wait()
        try:
            with lease_of(new_store()) as lease:
                threading.Event().wait(1.0)
                lease.require()
                ends.append("ran")
        except StudyBusyError:
            ends.append("refused")

    threads = [threading.Thread(target=take) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(ends) == ["ran", "refused", "refused"]
