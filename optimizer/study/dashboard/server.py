"""optuna-dashboard for one study, on this machine only."""

from __future__ import annotations

import errno
import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna.artifacts import FileSystemArtifactStore

from optimizer.errors import RequirementError, UsageError
from optimizer.study.dashboard.read_only_storage import ReadOnlyStorage
from optimizer.study.optuna_storage import close_storage, open_storage, storage_failures

HOST = "127.0.0.1"
_NAMES = (HOST, "localhost", "[::1]")
"""Names of this machine in the addresses of requests."""

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


_DETAIL = re.compile(r"/api/studies/\d+")
_MOST_NOTES = 1000
"""Latest trials of one reply that have notes: each takes a record's reading."""


@dataclass(frozen=True)
class Notes:
    """What makes the notes of a study, in Markdown.

    Attributes:
        study: returns the study's note.
        trial: returns the note of a trial by its number; None where it has no record.
    """

    study: Callable[[], str]
    trial: Callable[[int], str | None]


def require_dashboard() -> None:
    """Raise RequirementError where optuna-dashboard is not installed."""
    if importlib.util.find_spec("optuna_dashboard") is None:
        raise RequirementError(
            "the dashboard needs optuna-dashboard", "pip install 'triton-cost-optimizer[dashboard]'"
        )


@contextmanager
def dashboard_server(
    name: str, journal: Path, storage: str | None, artifacts: Path, port: int, notes: Notes
) -> Iterator[WSGIServer]:
    """Yield a server that shows a study once `serve_forever` is called.

    Args:
        artifacts: folder of the trials' files.
        storage: URL of a database; None where the study is in the journal.
        port: 0 takes any free one.

    Raises:
        UsageError: where the study does not exist, or the port cannot be used.
        StorageError: when the storage cannot be read.
    """
    where = str(journal) if storage is None else "the study storage"
    with storage_failures(where):
        opened = open_storage(journal, storage, create=False)
        try:
            opened.get_study_id_from_name(name)
        except KeyError as error:
            raise UsageError(f"study {name!r} not found in {where}") from error
    application = _application(ReadOnlyStorage(opened, name), artifacts)
    try:
        with _listening(_read_only(_with_notes(application, notes)), port) as server:
            yield server
    finally:
        close_storage(opened)


def _application(storage: ReadOnlyStorage, artifacts: Path) -> Application:
    from optuna_dashboard import wsgi

    application: Application = wsgi(storage, artifact_store=FileSystemArtifactStore(artifacts))
    return application


def _read_only(application: Application) -> Application:
    """Wrap an application: refuse requests that would change something, and those to other names.

    A web page whose own name leads to this machine could read what it shows otherwise.
    """

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        name = environ.get("HTTP_HOST", HOST).rpartition(":")[0] or environ.get("HTTP_HOST", HOST)
        if name not in _NAMES:
            reason = f"this dashboard must be opened at {HOST} or localhost"
        elif environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            reason = "this dashboard is read-only"
        else:
            return application(environ, start)
        start("403 Forbidden", [("Content-Type", "application/json")])
        return [json.dumps({"reason": reason}).encode()]

    return answer


def _with_notes(application: Application, notes: Notes) -> Application:
    """Wrap an application: put notes into its replies about the study.

    Optuna keeps the notes of all trials in one attribute of the study, which every write of a note
    copies, and optuna-dashboard goes through all of them for every trial. Notes are therefore made
    from the records when they are shown.
    """

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if not _DETAIL.fullmatch(environ["PATH_INFO"]):
            return application(environ, start)
        replies: list[tuple[str, list[tuple[str, str]]]] = []
        body = b"".join(application(environ, lambda *reply: replies.append(reply[:2])))
        status, headers = replies[0]
        if status.startswith("200"):
            body = _noted(json.loads(body), notes)
        others = [each for each in headers if each[0].lower() != "content-length"]
        start(status, [*others, ("Content-Length", str(len(body)))])
        return [body]

    return answer


def _noted(detail: dict[str, Any], notes: Notes) -> bytes:
    detail["note"] = {"version": 1, "body": notes.study()}
    for trial in chain(detail["trials"][-_MOST_NOTES:], detail["best_trials"]):
        text = notes.trial(trial["number"])
        if text is not None:
            trial["note"] = {"version": 1, "body": text}
    return json.dumps(detail).encode()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *_: object) -> None:  # noqa: A002, its name in the base class
        """Ignore requests: they are not worth a line each."""


def _listening(application: Application, port: int) -> WSGIServer:
    try:
        return make_server(HOST, port, application, server_class=_Server, handler_class=_Quiet)
    except OverflowError as error:
        raise UsageError(f"--port: must be 0 to 65535; got {port}") from error
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        problem = "is in use" if error.errno == errno.EADDRINUSE else "needs privileges"
        raise UsageError(
            f"--port: port {port} {problem}; choose another, or 0 for any free port"
        ) from error
