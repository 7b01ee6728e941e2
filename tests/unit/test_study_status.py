"""Where studies stand, as another process reads it."""

from __future__ import annotations

import importlib
import io
import itertools
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from optimizer.analysis.study_status import all_statuses, study_status
from optimizer.analysis.summary import StudySummary, write_summary
from optimizer.cli.interruption import Interrupted
from optimizer.cli.status import Detail
from optimizer.commands.run_context import with_progress
from optimizer.configuration.serving_config import describe
from optimizer.errors import StorageError, UsageError
from optimizer.files.atomic import write_json
from optimizer.measurement.disturbance import DisturbanceCheck, WorkerRate
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import (
    LevelFinished,
    LevelStarted,
    Note,
    PhaseStarted,
    SearchStatusChanged,
    StepStarted,
    TrialStarted,
    Watcher,
    WorkerEvent,
    WorkerLost,
    WorkersStarted,
)
from optimizer.study.progress import progress_from_json
from optimizer.study.progress_file import ProgressFile
from optimizer.study.run_state import RunState
from optimizer.study.search_status import SearchStatus
from optimizer.study.searched_space import SearchedSpace
from tests.unit.commands import Commands, imported_by
from tests.unit.studies import (
    DEMAND,
    PRICE,
    begin_study,
    failed,
    four_points,
    level,
    ok,
    record_of,
)
from tests.unit.tables import WORKLOAD
from tests.unit.test_run_state import EXPECTED, A, B, C
from tests.unit.whole_studies import WholeStudy

# The command's name hides its module.
status_module = importlib.import_module("optimizer.cli.status")
pytestmark = pytest.mark.usefixtures("fast_disk")


@pytest.fixture
def directory(tmp_path: Path) -> StudyDirectory:
    """A study of two trials."""
    directory = StudyDirectory(tmp_path / "results" / "mine")
    begin_study(directory, SearchedSpace("mine", four_points(), WORKLOAD, PRICE, DEMAND))
    directory.trials.write(record_of(0, A, ok(100)))
    directory.trials.write(record_of(1, B, failed("it broke")))
    return directory


@pytest.fixture(autouse=True)
def written_soon(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have changes written at once, but where it is the interval that is tested."""
    if request.node.name != "test_the_file_is_written_once_a_second_at_most":
        monkeypatch.setattr("optimizer.study.progress_file._SECONDS_BETWEEN", 0.02)


@contextmanager
def running(directory: StudyDirectory) -> Iterator[Watcher]:
    with directory.locked(), with_progress(directory, lambda _: None) as watch:
        yield watch


def measure(watch: Watcher) -> None:
    watch(PhaseStarted("search", 12, 3600.0))
    watch(SearchStatusChanged(SearchStatus(regret_bound=0.25)))
    watch(TrialStarted(2, 3, 12, C, EXPECTED))
    watch(StepStarted("loading the model"))
    watch(LevelFinished(level(0.4, 40.0, kind="saturation")))
    watch(LevelFinished(level(0.3, 30.0)))
    watch(LevelStarted(142.5, 4.0))


def written(directory: StudyDirectory, doing: str) -> None:
    """Wait until the file says so."""
    end = time.monotonic() + 10
    while not directory.progress.exists() or doing not in directory.progress.read_text():
        assert time.monotonic() < end
        time.sleep(0.02)


def drawn(directory: StudyDirectory, width: int = 80, encoding: str = "utf-8") -> str:
    found = study_status(directory.root.parent, directory.name)
    assert found.progress is not None
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width, color_system=None)
    console.print(Detail(found, found.progress.started + 30))
    file.seek(0)
    return "\n".join(line.rstrip() for line in file.read().splitlines())


def test_a_run_is_seen_from_elsewhere_while_it_goes_on(directory: StudyDirectory) -> None:
    with running(directory) as watch:
        measure(watch)
        written(directory, "offering 142/s")
        found = study_status(directory.root.parent, "mine")
        text = drawn(directory)
    assert found.state == "running"
    assert found.trials == {"ok": 1, "infeasible": 0, "bounded": 0, "failed": 1}
    assert found.best is not None
    assert (found.best.number, found.best.capacity_per_second) == (0, 100.0)
    assert found.progress is not None
    assert found.progress.now is not None
    assert found.progress.now.number == 2
    assert found.progress.now.rates == (200.0, 150.0)
    assert found.progress.gap == 0.25
    assert found.progress.seconds_left_by_steps == 40.0
    said = " ".join(text.split())
    assert re.search(r"mine: running, search 2/12, 0:30 elapsed, about 0:1. left ", said)
    assert "best trial 0: openvino fp32, no batching, 1 x 1 thread: 100/s, $1.0000 per" in said
    assert "trials █▁ capacity by trial, up to 100/s" in said
    now = "now trial 2, openvino int8, no batching, 1 x 1 thread for 0:(29|30); offering 142/s"
    assert re.search(now, said)
    assert "expected $0.5000 per million" in said
    assert "rate █▆ 150/s" in said
    assert "p95 █▆ 30.0 ms" in said
    assert "potential up to 25% cheaper (95% bound)" in said


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_it_fits_any_width_and_any_encoding(directory: StudyDirectory, width: int) -> None:
    with running(directory) as watch:
        measure(watch)
        written(directory, "offering 142/s")
        text = drawn(directory, width, "ascii")
    assert max(map(len, text.splitlines())) <= width
    assert "@#" in text or "@_" in text


def test_how_a_run_ended_is_known_after_it(directory: StudyDirectory) -> None:
    with running(directory) as watch:
        measure(watch)
    found = study_status(directory.root.parent, "mine")
    assert found.state == "done"
    with pytest.raises(Interrupted), running(directory):
        raise Interrupted("SIGINT")
    found = study_status(directory.root.parent, "mine")
    assert found.state == "ended"
    assert re.match(r"mine: ended: interrupted \(SIGINT\), 0:(29|30) ago", drawn(directory))


def test_a_run_that_was_killed_is_cut_off(directory: StudyDirectory) -> None:
    with running(directory) as watch:
        measure(watch)
        written(directory, "offering 142/s")
        left = directory.progress.read_bytes()  # What a killed run leaves.
    directory.progress.write_bytes(left)
    assert study_status(directory.root.parent, "mine").state == "cut off"
    assert "cut off in phase search; rerun the command to resume" in drawn(directory)


def test_a_study_of_an_earlier_version_is_told_by_its_records(directory: StudyDirectory) -> None:
    found = study_status(directory.root.parent, "mine")
    assert found.state == "not running"
    assert found.progress is None
    assert found.trials["failed"] == 1
    assert found.best is not None


def test_a_winner_that_was_confirmed_is_shown(directory: StudyDirectory) -> None:
    with running(directory):
        pass
    for n in range(2):
        directory.confirmations.write(record_of(n, A, ok(90)))
    found = study_status(directory.root.parent, "mine")
    assert found.confirmed is not None
    ended = "the budget of 2 trials is used up"
    told = StudySummary(ended=ended, trials={**found.trials}, best=found.confirmed)
    write_summary(directory, told)
    said = " ".join(drawn(directory).split())
    assert f"winner trial 0: {describe(A)}: 90/s, $1.1111 per million, confirmed" in said
    assert "search ended: the budget of 2 trials is used up" in said


@pytest.fixture
def finished(tmp_path: Path) -> StudyDirectory:
    """A study whose run has ended, with its winner confirmed."""
    confirmed = {1: (170.0, 160.0)}
    study = WholeStudy(tmp_path / "one", {0: 100.0, 1: 180.0}, confirmed, pace=None).written()
    with running(study):
        pass
    return study


def test_what_the_run_has_written_is_what_its_records_come_to(finished: StudyDirectory) -> None:
    written = study_status(finished.root.parent, "one")
    assert written.confirmed is not None
    assert written.search_ended == "the budget is used up"
    finished.progress.unlink()
    recorded = study_status(finished.root.parent, "one")
    recorded = replace(recorded, progress=written.progress, state=written.state)
    assert json.dumps(recorded.to_json()) == json.dumps(written.to_json())


def test_the_status_of_a_finished_study_imports_little(finished: StudyDirectory) -> None:
    """What reads records and space files takes longer to import than all of the rest."""
    imported = imported_by("status", "one", "--results", str(finished.root.parent))
    libraries = {"grpc", "onnx", "optuna", "pandas", "plotly", "pynvml", "ruamel", "scipy", "torch"}
    ours = {"optimizer.commands", "optimizer.search", "optimizer.configuration.search_space"}
    assert imported.isdisjoint(libraries | ours)


def test_looking_changes_nothing_and_hinders_no_run(directory: StudyDirectory) -> None:
    before = sorted(directory.root.rglob("*"))
    study_status(directory.root.parent, "mine")
    assert sorted(directory.root.rglob("*")) == before
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            study_status(directory.root.parent, "mine")

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(50):
            with directory.locked():
                pass
    finally:
        over.set()
        looking.join()


def test_the_file_is_written_once_a_second_at_most(
    directory: StudyDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    times: list[float] = []

    def write(path: Path, data: object) -> None:
        times.append(time.monotonic())
        write_json(path, data)

    monkeypatch.setattr("optimizer.study.progress_file.write_json", write)
    file = ProgressFile(directory.progress, RunState(time.time), time.time)
    file.start()
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        file.watch(Note("again"))
        time.sleep(0.001)
    assert 2 <= len(times) <= 3
    assert all(later - earlier >= 0.99 for earlier, later in itertools.pairwise(times))
    time.sleep(1.1)
    quiet = len(times)
    time.sleep(1.2)
    assert len(times) == quiet
    file.end("done")
    assert len(times) == quiet + 1


def test_a_disk_that_is_full_ends_no_run(
    directory: StudyDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageError("cannot write: No space left on device")

    monkeypatch.setattr("optimizer.study.progress_file.write_json", full)
    with running(directory) as watch:
        measure(watch)
    assert not directory.progress.exists()


def test_what_is_written_is_read_back(directory: StudyDirectory) -> None:
    with running(directory) as watch:
        measure(watch)
        written(directory, "offering 142/s")
        data = json.loads(directory.progress.read_text())
    progress = progress_from_json(data)
    assert json.loads(json.dumps(asdict(progress))) == data
    damaged: list[object] = [{}, [], {**data, "schema_version": 0}, {**data, "now": {"a": 1}}]
    for damage in damaged:
        with pytest.raises(ValueError, match=r"Field required|should be"):
            progress_from_json(damage)
    write_json(directory.progress, {**data, "schema_version": 0})
    with pytest.raises(StorageError, match=r"(?s)cannot read .*progress\.json: .*schema_version"):
        study_status(directory.root.parent, "mine")


def test_a_study_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"study 'mine' not found in {tmp_path}"):
        study_status(tmp_path, "mine")
    assert all_statuses(tmp_path / "nowhere") == []


# The command.


def test_all_studies_are_a_short_table(
    directory: StudyDirectory,
    optimizer: Commands,
) -> None:
    recorded = StudyDirectory(directory.root / "recorded")
    with running(recorded) as watch:
        watch(PhaseStarted("record", 100))
        written(recorded, '"record"')
        said = optimizer("status")
    assert said.code == 0
    assert [line.split() for line in said.out.splitlines() if line.startswith("mine")] == [
        ["mine", "not", "running", "2", "100*", "$1.00*"],
        ["mine/recorded", "running,", "record", "0/100", "0", "-", "-"],
    ]


def test_no_study_at_all_is_said(optimizer: Commands) -> None:
    assert optimizer("status").out == "there are no studies yet\n"
    said = optimizer("status", "mine")
    assert (said.code, said.err) == (2, "error: study 'mine' not found in results\n")


def test_programs_get_json(
    directory: StudyDirectory,
    optimizer: Commands,
) -> None:
    with running(directory) as watch:
        measure(watch)
    [study] = json.loads(optimizer("status", "mine", "--json").out)
    assert (study["name"], study["state"]) == ("mine", "done")
    assert study["progress"]["phase"] == "search"
    assert study["best"]["capacity_per_second"] == 100.0


@pytest.mark.parametrize("as_json", [False, True])
def test_watching_ends_with_the_run_and_says_what_changed(
    directory: StudyDirectory,
    optimizer: Commands,
    monkeypatch: pytest.MonkeyPatch,
    as_json: bool,
) -> None:
    run = running(directory)
    watch = run.__enter__()
    measure(watch)
    written(directory, "offering 142/s")
    looks = 0

    def wait(_: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            run.__exit__(None, None, None)

    monkeypatch.setattr(status_module, "time", SimpleNamespace(time=time.time, sleep=wait))
    said = optimizer("status", "mine", "--watch", *(["--json"] if as_json else []))
    assert said.code == 0
    lines = said.out.splitlines()
    if as_json:
        assert [json.loads(line)[0]["state"] for line in lines] == ["running", "done"]
    else:
        assert lines == [
            "mine: running, search 2/12; 2 trials; best 100/s, $1.0000 per million, unconfirmed",
            "mine: done; 2 trials; best 100/s, $1.0000 per million, unconfirmed",
        ]


def test_an_interruption_ends_the_watching(
    directory: StudyDirectory,
    optimizer: Commands,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(_: float) -> None:
        raise Interrupted("SIGINT")

    monkeypatch.setattr(status_module, "time", SimpleNamespace(time=time.time, sleep=interrupt))
    with directory.locked():
        assert optimizer("status", "mine", "--watch").code == 0


def test_status_shows_workers_their_trials_and_their_losses(directory: StudyDirectory) -> None:
    rate = WorkerRate("gpu-0", 100.0, 99.0, 101.0)
    slow = WorkerRate("gpu-1", 80.0, 79.0, 81.0)
    directory.disturbance.add(DisturbanceCheck(1.0, rate, (rate, slow)))
    with running(directory) as watch:
        watch(PhaseStarted("search", 40))
        watch(WorkersStarted({f"gpu-{n}": "cores 0" for n in range(3)}))
        watch(TrialStarted(2, 3, 40, C, worker="gpu-0"))
        watch(WorkerEvent("gpu-0", 2, LevelStarted(101.0, 4.0)))
        watch(TrialStarted(3, 4, 40, A, worker="gpu-1"))
        watch(WorkerLost("gpu-1", 3, "gone"))
        written(directory, '"losses": 1')
        text = drawn(directory, 100)
    assert (
        "gpu-0    trial 2, offering 101/s for 4 s: openvino int8, no batching, 1 x 1 thread" in text
    )
    assert "gpu-1    idle; lost 1 time" in text
    assert "gpu-2    idle" in text
    said = " ".join(text.split())
    assert "together the baseline saturates at 100 requests/s alone, and at 80 to 100 on 2" in said
    assert "(20% lost by the slowest worker)" in said


def test_progress_of_earlier_versions_has_no_workers(directory: StudyDirectory) -> None:
    with running(directory) as watch:
        watch(PhaseStarted("search", 12))
        written(directory, '"search"')
    data = directory.read_json(directory.progress)
    del data["workers"]
    assert progress_from_json(data).workers == ()
