"""One coordinator at a time runs a study in a database, here in SQLite."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.storages._rdb.models import TrialHeartbeatModel
from optuna.study import StudyDirection

from optimizer.errors import StorageError, StudyBusyError
from optimizer.study import coordinator_lease
from optimizer.study.coordinator_lease import Coordinator, CoordinatorLease
from optimizer.study.database import open_database
from optimizer.study.events import Event, Note


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator_lease, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(coordinator_lease, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(coordinator_lease, "_POLL_SECONDS", 0.1)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db"


def lease_of(url: str, events: list[Event] | None = None) -> CoordinatorLease:
    return CoordinatorLease(url, "test", events.append if events is not None else lambda _: None)


def held_by(url: str, holder: Coordinator) -> CoordinatorLease:
    """A lease of another process, which shows no sign of life."""
    lease = lease_of(url)
    lease._own = holder
    lease._make_table()
    lease._take()
    return lease


def elsewhere() -> Coordinator:
    return replace(Coordinator.this_process(), host="other", process=7, machine="another boot")


def notes(events: list[Event]) -> str:
    return "\n".join(each.text for each in events if isinstance(each, Note))


def test_a_second_coordinator_is_refused_by_name_of_the_first(url: str) -> None:
    with lease_of(url), pytest.raises(StudyBusyError) as refused, lease_of(url):
        pass
    own = Coordinator.this_process()
    message = str(refused.value)
    assert f"study test in {url} is being run by process {os.getpid()} of {own.user}" in message
    assert f"on {own.host}, since 20" in message
    assert "--study NEW" in message


def test_a_lease_that_was_given_back_can_be_taken(url: str) -> None:
    for _ in range(2):
        events: list[Event] = []
        with lease_of(url, events) as lease:
            lease.require()
        assert not events


def test_the_lease_of_a_process_that_is_gone_is_taken_over_at_once(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator_lease, "SILENT_SECONDS", 1e9)
    held_by(url, replace(Coordinator.this_process(), process=2**22 + 1))
    events: list[Event] = []
    with lease_of(url, events):
        assert "which is gone: this run takes it over" in notes(events)


def test_a_process_that_has_the_id_of_one_that_is_gone_does_not_hold_its_lease(url: str) -> None:
    held_by(url, replace(Coordinator.this_process(), started=1.0))
    with lease_of(url) as lease:
        lease.require()


def test_a_silent_holder_on_another_machine_is_taken_over_and_finds_out(url: str) -> None:
    silent = held_by(url, elsewhere())
    events: list[Event] = []
    with lease_of(url, events):
        assert "may be run by process 7" in notes(events)
        assert "on other" in notes(events)
        with pytest.raises(StorageError, match=f"taken over by process {os.getpid()} "):
            silent.require()


def test_a_living_holder_on_another_machine_is_not_taken_over(url: str) -> None:
    """However wrong its clock is: only its number is looked at."""
    living = held_by(url, replace(elsewhere(), since="1970-01-01 00:00:00 UTC"))
    living._thread.start()
    try:
        with (
            pytest.raises(StudyBusyError, match=r"process 7 .* on other, since 1970"),
            lease_of(url),
        ):
            pass
        living.require()
    finally:
        living.__exit__()


def test_of_two_that_take_over_at_once_one_goes_on(url: str) -> None:
    held_by(url, elsewhere())
    begin, ends = threading.Barrier(2), list[str]()

    def take() -> None:
        begin.wait()
        try:
            with lease_of(url) as lease:
                threading.Event().wait(1.0)
                lease.require()
                ends.append("ran")
        except StudyBusyError:
            ends.append("refused")

    threads = [threading.Thread(target=take) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(ends) == ["ran", "refused"]


def test_running_trials_have_a_heartbeat_by_which_any_optuna_program_knows_them(url: str) -> None:
    storage = open_database(url)
    study = storage.create_new_study([StudyDirection.MINIMIZE], "test")
    trial = storage.create_new_trial(study)

    def beats() -> int:
        with storage.scoped_session() as session:
            return session.query(TrialHeartbeatModel).filter_by(trial_id=trial).count()

    with lease_of(url):
        for _ in range(100):
            if beats():
                break
            threading.Event().wait(0.05)
    assert beats() == 1
    storage.close()


def test_another_study_of_the_database_is_free(url: str) -> None:
    with lease_of(url), CoordinatorLease(url, "other", lambda _: None) as other:
        other.require()
