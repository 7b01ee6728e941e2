"""Notifications of a run that nobody watches: how it ended, and what went wrong on the way.

A notification goes to a command or to a URL (`run --notify`). It is sent beside the run, which it
can neither stop nor delay, except by `_SECONDS_AT_END` at its end.
"""

from __future__ import annotations

import base64
import json
import os
import shlex
import shutil
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import SplitResult, unquote, urlsplit

from optimizer.errors import UsageError, innermost, is_disk_full
from optimizer.files.credentials import without_credentials
from optimizer.study.events import Event, Note, Watcher
from optimizer.study.run_log import end_text

Kind = Literal[
    "finished", "nothing_confirmed", "failed", "disk_full", "interrupted", "stalled", "trouble"
]

_STALLED_SECONDS = 3600.0
"""A run without any event for this time is stalled: no step of a run takes as long."""

_ATTEMPTS = 3
_ATTEMPT_SECONDS = 10.0
_SECONDS_BETWEEN = 2.0
_SECONDS_AT_END = _ATTEMPTS * (_ATTEMPT_SECONDS + _SECONDS_BETWEEN)


@dataclass(frozen=True)
class Notification:
    """What is sent.

    Attributes:
        text: what happened, in a sentence or two.
        results: folder of the study on `host`.
        time: in UTC, by ISO 8601.
    """

    event: Kind
    study: str
    text: str
    results: str
    host: str
    time: str


class NotificationTarget(Protocol):
    """Where notifications go."""

    @property
    def name(self) -> str:
        """What messages call it; it has no secrets."""

    def send(self, notification: Notification) -> None:
        """Send a notification once. Raises OSError or SubprocessError."""


@dataclass(frozen=True)
class CommandTarget:
    """A command, which is run without a shell.

    It gets the notification as JSON on its standard input, and each field as a variable, such as
    OPTIMIZER_EVENT and OPTIMIZER_TEXT.
    """

    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        """The command without its arguments, which may have secrets."""
        return Path(self.arguments[0]).name

    def send(self, notification: Notification) -> None:
        """Run the command. Raises OSError or SubprocessError where it fails."""
        fields = asdict(notification)
        variables = {f"OPTIMIZER_{name.upper()}": value for name, value in fields.items()}
        subprocess.run(
            self.arguments,
            input=json.dumps(fields).encode(),
            env={**os.environ, **variables},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_ATTEMPT_SECONDS,
            check=True,
        )


@dataclass(frozen=True, repr=False)
class WebhookTarget:
    """A URL, to which the notification is posted as JSON."""

    url: SplitResult

    @property
    def name(self) -> str:
        """The host: the path and the query of a webhook are often its secret."""
        return str(self.url.hostname)

    def send(self, notification: Notification) -> None:
        """Post the notification. Raises OSError where it does not arrive."""
        headers = {"Content-Type": "application/json"}
        if self.url.username is not None:
            pair = f"{unquote(self.url.username)}:{unquote(self.url.password or '')}"
            headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        host = self.url.netloc.rpartition("@")[2]
        url = self.url._replace(netloc=host).geturl()
        data = json.dumps(asdict(notification)).encode()
        request = urllib.request.Request(url, data, headers)  # noqa: S310, http or https
        with urllib.request.urlopen(request, timeout=_ATTEMPT_SECONDS):  # noqa: S310
            pass


def target_of(text: str) -> NotificationTarget:
    """Return where a value of --notify sends to. Raises UsageError."""
    if "://" in text.partition(" ")[0]:
        url = urlsplit(text)
        if url.scheme not in ("http", "https") or not url.hostname:
            shown = without_credentials(text)
            raise UsageError(f"--notify: a URL must begin with http:// or https://; got {shown}")
        return WebhookTarget(url)
    try:
        arguments = tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"--notify: the command cannot be read: {error}") from error
    if not arguments or shutil.which(arguments[0]) is None:
        named = arguments[0] if arguments else "nothing"
        raise UsageError(f"--notify: must be a URL or a command that can be run; got {named}")
    return CommandTarget(arguments)


class Notifier:
    """A watcher that notifies of trouble during a run; `send` tells the rest.

    Args:
        results: folder of the study.
        tell: receives a warning for each notification that could not be sent.
    """

    def __init__(
        self, target: NotificationTarget, study: str, results: Path, tell: Watcher
    ) -> None:
        self._target = target
        self._study = study
        self._results = results
        self._tell = tell
        self._senders: list[threading.Thread] = []
        self._lively, self._over = threading.Event(), False
        self._stall_watch = threading.Thread(target=self._notice_stalls, daemon=True)
        self._stall_watch.start()

    def __call__(self, event: Event) -> None:
        """Send what goes wrong."""
        self._lively.set()
        if isinstance(event, Note) and event.trouble:
            self.send("trouble", event.text)

    def send(self, kind: Kind, text: str) -> None:
        """Send a notification in a thread of its own."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        host, results = socket.gethostname(), str(self._results)
        notification = Notification(kind, self._study, text, results, host, now)
        thread = threading.Thread(target=self._send, args=(notification,), daemon=True)
        self._senders.append(thread)
        thread.start()

    def close(self) -> None:
        """Wait for notifications on their way, for a limited time."""
        self._over = True
        self._lively.set()
        for thread in self._senders:
            thread.join(_SECONDS_AT_END)

    def _send(self, notification: Notification) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._target.send(notification)
            except (OSError, subprocess.SubprocessError) as error:
                if attempt == _ATTEMPTS:
                    what = f"{notification.event} could not be sent to {self._target.name}"
                    self._tell(Note(f"notification {what}: {_reason(error)}", True))
                else:
                    threading.Event().wait(_SECONDS_BETWEEN)
            else:
                return

    def _notice_stalls(self) -> None:
        stalled = False
        while not self._over:
            if self._lively.wait(_STALLED_SECONDS):
                self._lively.clear()
                stalled = False
            elif not stalled:
                stalled = True
                self.send("stalled", f"nothing has happened for {_STALLED_SECONDS / 60:.0f} min")


def _reason(error: OSError | subprocess.SubprocessError) -> str:
    """Return why a notification was not sent, without the arguments of a command or a URL."""
    match error:
        case subprocess.CalledProcessError():
            return f"exit code {error.returncode}"
        case subprocess.TimeoutExpired():
            return f"no end within {_ATTEMPT_SECONDS:.0f} s"
        case urllib.error.HTTPError():
            return f"HTTP status {error.code}"
        case OSError():
            return without_credentials(str(getattr(error, "reason", None) or error.strerror))
        case _:
            return type(error).__name__


Send = Callable[[Kind, str], None]


@contextmanager
def notifying(
    target: NotificationTarget | None, study: str, results: Path, watch: Watcher
) -> Iterator[tuple[Watcher, Send]]:
    """Yield a watcher that notifies of trouble, and what sends how the run ended.

    An error of the run is sent here.

    Args:
        target: None where nobody is notified.
        watch: receives a warning for each notification that could not be sent.
    """
    if target is None:
        yield lambda _: None, lambda _kind, _text: None
        return
    notifier = Notifier(target, study, results, watch)
    try:
        yield notifier, notifier.send
    except BaseException as error:
        notifier.send(_kind_of(error), end_text(error))
        raise
    finally:
        notifier.close()


def _kind_of(error: BaseException) -> Kind:
    if is_disk_full(innermost(error)):
        return "disk_full"
    return "failed" if isinstance(error, Exception) else "interrupted"
