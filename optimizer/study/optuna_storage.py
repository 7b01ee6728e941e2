"""The Optuna storage of a study, a journal file or a database, and its errors as ours."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import json_to_distribution
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal import _storage as journal_storage

from optimizer.errors import StorageError, UsageError
from optimizer.files.credentials import without_credentials
from optimizer.files.untrusted import UnreadableError, parse_json
from optimizer.study.database import DatabaseStorage, open_database


def open_storage(journal: Path, url: str | None, *, create: bool = True) -> BaseStorage:
    """Return the storage of a study: a database, or its journal without a URL.

    Args:
        create: make the tables of a database that has none.
    """
    if url is not None:
        return open_database(url, create=create)
    # Each trial would have distributions of its own, which take more memory than the rest of it.
    journal_storage.json_to_distribution = _distribution  # type: ignore[attr-defined]
    return JournalStorage(_JournalFile(journal))


_distribution = lru_cache(maxsize=None)(json_to_distribution)


class _JournalFile(JournalFileBackend):
    """Optuna's journal file, each line of which is appended at once.

    Optuna's own class makes a lock and waits for the disk for every line, of which a trial has
    forty. Here one process writes, under the study's lock; others read a line at once in either
    case. Lines that a power failure takes away are restored from the study's records, whose writing
    does wait for the disk.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Yield the lines from a number on, and remember only where the next line begins.

        Optuna's class remembers it of every line. What it keeps of them has the same names in every
        trial, which are kept once.
        """
        yield from map(_with_shared_texts, super().read_logs(log_number_from))
        following = max(self._log_number_offset)
        self._log_number_offset = {0: 0, following: self._log_number_offset[following]}

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append lines."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with self._path.open("ab") as file:
            file.write(lines.encode())


def _with_shared_texts(value: Any) -> Any:
    """Return a part of a line in which equal texts are one object in all lines."""
    if isinstance(value, dict):
        return {sys.intern(key): _with_shared_texts(part) for key, part in value.items()}
    return sys.intern(value) if isinstance(value, str) else value


def close_storage(storage: BaseStorage) -> None:
    """Close the connections to a database."""
    if isinstance(storage, DatabaseStorage):
        storage.close()


def repair_journal(journal: Path) -> None:
    """Remove what a killed writer may leave: its lock, and an incomplete last line.

    The caller holds the study's lock, so no other process writes.
    """
    for leftover in journal.parent.glob(f"{journal.name}.lock*"):
        leftover.unlink()
    if not journal.exists():
        return
    content = journal.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with journal.open("r+b") as file:
            file.truncate(len(whole))
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            parse_json(line)
        except UnreadableError as error:
            raise _damaged(f"{journal}, line {number}") from error


@contextmanager
def journal_errors(journal: Path | None) -> Iterator[None]:
    """Raise `StorageError` for whatever Optuna raises when it reads a damaged journal."""
    try:
        yield
    except (StorageError, OSError):
        raise
    except _database_errors():
        raise
    except Exception as error:
        if journal is None:
            raise
        raise _damaged(str(journal)) from error


def _damaged(where: str) -> StorageError:
    return StorageError(
        f"{where} is damaged; move the file away and rerun the command: "
        "the study is rebuilt from its records"
    )


@contextmanager
def storage_failures(where: str) -> Iterator[None]:
    """Raise errors of Optuna's storages as `database_failures` does; hide its warnings."""
    with database_failures(where), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


@contextmanager
def database_failures(where: str) -> Iterator[None]:
    """Raise errors of a storage as `StorageError` or `UsageError`, in any thread."""
    try:
        yield
    except _address_errors() as error:
        raise UsageError(f"--storage: {_first_line(error)}") from error
    except _database_errors() as error:
        raise StorageError(f"study storage: {_first_line(error.__cause__ or error)}") from error
    except OSError as error:
        text = f"cannot write {error.filename or where}: {error.strerror or error}"
        raise StorageError(text) from error


def _database_errors() -> tuple[type[Exception], ...]:
    """Return the errors of a database; SQLAlchemy is imported only once there is an error."""
    from sqlalchemy.exc import SQLAlchemyError

    return SQLAlchemyError, optuna.exceptions.StorageInternalError


def _address_errors() -> tuple[type[Exception], ...]:
    """Return the errors of a database's address."""
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    return ArgumentError, NoSuchModuleError


def _first_line(error: BaseException) -> str:
    """Return a database's message without the driver's explanations."""
    return without_credentials(str(error).partition("\n")[0])
