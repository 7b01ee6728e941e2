"""Notifications of a run: what is sent when, to commands and URLs, and what fails without harm."""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from optimizer.errors import EverythingFailedError, StorageError, UsageError
from optimizer.study import notification as module
from optimizer.study.events import Event, Note, StepFinished
from optimizer.study.notification import Notification, notifying, target_of
from tests.unit.fake_runs import FakeRuns
from tests.unit.studies import failed, infeasible

SCRIPT = """
import json, os, sys
event = json.load(sys.stdin)
event["variables"] = [os.environ["OPTIMIZER_EVENT"], os.environ["OPTIMIZER_TEXT"]]
event["arguments"] = sys.argv[2:]
open(sys.argv[1], "a").write(json.dumps(event) + "\\n")
"""


@dataclass
class Target:
    """Keeps what is sent; the first attempts fail."""

    failures: int = 0
    name: str = "a target"
    sent: list[Notification] = field(default_factory=list)

    def send(self, notification: Notification) -> None:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.ECONNREFUSED, "refused")
        self.sent.append(notification)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SECONDS_BETWEEN", 0.0)


def script(tmp_path: Path) -> tuple[str, Path]:
    """A command that appends what it gets to a file."""
    file, out = tmp_path / "notify.py", tmp_path / "sent.jsonl"
    file.write_text(SCRIPT)
    return f"{sys.executable} {file} {out} 'two words' $HOME", out


def lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_command_gets_the_event_on_its_input_and_in_variables(tmp_path: Path) -> None:
    command, out = script(tmp_path)
    with notifying(target_of(command), "one", tmp_path, print) as (_, send):
        send("finished", "all is well")
    [sent] = lines(out)
    assert (sent["event"], sent["study"], sent["text"]) == ("finished", "one", "all is well")
    assert sent["variables"] == ["finished", "all is well"]
    assert sent["arguments"] == ["two words", "$HOME"], "no shell reads them"
    assert sent["results"] == str(tmp_path)


@pytest.fixture
def posts() -> Iterator[tuple[str, list[tuple[str | None, dict[str, object]]]]]:
    """The address of a server, and what is posted there."""
    got: list[tuple[str | None, dict[str, object]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.headers["Authorization"], json.loads(body)))
            self.send_response(204 if self.path == "/hook" else 500)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}", got
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_url_gets_one_post(
    posts: tuple[str, list[tuple[str | None, dict[str, object]]]], tmp_path: Path
) -> None:
    address, got = posts
    with notifying(target_of(f"http://me:s3cret@{address}/hook"), "one", tmp_path, print) as (_, s):
        s("finished", "all is well")
    [(authorization, sent)] = got
    assert authorization == "Basic bWU6czNjcmV0"
    assert (sent["event"], sent["text"]) == ("finished", "all is well")


def test_what_cannot_be_sent_is_named_without_its_secrets(
    posts: tuple[str, list[tuple[str | None, dict[str, object]]]], tmp_path: Path
) -> None:
    address, got = posts
    target = target_of(f"http://me:s3cret@{address}/T0K3N")
    events: list[Event] = []
    with notifying(target, "one", tmp_path, events.append) as (_, send):
        send("finished", "all is well")
    assert len(got) == 3
    text = "notification finished could not be sent to 127.0.0.1: HTTP status 500"
    assert events == [Note(text, True)]
    assert "s3cret" not in repr(target)
    assert "T0K3N" not in repr(target)


def test_an_attempt_that_fails_is_repeated(tmp_path: Path) -> None:
    target = Target(failures=2)
    events: list[Event] = []
    with notifying(target, "one", tmp_path, events.append) as (_, send):
        send("finished", "all is well")
    assert [each.event for each in target.sent] == ["finished"]
    assert events == []


@pytest.mark.parametrize("command", [f"{sys.executable} -c 'exit(3)' s3cret", "/bin/false s3cret"])
def test_a_command_that_fails_is_named(command: str, tmp_path: Path) -> None:
    events: list[Event] = []
    with notifying(target_of(command), "one", tmp_path, events.append) as (_, send):
        send("finished", "all is well")
    [note] = events
    assert isinstance(note, Note)
    assert "exit code" in note.text
    assert "s3cret" not in note.text


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (EverythingFailedError("all failed"), "failed", "all failed"),
        (KeyboardInterrupt("SIGTERM"), "interrupted", "interrupted (SIGTERM)"),
    ],
)
def test_how_a_run_fails_is_sent(
    error: BaseException, kind: str, text: str, tmp_path: Path
) -> None:
    target = Target()
    with pytest.raises(type(error)), notifying(target, "one", tmp_path, print):
        raise error
    assert [(each.event, each.text) for each in target.sent] == [(kind, text)]


def test_a_full_disk_has_a_kind_of_its_own(tmp_path: Path) -> None:
    target = Target()
    error = StorageError("cannot write x: No space left on device")
    error.__cause__ = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(StorageError), notifying(target, "one", tmp_path, print):
        raise error
    assert [each.event for each in target.sent] == ["disk_full"]


def test_trouble_during_a_run_is_sent_and_other_warnings_are_not(tmp_path: Path) -> None:
    target = Target()
    with notifying(target, "one", tmp_path, print) as (watch, _):
        watch(Note("a warning", warning=True))
        watch(Note("one trial at a time from now on", warning=True, trouble=True))
    assert [(each.event, each.text) for each in target.sent] == [
        ("trouble", "one trial at a time from now on")
    ]


def test_a_run_without_events_is_stalled_once_until_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_STALLED_SECONDS", 0.02)
    sent = threading.Semaphore(0)

    class Counting(Target):
        def send(self, notification: Notification) -> None:
            super().send(notification)
            sent.release()

    target = Counting()
    with notifying(target, "one", tmp_path, print) as (watch, _):
        assert sent.acquire(timeout=30)
        assert not sent.acquire(timeout=0.1), "it was said once"
        watch(StepFinished())
        assert sent.acquire(timeout=30)
    assert {each.event for each in target.sent} == {"stalled"}


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("no-such-command --x", "must be a URL or a command that can be run; got no-such-command"),
        ("", "got nothing"),
        ("'open", "the command cannot be read"),
        ("ftp://me:s3cret@host/x", r"must begin with http:// or https://; got ftp://me:\*\*\*@"),
        ("https:///x", "must begin with http"),
    ],
)
def test_a_target_that_cannot_be(text: str, rule: str) -> None:
    with pytest.raises(UsageError, match=rule):
        target_of(text)


def test_a_run_notifies_of_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command, out = script(tmp_path)
    runs = FakeRuns(tmp_path, monkeypatch)
    runs.run(notify=command)
    [sent] = lines(out)
    assert sent["event"] == "finished"
    assert "best: openvino" in str(sent["text"])


def test_a_run_notifies_that_nothing_met_the_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, out = script(tmp_path)
    runs = FakeRuns(tmp_path, monkeypatch)
    runs.evaluator.answer = lambda _: infeasible(80.0)
    runs.run(notify=command)
    [sent] = lines(out)
    assert sent["event"] == "nothing_confirmed"
    assert "trials met the limits" in str(sent["text"])


def test_a_run_whose_notification_fails_ends_as_others_and_logs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = FakeRuns(tmp_path, monkeypatch)
    runs.evaluator.answer = lambda _: failed("it broke")
    runs.run(notify="/bin/false")
    log = (runs.directory / "logs" / "run.log").read_text()
    assert "notification nothing_confirmed could not be sent to false: exit code 1" in log
