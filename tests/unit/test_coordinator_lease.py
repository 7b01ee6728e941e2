"""What the lease of a study in a database, here SQLite, does besides being a lease."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from optuna.storages._rdb.models import TrialHeartbeatModel
from optuna.study import StudyDirection

from optimizer.study import lease as module
from optimizer.study.coordinator_lease import coordinator_lease
from optimizer.study.database import open_database


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.05)
    return f"sqlite:///{tmp_path}/study.db"


def test_running_trials_have_a_heartbeat_by_which_any_optuna_program_knows_them(url: str) -> None:
    storage = open_database(url)
    study = storage.create_new_study([StudyDirection.MINIMIZE], "test")
    trial = storage.create_new_trial(study)

    def beats() -> int:
        with storage.scoped_session() as session:
            return session.query(TrialHeartbeatModel).filter_by(trial_id=trial).count()

    with coordinator_lease(url, "test", lambda _: None):
        for _ in range(100):
            if beats():
                break
            threading.Event().wait(0.05)
    assert beats() == 1
    storage.close()


def test_another_study_of_the_database_is_free(url: str) -> None:
    with (
        coordinator_lease(url, "test", lambda _: None),
        coordinator_lease(url, "other", lambda _: None) as other,
    ):
        other.require()
