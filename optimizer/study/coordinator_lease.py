"""The lease of a study in a database, which one coordinator at a time holds.

The holder raises a number in its row every few seconds. Whoever wants the lease watches that number
by its own clock, so that hosts and server need not agree on the time: a number that rises belongs
to a living coordinator, one that stands still for `SILENT_SECONDS` to a dead one. On the same
machine the process itself tells. A lease is taken by one conditional statement, which the database
carries out for one of several that try at once.
"""

from __future__ import annotations

import getpass
import os
import socket
import time
import uuid
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from threading import Event, Thread, get_ident
from typing import Any, Self

import psutil
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from sqlalchemy import BigInteger, Column, Float, MetaData, String, Table, and_
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from optimizer.errors import StorageError, StudyBusyError
from optimizer.study.database import open_database
from optimizer.study.events import Note, Watcher
from optimizer.study.optuna_storage import storage_failures

BEAT_SECONDS = 5.0
SILENT_SECONDS = 30.0
"""A holder on another machine that shows no sign of life for so long is dead."""

_POLL_SECONDS = 1.0
_BEATS_OF_TRIALS = 6
"""Beats of the lease for one heartbeat of the running trials."""

_STARTED_SD_SECONDS = 5.0
"""By how much the start of one process may differ as two others see it."""

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
    Column("started", Float(53), nullable=False),
)


@dataclass(frozen=True)
class Coordinator:
    """A process that runs a study.

    Attributes:
        machine: the same for processes that see each other's process ids.
        started: start of the process in seconds since the epoch; ids are used again.
    """

    host: str
    process: int
    user: str
    since: str
    machine: str
    started: float

    @classmethod
    def this_process(cls) -> Coordinator:
        """Return this process as the coordinator of a study."""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return cls(
            socket.gethostname(),
            os.getpid(),
            _user(),
            f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
            f"{boot} {Path('/proc/self/ns/pid').readlink()}",
            psutil.Process().create_time(),
        )

    def __str__(self) -> str:
        return f"process {self.process} of {self.user} on {self.host}, since {self.since}"

    @property
    def alive_here(self) -> bool | None:
        """Whether the process is alive; None on another machine, from which nobody can tell."""
        if self.machine != Coordinator.this_process().machine:
            return None
        try:
            process = psutil.Process(self.process)
            same = abs(process.create_time() - self.started) < _STARTED_SD_SECONDS
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return f"user {os.getuid()}"


@dataclass(frozen=True)
class _Row:
    token: str
    beat: int
    holder: Coordinator


class CoordinatorLease:
    """Holds the lease of one study; a context manager.

    A thread with a connection of its own keeps the lease, and records the heartbeat of the running
    trials, by which any program that uses Optuna can tell them from stale ones.

    Args:
        url: address of the database.
        watch: receives what holds up the run, from the thread that enters.

    Raises:
        StudyBusyError: on entering, when another coordinator holds the lease and is alive.
        StorageError: when the database cannot be used.
    """

    def __init__(self, url: str, study: str, watch: Watcher) -> None:
        self._study = study
        self._watch = watch
        self._owner = get_ident()
        self._untold: deque[str] = deque()
        self._token = uuid.uuid4().hex
        self._own = Coordinator.this_process()
        self._ended = Event()
        self._thread = Thread(target=self._keep, name="coordinator lease", daemon=True)
        with storage_failures("the study storage"):
            self._storage = open_database(url, tell=self._tell)
            self._where = self._storage.shown

    def __enter__(self) -> Self:
        try:
            with storage_failures(self._where):
                self._make_table()
                self._take()
        except BaseException:
            self._storage.close()
            raise
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._storage.close()  # opens again for the last statement, and does not wait for it
        self._thread.join(BEAT_SECONDS)
        with suppress(SQLAlchemyError, StorageError):
            self._execute(_TABLE.delete().where(self._is_own))
        self._storage.close()

    def require(self) -> None:
        """Check that this process still holds the lease, before it changes the study.

        Raises:
            StorageError: when another coordinator took over, or the database does not answer.
        """
        while self._untold:
            self._watch(Note(self._untold.popleft(), True))
        with storage_failures(self._where):
            if self._beat():
                return
            row = self._row()
        raise StorageError(
            f"study {self._study} in {self._where} was taken over by "
            f"{row.holder if row is not None else 'another coordinator'}: this process gave no "
            f"sign of life for {SILENT_SECONDS:g} s"
        )

    @property
    def _is_own(self) -> Any:
        return and_(_TABLE.c.study == self._study, _TABLE.c.token == self._token)

    def _tell(self, text: str) -> None:
        """Tell a message of the storage; watchers are called by the thread that runs the study."""
        if get_ident() == self._owner:
            self._watch(Note(text, True))
        else:
            self._untold.append(text)

    def _make_table(self) -> None:
        with suppress(IntegrityError):  # another process makes it
            self._storage.repeat(partial(_TABLE.create, self._storage.engine, checkfirst=True))

    def _take(self) -> None:
        """Take the lease, from a dead holder if need be. Raises StudyBusyError."""
        while not self._insert():
            row = self._row()
            if row is None:
                continue  # given back meanwhile
            if row.holder.alive_here or (row.holder.alive_here is None and self._rises(row)):
                raise StudyBusyError(self._busy_text(row.holder))
            if self._replace(row):
                text = f"study {self._study} was being run by {row.holder}, which is gone"
                self._watch(Note(f"{text}: this run takes it over", True))
                return

    def _busy_text(self, holder: Coordinator) -> str:
        return (
            f"study {self._study} in {self._where} is being run by {holder}: wait for it, stop it, "
            "or start another study with --study NEW"
        )

    def _rises(self, row: _Row) -> bool:
        """Watch the row of a holder on another machine; return whether its number rises."""
        self._watch(
            Note(
                f"study {self._study} may be run by {row.holder}: watching for a sign of life, "
                f"{SILENT_SECONDS:g} s at most",
                True,
            )
        )
        silent = 0.0
        while silent < SILENT_SECONDS:
            time.sleep(_POLL_SECONDS)
            asked = time.monotonic()
            now = self._row()
            if now is None or (now.token, now.beat) != (row.token, row.beat):
                return now is not None
            # A server that did not answer was out of the holder's reach too.
            waited = time.monotonic() - asked > _POLL_SECONDS
            silent = 0.0 if waited else silent + _POLL_SECONDS
        return False

    def _insert(self) -> bool:
        values = {"study": self._study, "token": self._token, "beat": 0, **asdict(self._own)}
        try:
            self._execute(_TABLE.insert().values(values))
        except IntegrityError:
            row = self._row()
            return row is not None and row.token == self._token
        return True

    def _replace(self, row: _Row) -> bool:
        """Take the lease from the holder that was seen, unless it, or another, was quicker."""
        seen = and_(_TABLE.c.token == row.token, _TABLE.c.beat == row.beat)
        values = {"token": self._token, "beat": 0, **asdict(self._own)}
        return bool(
            self._execute(_TABLE.update().where(_TABLE.c.study == self._study, seen).values(values))
        )

    def _beat(self) -> bool:
        """Raise the number; return False where the lease is not this process's any more."""
        update = _TABLE.update().where(self._is_own).values(beat=_TABLE.c.beat + 1)
        return bool(self._execute(update))

    def _execute(self, statement: Any) -> int:
        """Execute a statement; return the number of its rows."""

        def execute() -> int:
            with self._storage.engine.begin() as connection:
                return int(connection.execute(statement).rowcount)

        return self._storage.repeat(execute)

    def _row(self) -> _Row | None:
        def read() -> Any:
            with self._storage.engine.begin() as connection:
                query = _TABLE.select().where(_TABLE.c.study == self._study)
                return connection.execute(query).mappings().first()

        values = self._storage.repeat(read)
        if values is None:
            return None
        holder = {field.name: values[field.name] for field in fields(Coordinator)}
        return _Row(values["token"], values["beat"], Coordinator(**holder))

    def _keep(self) -> None:
        """Keep the lease until the run ends. What fails here fails the run where it asks or tells.

        A server that is away for long may be back before the run needs it.
        """
        beats = 0
        while not self._ended.wait(BEAT_SECONDS):
            with suppress(SQLAlchemyError, StorageInternalError, StorageError):
                self._beat()
                beats += 1
                if beats % _BEATS_OF_TRIALS == 1:
                    self._record_heartbeats()

    def _record_heartbeats(self) -> None:
        try:
            study = self._storage.get_study_id_from_name(self._study)
        except KeyError:
            return  # it is made later
        running = self._storage.get_all_trials(study, False, (TrialState.RUNNING,))
        for trial in running:
            self._storage.record_heartbeat(trial._trial_id)
