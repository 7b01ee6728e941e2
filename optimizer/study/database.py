"""A study in a database: its address, and a storage that outlasts a restart of the server."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from threading import Event
from typing import Any, TypeVar

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage

from optimizer.errors import RequirementError, StorageError, UsageError
from optimizer.files.credentials import without_credentials

WAIT_SECONDS = 60.0
"""How long a server that has answered before may take to answer again."""

_POLL_SECONDS = 0.5
_ATTEMPTS = 3
"""Attempts at one operation, each of which may lose its connection."""

_POSTGRESQL = "postgresql+psycopg"
_NETWORK_OPTIONS = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""A host that disappears is noticed within seconds; by default it takes hours."""

_CREATION_ATTEMPTS = 5

_Value = TypeVar("_Value")
Tell = Callable[[str], None]


def _ignore(_: str) -> None:
    """Ignore a message."""


def database_address(url: str) -> Any:
    """Return the SQLAlchemy address of a database; psycopg is the driver of PostgreSQL.

    The address is not part of the message: nobody can tell which part of it is a password.

    Raises:
        UsageError: when it is no address.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        address = make_url(url)
    except (ArgumentError, ValueError):
        address = None
    if address is None or "@" in (address.host or ""):
        raise UsageError(
            "--storage: must be the address of a database, such as "
            "postgresql://USER@HOST/DATABASE; in a password, write @ as %40, : as %3A, / as %2F "
            "and % as %25"
        )
    if address.drivername in ("postgres", "postgresql"):
        return address.set(drivername=_POSTGRESQL)
    return address


class DatabaseStorage(RDBStorage):
    """A study storage whose operations wait for a server that is being restarted.

    A connection that was lost is replaced, for up to `WAIT_SECONDS`, and the operation is repeated.
    The first connection is not waited for: an address may be wrong.

    Args:
        url: address of the database, with the password if it has one.
        create: make the tables of a database that has none.
        tell: receives a message when the server no longer answers, and when it does again.

    Raises:
        UsageError: when `url` is no address.
        RequirementError: when the database's driver is not installed.
    """

    def __init__(self, url: str, *, create: bool = True, tell: Tell = _ignore) -> None:
        from sqlalchemy import event

        address = database_address(url)
        self.shown = without_credentials(address.render_as_string(hide_password=True))
        self._tell = tell
        self._closed = Event()
        options: dict[str, Any] = {"pool_pre_ping": True}
        if address.drivername == _POSTGRESQL:
            given = address.query
            network = {k: v for k, v in _NETWORK_OPTIONS.items() if k not in given}
            options["connect_args"] = network
        try:
            super().__init__(
                address.render_as_string(hide_password=False),
                engine_kwargs=options,
                skip_table_creation=not create,
            )
        except BaseException as error:
            if "engine" in vars(self):
                self.engine.dispose()
            if not isinstance(error, ImportError):
                raise
            raise RequirementError(
                f"{self.shown}: the driver of this database is not installed",
                "for PostgreSQL, pip install 'triton-cost-optimizer[cluster]'",
            ) from error
        event.listen(self.engine, "do_connect", self._connect)

    def close(self) -> None:
        """Close the connections, and wait for the server no longer."""
        self._closed.set()
        self.remove_session()
        self.engine.dispose()

    def repeat(self, operation: Callable[[], _Value]) -> _Value:
        """Return what an operation returns; repeat it when its connection is lost.

        Raises:
            StorageError: when the server does not answer in time.
        """
        for _ in range(_ATTEMPTS - 1):
            try:
                return operation()
            except Exception as error:
                if not _is_lost_connection(error):
                    raise
        return operation()

    def _connect(self, dialect: Any, _: object, arguments: Any, options: Any) -> Any:
        """Return a new connection; wait while the server does not answer."""
        started = time.monotonic()
        waited = False
        while True:
            try:
                connection = dialect.connect(*arguments, **options)
            except dialect.loaded_dbapi.Error as error:
                seconds = time.monotonic() - started
                if seconds >= WAIT_SECONDS or self._closed.is_set():
                    raise StorageError(self._lost_text(error, seconds)) from None
                if not waited:
                    self._tell(
                        f"{self.shown} does not answer: waiting up to {WAIT_SECONDS:g} s for it"
                    )
                    waited = True
                self._closed.wait(_POLL_SECONDS)
                continue
            if waited:
                self._tell(f"{self.shown} answers again, after {time.monotonic() - started:.0f} s")
            return connection

    def _lost_text(self, error: Exception, seconds: float) -> str:
        reason = without_credentials(str(error).partition("\n")[0])
        return (
            f"study storage {self.shown}: no answer within {seconds:.0f} s ({reason}); what was "
            "measured is in the study's folder: rerun the command to resume once the database is "
            "back"
        )


def open_database(url: str, *, create: bool = True, tell: Tell = _ignore) -> DatabaseStorage:
    """Open a database, see `DatabaseStorage`; another process may be making its tables as well."""
    from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

    for _ in range(_CREATION_ATTEMPTS - 1):
        try:
            return DatabaseStorage(url, create=create, tell=tell)
        except (IntegrityError, OperationalError, ProgrammingError) as error:
            if not create or not _was_made_meanwhile(error):
                raise
            time.sleep(_POLL_SECONDS)
    return DatabaseStorage(url, create=create, tell=tell)


def _was_made_meanwhile(error: Exception) -> bool:
    """Return whether a table could not be made because it exists by now."""
    return any(text in str(error) for text in ("already exists", "duplicate key"))


def _is_lost_connection(error: Exception) -> bool:
    from sqlalchemy.exc import DBAPIError

    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    return isinstance(cause, DBAPIError) and cause.connection_invalidated


def _repeated(name: str) -> Callable[..., Any]:
    """Return a method of Optuna's storage that is repeated when its connection is lost."""
    method = getattr(RDBStorage, name)

    @functools.wraps(method)
    def repeated(self: DatabaseStorage, *arguments: Any, **options: Any) -> Any:
        attempts = 0

        def attempt() -> Any:
            nonlocal attempts
            attempts += 1
            try:
                return method(self, *arguments, **options)
            except UpdateFinishedTrialError:
                if attempts == 1:
                    raise
                return True  # the first attempt was carried out, and only its reply was lost

        return self.repeat(attempt)

    return repeated


_OPERATIONS = BaseStorage.__abstractmethods__ | {
    "get_trial_id_from_study_id_trial_number",
    "record_heartbeat",
    # What Optuna's cache in front of a database calls.
    "_create_new_trial",
    "_get_best_trial_id",
    "_get_trials",
    "_set_trial_param",
}

for _name in sorted(_OPERATIONS):
    setattr(DatabaseStorage, _name, _repeated(_name))
