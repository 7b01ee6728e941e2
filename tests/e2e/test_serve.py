"""`serve`: the winner of a study and an exported bundle on the real server, until Ctrl-C."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from optimizer.study.directory import StudyDirectory
from tests.e2e.conftest import Searched, StartOptimizer
from tests.e2e.running import Optimizer, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ANY_PORTS = ("--http-port", 0, "--grpc-port", 0, "--metrics-port", 0)


@pytest.fixture
def study(searched: Searched, tmp_path: Path) -> StudyDirectory:
    """Finished, and copied to where `start` works."""
    searched.copy_to(tmp_path)
    return StudyDirectory(tmp_path / "results" / "tiny")


def asked(lines: list[str]) -> dict[str, object]:
    """What the example request that was printed is answered with."""
    [line] = [each for each in lines if each.startswith("curl ")]
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def printed(start: StartOptimizer, *arguments: object) -> str:
    said = start(*arguments, "--print", command="serve")
    assert said.wait() == 0, said.errors
    return said.output


def served(serving: Optimizer, number: signal.Signals) -> None:
    """Ask a server that came up, and end it."""
    serving.wait_for("Ctrl-C ends it")
    assert asked(serving.output.splitlines())["model_name"] == "bert"
    serving.process.send_signal(number)
    assert serving.wait() == 0, serving.errors
    assert serving.errors == ""


@pytest.fixture
def serve(start: StartOptimizer) -> Callable[..., Optimizer]:
    return lambda *arguments: start(*arguments, *ANY_PORTS, command="serve")


def test_the_winner_the_baseline_and_a_bundle_are_served_until_they_are_ended(
    study: StudyDirectory, serve: Callable[..., Optimizer], start: StartOptimizer, tmp_path: Path
) -> None:
    before = sorted(study.best.rglob("*"))
    served(serve("tiny"), signal.SIGINT)
    served(serve("tiny", "--baseline"), signal.SIGTERM)
    assert sorted(study.best.rglob("*")) == before, "nothing is left where it was served from"
    bundle = tmp_path / "a bundle; of 'mine'"
    exported = start("tiny", "--to", bundle, command="export")
    assert exported.wait() == 0, exported.errors
    served(serve(bundle), signal.SIGINT)
    verified = start(bundle, command="verify")
    assert verified.wait() in (0, 5), verified.errors


def test_the_commands_that_are_printed_do_the_same_by_hand(
    study: StudyDirectory, start: StartOptimizer, tmp_path: Path
) -> None:
    shutil.move(study.root, tmp_path / "results" / "it's a $(study)")
    moved = tmp_path / "results" / "it's a $(study)"
    serving = start(moved, *ANY_PORTS, command="serve")
    serving.wait_for("Ctrl-C ends it")
    lines = serving.output.splitlines()
    serving.process.send_signal(signal.SIGINT)
    assert serving.wait() == 0
    script = "\n".join(lines[lines.index("the same server by hand:") + 1 : -1])
    log = (tmp_path / "by_hand.log").open("wb")
    by_hand = subprocess.Popen(
        ["bash", "-c", f"{script.rpartition(chr(10))[0]}\nexec env {script.splitlines()[-1]}"],
        stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    try:
        wait_until(lambda: "Started HTTPService" in (tmp_path / "by_hand.log").read_text(), "up")
        wait_until(lambda: _answers(lines), "an answer")
    finally:
        os.killpg(by_hand.pid, signal.SIGTERM)
        by_hand.wait(30)
        log.close()
    # Python has left its compiled code beside the model, which is none of the model's files.
    assert list((moved / "best").rglob("__pycache__"))
    exported = start(moved, "--to", tmp_path / "bundle", "--no-examples", command="export")
    assert exported.wait() == 0, exported.errors


def _answers(lines: list[str]) -> bool:
    try:
        return asked(lines)["model_name"] == "bert"
    except (subprocess.CalledProcessError, json.JSONDecodeError, KeyError):
        return False


def test_a_port_that_is_taken_is_named(study: StudyDirectory, start: StartOptimizer) -> None:
    serving = start("tiny", *ANY_PORTS, command="serve")
    serving.wait_for("Ctrl-C ends it")
    port = serving.output.partition("HTTP http://127.0.0.1:")[2].partition(",")[0]
    refused = start("tiny", *ANY_PORTS[2:], "--http-port", port, command="serve")
    assert refused.wait() == 2
    said = f"error: --http-port: {port} is in use on 127.0.0.1: give another, or 0 for any\n"
    assert refused.errors == said
    [server] = serving.marked.servers()
    server.kill()
    assert serving.wait() == 4
    assert "the server ended with signal SIGKILL" in serving.errors
    assert str(port) in printed(start, "tiny", *ANY_PORTS[2:], "--http-port", port)
