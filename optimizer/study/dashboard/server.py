"""optuna-dashboard over one study, on this machine alone."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna.artifacts import FileSystemArtifactStore

from optimizer.errors import RequirementError, UsageError
from optimizer.study.dashboard.read_only_storage import ReadOnlyStorage
from optimizer.study.dashboard.shown_study import can_note
from optimizer.study.optuna_study import close_storage, open_storage, storage_failures

HOST = "127.0.0.1"

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def require_dashboard() -> None:
    """Say what is missing. Raises RequirementError."""
    if not can_note():
        raise RequirementError(
            "the dashboard needs optuna-dashboard", "pip install 'triton-cost-optimizer[dashboard]'"
        )


@contextmanager
def dashboard_server(
    name: str, journal: Path, storage: str | None, artifacts: Path, port: int
) -> Iterator[WSGIServer]:
    """A server that shows a study once it is told to serve.

    Args:
        artifacts: folder of the trials' files.
        storage: URL of a database; None where the study is kept in the journal.
        port: 0 takes any that is free.

    Raises:
        UsageError: where there is no such study, or the port is taken.
        StorageError: when the storage cannot be read.
    """
    where = str(journal) if storage is None else "the study storage"
    with storage_failures(where):
        opened = open_storage(journal, storage, create=False)
        try:
            opened.get_study_id_from_name(name)
        except KeyError as error:
            raise UsageError(f"there is no study {name} in {where}") from error
    try:
        with _listening(
            _read_only(_application(ReadOnlyStorage(opened, name), artifacts)), port
        ) as server:
            yield server
    finally:
        close_storage(opened)


def _application(storage: ReadOnlyStorage, artifacts: Path) -> Application:
    from optuna_dashboard import wsgi

    application: Application = wsgi(storage, artifact_store=FileSystemArtifactStore(artifacts))
    return application


def _read_only(application: Application) -> Application:
    """Refuses every request that is to change something, with the reason."""

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return application(environ, start)
        start("403 Forbidden", [("Content-Type", "application/json")])
        return [
            json.dumps({"reason": "this dashboard shows the study and changes nothing"}).encode()
        ]

    return answer


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *_: object) -> None:  # noqa: A002, its name in the base class
        """Requests are not worth a line each."""


def _listening(application: Application, port: int) -> WSGIServer:
    try:
        return make_server(HOST, port, application, server_class=_Server, handler_class=_Quiet)
    except OverflowError as error:
        raise UsageError(f"--port: must be 0 to 65535; got {port}") from error
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        taken = "is taken" if error.errno == errno.EADDRINUSE else "is not for everyone"
        raise UsageError(
            f"--port: must be free; port {port} {taken}: give another, or 0 for any"
        ) from error
