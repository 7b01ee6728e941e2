"""Killed, interrupted, hung up: nothing is left running, and rerunning the command resumes."""

from __future__ import annotations

import os
import pty
import signal
import sys
import time
from pathlib import Path

import pytest

from optimizer.analysis.study_reading import read_study
from optimizer.analysis.study_status import study_status
from optimizer.commands.report import report_study
from optimizer.configuration.serving_config import describe
from optimizer.export.bundle.repository import holds_configuration
from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.directory import StudyDirectory
from tests.e2e import tiny
from tests.e2e.conftest import StartOptimizer
from tests.e2e.running import Optimizer, wait_until
from tests.sampling import sampled

pytestmark = pytest.mark.timeout(300)

INTERRUPTED = 130


@pytest.fixture
def space(tmp_path: Path) -> Path:
    """One artefact, two trials; the levels after the saturation leave time to strike."""
    slow_checks = {"check_seconds": 1.0}
    content = tiny.space(budget={"trials": 2}, measurement=slow_checks)
    return tiny.write_space(tmp_path, content)


@pytest.fixture
def study(tmp_path: Path) -> StudyDirectory:
    return StudyDirectory(tmp_path / "results" / "tiny")


def content_of(study: StudyDirectory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in study.trials.folder.glob("*.json")}


def records_of(study: StudyDirectory) -> list[TrialRecord]:
    return list(study.trials.read_all().values())


def in_a_level_of_trial(optimizer: Optimizer, number: int, of: int = 2) -> None:
    """Wait until a trial has been saturated, so that the next level is under way."""
    optimizer.wait_for(f"  {number}/{of} ")
    seen = optimizer.output.index(f"  {number}/{of} ")
    wait_until(lambda: "saturation:" in optimizer.output[seen:], "a saturated server")
    assert optimizer.process.poll() is None


@pytest.mark.slow
def test_killed_amid_a_trial_it_leaves_nothing_running_and_loses_that_trial_only(
    space: Path, study: StudyDirectory, start: StartOptimizer
) -> None:
    killed = start(space)
    in_a_level_of_trial(killed, 2)
    killed.process.send_signal(signal.SIGSTOP)  # the trial cannot end before the process is killed
    assert killed.marked.servers()
    before = content_of(study)
    assert list(before) == ["00000.json"]
    results = study.root.parent
    assert study_status(results, study.name).state == "running"
    killed.kill()
    assert study_status(results, study.name).state == "cut off"
    again = start(space)  # at once: what is left of the first is still going
    killed.assert_nothing_left()
    assert content_of(study) == before
    assert again.wait() == 0, again.errors
    assert "saturation" in again.output[again.output.index("  2/2 ") :]
    assert "  1/2 " not in again.output[: again.output.index("confirm:")]
    after = content_of(study)
    assert len(after) == 2
    assert after["00000.json"] == before["00000.json"]
    first, second = records_of(study)
    assert first.config != second.config
    # The trial that was lost goes on under its number, and so do all later proposals.
    assert second.number == first.number + 1
    summary = study.read_json(study.summary)
    assert sum(summary["trials"].values()) == 2


def test_killed_amid_a_build_it_leaves_nothing_running(
    space: Path, study: StudyDirectory, start: StartOptimizer, tmp_path: Path
) -> None:
    killed = start(space, "--cache", tmp_path / "empty")
    wait_until(lambda: list((tmp_path / "empty").glob(".building-*")), "a build")
    killed.kill()
    killed.assert_nothing_left()
    assert not study.prepared.exists()


@pytest.mark.slow
def test_a_signal_amid_a_trial_ends_it_with_130_and_loses_that_trial(
    space: Path, study: StudyDirectory, start: StartOptimizer
) -> None:
    optimizer = start(space, "--trials", 1)
    in_a_level_of_trial(optimizer, 1, of=1)
    optimizer.process.send_signal(signal.SIGTERM)
    assert optimizer.wait() == INTERRUPTED, optimizer.errors
    assert optimizer.errors == "interrupted (SIGTERM); rerun the command to resume\n"
    assert records_of(study) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_the_start_ends_it_as_well(
    space: Path, study: StudyDirectory, start: StartOptimizer, number: signal.Signals
) -> None:
    optimizer = start(space)
    optimizer.wait_for("prepare:")
    optimizer.process.send_signal(number)
    assert optimizer.wait() == INTERRUPTED, optimizer.errors
    assert optimizer.errors == f"interrupted ({number.name}); rerun the command to resume\n"
    assert not study.summary.exists()


@pytest.mark.slow
def test_an_impatient_second_signal_ends_it_at_once_and_leaves_nothing(
    space: Path, start: StartOptimizer
) -> None:
    optimizer = start(space)
    in_a_level_of_trial(optimizer, 1)
    optimizer.process.send_signal(signal.SIGINT)
    optimizer.process.send_signal(signal.SIGINT)
    assert optimizer.wait() in (INTERRUPTED, -signal.SIGINT)


@pytest.mark.slow
def test_a_terminal_that_goes_away_ends_it_without_a_trace(
    space: Path, study: StudyDirectory, start: StartOptimizer
) -> None:
    outer, inner = pty.openpty()
    session = ("setsid", "--ctty", "--wait", sys.executable)
    optimizer = start(space, terminal=inner, python=session)
    os.close(inner)
    screen = bytearray()
    while b"saturation:" not in screen:
        screen += os.read(outer, 65536)
    [child] = [p for p in optimizer.marked.processes("-m optimizer run") if p.name() != "setsid"]
    os.close(outer)  # the kernel sends SIGHUP, and what is written now is an error
    assert optimizer.wait() == INTERRUPTED
    assert not child.is_running()
    assert not study.summary.exists()


@pytest.mark.slow
def test_a_server_killed_amid_a_trial_fails_that_trial_and_the_search_goes_on(
    space: Path, study: StudyDirectory, start: StartOptimizer
) -> None:
    optimizer = start(space, "--trials", 2)
    in_a_level_of_trial(optimizer, 1)
    [server] = optimizer.marked.servers()
    server.kill()
    assert optimizer.wait() == 0, optimizer.errors
    failed, retried, other = records_of(study)
    assert failed.outcome == "failed"
    assert "the server ended with signal SIGKILL" in failed.reason
    assert failed.failure is not None
    assert (failed.failure.kind, failed.failure.transient) == ("ServerFailure", True)
    assert retried.config == failed.config
    assert (retried.attempt, retried.outcome) == (2, "ok")
    assert retried.number == failed.number + 1
    assert other.config != failed.config
    assert f"failed: {failed.reason}" in optimizer.output
    assert study.read_json(study.summary)["trials"]["failed"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", sampled([signal.SIGKILL, signal.SIGSTOP], every=2))
def test_a_models_process_that_dies_or_stops_amid_a_trial_costs_no_trial(
    space: Path, study: StudyDirectory, start: StartOptimizer, number: signal.Signals
) -> None:
    optimizer = start(space, "--trials", 1)
    in_a_level_of_trial(optimizer, 1, of=1)
    for stub in optimizer.marked.processes("python_backend_stub"):
        stub.send_signal(number)
    assert optimizer.wait() == 0, optimizer.errors
    failed, retried = records_of(study)
    how = "has died" if number == signal.SIGKILL else "is stopped"
    assert failed.unmeasured
    assert f"in which a model runs, {how}" in failed.reason
    assert (retried.config, retried.outcome) == (failed.config, "ok")


@pytest.mark.slow
def test_a_server_that_hangs_amid_a_trial_does_not_hang_the_search(
    space: Path, study: StudyDirectory, start: StartOptimizer
) -> None:
    optimizer = start(space, "--trials", 1)
    in_a_level_of_trial(optimizer, 1, of=1)
    [server] = optimizer.marked.servers()
    began = time.monotonic()
    server.suspend()
    assert optimizer.wait() == 0, optimizer.errors
    # A request of the closed loop is given up after 30 s.
    assert time.monotonic() - began < 120
    failed, retried = records_of(study)
    assert failed.failure is not None
    assert failed.failure.transient
    # A request tells the status by its name; a call that controls the server, in words. Where its
    # connection was not there yet, it is unavailable.
    reason = failed.reason.upper().replace(" ", "_")
    assert "DEADLINE_EXCEEDED" in reason or "UNAVAILABLE" in reason, failed.reason
    assert (retried.config, retried.outcome) == (failed.config, "ok")


@pytest.mark.slow
def test_one_process_at_a_time_may_run_a_study(
    space: Path, study: StudyDirectory, start: StartOptimizer
) -> None:
    first = start(space)
    first.wait_for("prepare:")
    second = start(space)
    assert second.wait() == 2
    named = f"study tiny in {study.root} is being run by process {first.pid} of "
    assert second.errors.startswith(f"error: {named}")
    assert first.process.poll() is None, "the first is not disturbed"
    assert study.root.exists()


@pytest.mark.slow
def test_nohup_keeps_it_running_when_its_terminal_goes_and_nobody_reads_its_output_any_more(
    space: Path, study: StudyDirectory, start: StartOptimizer
) -> None:
    """As in `nohup optimizer run space.yaml | head`."""
    reading, writing = os.pipe()
    optimizer = start(space, "--trials", 1, output=writing, python=("nohup", sys.executable))
    os.close(writing)
    read = bytearray()
    while b"saturation:" not in read:
        read += os.read(reading, 65536)
    os.close(reading)
    optimizer.process.send_signal(signal.SIGHUP)
    assert optimizer.wait() == 0, optimizer.errors
    assert optimizer.errors == ""
    assert study.read_json(study.summary)["best"] is not None
    assert "-- run done" in study.run_log.read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_amid_the_confirm_phase_all_commands_name_the_same_best(
    space: Path, study: StudyDirectory, start: StartOptimizer
) -> None:
    """On the real server; each step of the phase is gone through on fakes, see test_one_answer."""
    killed = start(space)
    wait_until(lambda: len(list(study.confirmations.folder.glob("0*"))) >= 3, "a round", 200.0)
    killed.kill()
    killed.assert_nothing_left()
    assert_one_answer(study, start, summed_up=False)
    again = start(space)
    assert again.wait() == 0, again.errors
    assert_one_answer(study, start, summed_up=True)


def assert_one_answer(study: StudyDirectory, start: StartOptimizer, *, summed_up: bool) -> None:
    best = read_study(study.root.parent, study.name).own_decision.best
    assert best is not None
    text = describe(best.config)
    for command in ("status", "pareto"):
        said = start(study.name, command=command)
        assert said.wait() == 0, said.errors
        assert text in said.output
    reported = report_study(study.root.parent, study.name).report
    assert reported.outcome.headline().startswith(f"Serve {text} on")
    status = study_status(study.root.parent, study.name)
    assert status.best is not None
    assert (status.best.configuration, status.best.confirmed) == (text, best.confirmed)
    assert study.summary.exists() == summed_up
    if summed_up:
        assert study.read_json(study.summary)["best"]["description"] == text
        assert holds_configuration(study.best, best.config)
