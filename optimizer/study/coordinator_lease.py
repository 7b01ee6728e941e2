"""The lease of a study in a database, which one coordinator at a time holds.

It is a row of a table. It is taken by one conditional statement, which the database carries out for
one of several processes that try at once.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from functools import partial
from threading import get_ident
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from sqlalchemy import BigInteger, Column, MetaData, String, Table, and_
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from optimizer.errors import StorageError
from optimizer.study.database import open_database
from optimizer.study.lease import Holder, Lease, LeaseState, Warn
from optimizer.study.optuna_storage import database_failures

_HEARTBEAT_SECONDS = 30.0
"""Between heartbeats of the running trials."""

_TABLE = Table(
    "triton_cost_optimizer_coordinators",
    MetaData(),
    Column("study", String(255), primary_key=True),
    Column("token", String(32), nullable=False),
    Column("beat", BigInteger, nullable=False),
    Column("host", String(255), nullable=False),
    Column("process", BigInteger, nullable=False),
    Column("user", String(255), nullable=False),
    Column("since", String(40), nullable=False),
    Column("machine", String(100), nullable=False),
    Column("started", BigInteger, nullable=False),
)


@contextmanager
def coordinator_lease(url: str, study: str, warn: Warn) -> Iterator[Lease]:
    """Hold the lease of a study in a database.

    Args:
        url: address of the database.
        warn: receives what holds up the run, from the thread that enters.

    Raises:
        StudyBusyError: another coordinator holds the lease and is alive.
        StorageError: the database cannot be used.
    """
    store = DatabaseLease(url, study, warn)
    try:
        with Lease(study, store, warn) as lease:
            yield lease
    finally:
        store.close()


class DatabaseLease:
    """A `LeaseStore` in a database.

    While it is kept, the heartbeat of the running trials is recorded as well, by which any program
    that uses Optuna can tell them from stale ones.

    Args:
        warn: receives what holds up the run, from the thread that created this.
    """

    def __init__(self, url: str, study: str, warn: Warn) -> None:
        self._study = study
        self._warn = warn
        self._owner = get_ident()
        self._untold: deque[str] = deque()
        self._token = uuid.uuid4().hex
        self._heartbeat_due = time.monotonic()
        with database_failures("the study storage"):
            self._storage = open_database(url, tell=self._tell)
        self.where = self._storage.shown
        try:
            with (
                database_failures(self.where),
                suppress(IntegrityError),
            ):  # another process makes it
                self._storage.repeat(partial(_TABLE.create, self._storage.engine, checkfirst=True))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connections, and wait for the server no longer."""
        self._storage.close()

    def read(self) -> LeaseState:
        """Return the lease as it is now, see `LeaseStore.read`."""

        def read() -> Any:
            with self._storage.engine.begin() as connection:
                query = _TABLE.select().where(_TABLE.c.study == self._study)
                return connection.execute(query).mappings().first()

        with database_failures(self.where):
            row = self._storage.repeat(read)
        if row is None:
            return LeaseState()
        holder = Holder(**{field.name: row[field.name] for field in fields(Holder)})
        return LeaseState(row["token"], row["beat"], holder, free=False)

    def take(self, read: LeaseState, own: Holder) -> bool:
        """Take the lease, see `LeaseStore.take`."""
        values = {"token": self._token, "beat": 0, **asdict(own)}
        with database_failures(self.where):
            if read.free:
                return self._insert({"study": self._study, **values})
            seen = and_(_TABLE.c.token == read.token, _TABLE.c.beat == read.beat)
            update = _TABLE.update().where(_TABLE.c.study == self._study, seen).values(values)
            return bool(self._execute(update))

    def beat(self) -> bool:
        """Raise the number, see `LeaseStore.beat`."""
        while self._untold and get_ident() == self._owner:
            self._warn(self._untold.popleft())
        update = _TABLE.update().where(self._is_own).values(beat=_TABLE.c.beat + 1)
        with database_failures(self.where):
            held = bool(self._execute(update))
        if held and get_ident() != self._owner and time.monotonic() >= self._heartbeat_due:
            self._heartbeat_due = time.monotonic() + _HEARTBEAT_SECONDS
            with suppress(SQLAlchemyError, StorageInternalError, StorageError):
                self._record_heartbeats()
        return held

    def release(self) -> None:
        """Free the lease, see `LeaseStore.release`."""
        with database_failures(self.where):
            self._execute(_TABLE.delete().where(self._is_own))

    @property
    def _is_own(self) -> Any:
        return and_(_TABLE.c.study == self._study, _TABLE.c.token == self._token)

    def _tell(self, text: str) -> None:
        """Tell a message of the storage, by the thread that runs the study."""
        if get_ident() == self._owner:
            self._warn(text)
        else:
            self._untold.append(text)

    def _insert(self, values: dict[str, Any]) -> bool:
        try:
            self._execute(_TABLE.insert().values(values))
        except IntegrityError:
            return self.read().token == self._token  # repeated, as its reply was lost
        return True

    def _execute(self, statement: Any) -> int:
        """Execute a statement; return the number of its rows."""

        def execute() -> int:
            with self._storage.engine.begin() as connection:
                return int(connection.execute(statement).rowcount)

        return self._storage.repeat(execute)

    def _record_heartbeats(self) -> None:
        try:
            study = self._storage.get_study_id_from_name(self._study)
        except KeyError:
            return  # it is made later
        running = self._storage.get_all_trials(study, False, (TrialState.RUNNING,))
        for trial in running:
            self._storage.record_heartbeat(trial._trial_id)
