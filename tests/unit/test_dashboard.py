"""What a run writes for the dashboard, and what the dashboard makes of it."""

from __future__ import annotations

import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from optimizer.commands.dashboard import DashboardOptions, note_of_study, open_dashboard
from optimizer.configuration.model_graph import Step
from optimizer.errors import RequirementError, StorageError, UsageError
from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.dashboard.markdown import study_note, trial_note
from optimizer.study.dashboard.read_only_storage import ChangeRefused, ReadOnlyStorage
from optimizer.study.dashboard.trial_files import tail
from optimizer.study.decision import decide
from optimizer.study.events import Note
from optimizer.study.history import outcome_counts
from optimizer.study.optuna_storage import open_storage
from optimizer.study.optuna_study import OptunaStudy
from tests.unit.shown_studies import shown_search
from tests.unit.studies import (
    DEMAND,
    PRICE,
    FakeEvaluator,
    Search,
    bounded,
    failed,
    four_points,
    infeasible,
    ok,
    open_study,
    record_of,
)
from tests.unit.test_pipeline_limits import pipeline, split, top

dashboard = pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed")
pytestmark = pytest.mark.usefixtures("fast_disk")

SPACE = four_points()
A, B, C, _ = (SPACE.config(SPACE.at(row)) for row in range(4))


def search_in(results: Path) -> Search:
    return Search(results / "test", SPACE, FakeEvaluator())


def study_in(search: Search) -> optuna.Study:
    storage = open_storage(search.directory.journal, None)
    return optuna.load_study(study_name="test", storage=storage)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Folder of a study of four trials: two ok, one failed, one infeasible."""
    search = shown_search(tmp_path)
    log = search.directory.server_log
    log.parent.mkdir(parents=True)
    log.write_text("loading\nE0101 the model broke\n")
    search.run(4)
    return tmp_path


@contextmanager
def served(results: Path, **settings: Any) -> Iterator[str]:
    """The address of a dashboard that serves."""
    request = DashboardOptions("test", 0, results=results, **settings)
    with open_dashboard(request) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def fetched(url: str, method: str = "GET") -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, method=method)) as reply:
        content: bytes = reply.read()
    return content


def detail(address: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(fetched(f"{address}/api/studies/0"))
    return found


# Notes.


def note_of(
    *records: TrialRecord,
    again: Sequence[TrialRecord] = (),
    regret_bound: float | None = None,
    phase: str = "phase search",
) -> str:
    decision = decide(records, again, PRICE, DEMAND)
    counts, baseline = outcome_counts(records), decision.entry_of(A)
    return study_note("my_study", phase, counts, decision.best, baseline, regret_bound)


def test_the_note_names_the_cheapest_within_the_limits() -> None:
    records = [record_of(0, A, ok(100)), record_of(1, B, infeasible(900)), record_of(2, C, ok(200))]
    note = note_of(*records, regret_bound=0.2)
    assert "# my\\_study" in note
    assert "**phase search** · 3 trials: 2 ok, 1 infeasible, 0 pruned, 0 failed" in note
    assert "| best, unconfirmed: trial 2 |" in note
    assert "| 200 | 50.0 | 0.5000 | 3 for 1.080 an hour |" in note
    assert "| baseline, unconfirmed: trial 0 |" in note
    assert "up to 20% cheaper" in note
    assert "0.1111" not in note  # What the infeasible one costs at saturation.


def test_the_note_says_so_while_nothing_is_within_the_limits() -> None:
    assert "Nothing has met the limits so far." in note_of(record_of(0, A, infeasible(900)))
    assert "limits so far" not in note_of()


def test_the_note_of_the_end_has_the_confirmed_figures() -> None:
    trials = [record_of(0, A, ok(100)), record_of(1, B, ok(200))]
    again = [record_of(n, B, ok(190, 60.0)) for n in range(2)]
    note = note_of(*trials, again=again, phase="ended: the budget is used up")
    assert "| best, confirmed: trial 1 |" in note
    assert "| 190 | 60.0 | 0.5263 | 3 for 1.080 an hour |" in note
    assert "baseline" not in note, "which was not confirmed"
    assert "cheaper (95% bound)" not in note


@pytest.mark.parametrize(
    ("evaluation", "said"),
    [
        (ok(130), "Capacity 130 requests/s"),
        (infeasible(80), "outside the limits"),
        (bounded(80), "its capacity was not measured"),
        (failed("no *room* | <b>"), r"**failed**: no \*room\* \| \<b\>"),
    ],
)
def test_a_trials_note_says_what_its_value_is(evaluation: Any, said: str) -> None:
    note = trial_note(record_of(0, A, evaluation))
    assert said in note
    assert "**openvino fp32, no batching, 1 x 1 thread**" in note


def test_a_trials_note_shows_its_levels_and_constraints() -> None:
    note = trial_note(record_of(0, A, infeasible(900)))
    assert "| saturation | 900 | 25.0 | 50.0 | 60.0 |  |" in note
    verdict = "limit missed: p95 of bert 150.0 ms, over the limit of 100 ms"
    assert f"| 45/s | 45 | 75.0 | 150.0 | 180.0 | {verdict} |" in note
    assert "Constraint latency.bert: +0.500 (50% over the limit)." in note
    assert "Constraint" not in trial_note(record_of(0, A, bounded(80)))


def test_the_note_of_a_pipelines_trial_shows_its_steps() -> None:
    config = pipeline([Step("a"), Step("b", (0,))])
    measured = ok(100.0)
    assert measured.measurement is not None
    served = (split("a"), split("b", 3.0), top(10.0))
    levels = tuple(replace(each, server=served) for each in measured.measurement.levels)
    evaluation = replace(measured, measurement=replace(measured.measurement, levels=levels))
    note = trial_note(record_of(0, config, evaluation))
    assert "Where the time goes: top at " in note
    assert "| step | queue | compute | share of the request | instances busy |" in note
    assert "| a | 1.00 | 2.00 | " in note
    assert "| b | 3.00 | 2.00 | " in note
    assert "Where the time goes" not in trial_note(record_of(0, A, ok(100.0)))


# What a run writes.


def test_a_run_keeps_files_of_its_trials(results: Path) -> None:
    search = search_in(results)
    study = study_in(search)
    assert "4 trials: 2 ok, 1 infeasible, 0 pruned, 1 failed" in note_of_study(search.directory)
    assert study.user_attrs["constraints"] == ["latency.bert"]
    folder = search.directory.artifacts
    for record in search.records:
        trial = study.trials[record.number]
        kept = optuna.artifacts.get_all_artifact_meta(trial, storage=study._storage)
        files = {each.filename: (folder / each.artifact_id).read_bytes() for each in kept}
        assert b'name: "bert"' in files["config.pbtxt"]
        log = files.get("server-log-tail.txt")
        assert log == (b"loading\nE0101 the model broke\n" if record.outcome == "failed" else None)


def test_what_samplers_see_of_constraints_is_what_was_set(results: Path) -> None:
    study = study_in(search_in(results))
    seen = [trial.constraints for trial in study.trials if trial.constraints]
    assert seen
    assert all(list(constraints) == ["latency.bert"] for constraints in seen)


def test_what_cannot_be_written_is_said_once_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageError("cannot write: No space left on device")

    monkeypatch.setattr(OptunaStudy, "attach", full)
    search = shown_search(tmp_path)
    search.run(4)
    said = [event for event in search.events if isinstance(event, Note)]
    assert said == [
        Note("dashboard files are no longer written: cannot write: No space left on device", True),
    ]
    assert len(search.records) == 4


def test_the_tail_of_a_log_begins_with_a_whole_line(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    assert tail(log, 10) == ""
    log.write_bytes(b"one\ntwo\xff\nthree\n")
    assert tail(log, 100) == "one\ntwo\ufffd\nthree\n"
    assert tail(log, 9) == "three\n"


# What the dashboard shows.


def test_the_dashboard_shows_notes_files_and_what_is_infeasible(results: Path) -> None:
    with served(results) as address:
        found = detail(address)
        trials = {trial["number"]: trial for trial in found["trials"]}
        records = search_in(results).records
        outcomes = {record.number: record.outcome for record in records}
        for number, outcome in outcomes.items():
            own = trials[number]
            assert f"**{outcome}**" in own["note"]["body"]
            assert any(value > 0 for value in own["constraints"]) == (outcome == "infeasible")
            [config, *_] = own["artifacts"]
            content = fetched(f"{address}/artifacts/0/{own['trial_id']}/{config['artifact_id']}")
            assert b'name: "bert"' in content
        [best] = found["best_trials"]
        assert outcomes[best["number"]] == "ok"
        assert any(t["values"] < best["values"] for t in trials.values() if t.get("values"))
        assert found["objective_names"] == ["usd_per_million_at_capacity"]
        assert b"<title>" in fetched(f"{address}/dashboard")


def test_a_running_search_is_seen_as_it_goes(tmp_path: Path) -> None:
    search = shown_search(tmp_path)
    search.run(1)
    with served(tmp_path) as address:
        before = len(detail(address)["trials"])
        search.run(4)
        threading.Event().wait(2.1)  # The dashboard keeps trials for two seconds.
        after = detail(address)
    assert len(after["trials"]) > before
    assert "4 trials" in after["note"]["body"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/api/studies/0"),
        ("PUT", "/api/studies/0/note"),
        ("POST", "/api/studies"),
        ("POST", "/api/trials/0/tell"),
        ("POST", "/api/artifacts/0/0"),
    ],
)
def test_the_dashboard_changes_nothing(results: Path, method: str, path: str) -> None:
    with served(results) as address:
        with pytest.raises(urllib.error.HTTPError) as refused:
            fetched(address + path, method)
        assert refused.value.code == 403
        assert "read-only" in json.load(refused.value)["reason"]
        assert detail(address)["name"] == "test"


def test_the_journal_is_left_as_it_is_by_who_looks(results: Path) -> None:
    journal = results / "test" / "study.journal"
    before = journal.read_bytes()
    with served(results) as address:
        detail(address)
        fetched(f"{address}/dashboard")
    assert journal.read_bytes() == before


def test_the_view_of_a_study_refuses_every_change(results: Path) -> None:
    storage = open_storage(results / "test" / "study.journal", None)
    view = ReadOnlyStorage(storage, "test")
    [study] = view.get_all_studies()
    assert ReadOnlyStorage(storage, "another").get_all_studies() == []
    loaded = optuna.load_study(study_name="test", storage=view)
    for change in (
        loaded.ask,
        lambda: loaded.set_user_attr("a", 1),
        lambda: view.delete_study(study._study_id),
        lambda: view.set_trial_system_attr(0, "a", 1),
        lambda: optuna.create_study(storage=view),
    ):
        with pytest.raises(ChangeRefused):
            change()


def test_while_nothing_is_within_the_limits_the_best_is_of_all(tmp_path: Path) -> None:
    search = shown_search(tmp_path)
    search.evaluator.answer = lambda _: infeasible(900)
    search.run(2)
    with served(tmp_path) as address:
        assert len(detail(address)["best_trials"]) == 1


def test_of_many_trials_the_latest_and_the_best_have_notes(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimizer.study.dashboard.server._MOST_NOTES", 1)
    with served(results) as address:
        found = detail(address)
    assert not any(trial["note"]["body"] for trial in found["trials"][:-1])
    assert "**ok**" in found["best_trials"][0]["note"]["body"]


def test_a_trial_without_a_record_has_no_note(results: Path) -> None:
    number = search_in(results).records[-1].number
    (results / "test" / "trials" / f"{number:05}.json").unlink()
    with served(results) as address:
        assert detail(address)["trials"][number]["note"]["body"] == ""


# What goes wrong.


def test_a_study_that_is_not_there(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match=f"study 'other' not found in {tmp_path}"),
        open_dashboard(DashboardOptions("other", results=tmp_path)),
    ):
        pass


def test_a_study_in_a_database_needs_its_address(results: Path) -> None:
    (results / "test" / "study.journal").unlink()
    with (
        pytest.raises(UsageError, match="has no journal file: give the --storage"),
        open_dashboard(DashboardOptions("test", results=results)),
    ):
        pass


def test_a_database_without_the_study(results: Path) -> None:
    storage = f"sqlite:///{results}/other.db"
    optuna.create_study(storage=storage, study_name="other")
    with (
        pytest.raises(UsageError, match="study 'test' not found in the study storage"),
        served(results, storage=storage),
    ):
        pass


def test_a_study_in_a_database_is_shown(tmp_path: Path) -> None:
    search = shown_search(tmp_path)
    search.run(1)
    url = f"sqlite:///{tmp_path}/study.db"
    optuna.copy_study(
        from_study_name="test",
        from_storage=open_storage(search.directory.journal, None),
        to_storage=url,
    )
    with served(tmp_path, storage=url) as address:
        found = json.loads(fetched(f"{address}/api/studies"))
        assert [each["study_name"] for each in found["study_summaries"]] == ["test"]


@pytest.mark.parametrize("url", ["nonsense", "nodialect://here/db"])
def test_a_storage_that_cannot_be(results: Path, url: str) -> None:
    with pytest.raises(UsageError, match="--storage: "), served(results, storage=url):
        pass


def test_a_port_that_is_taken(results: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(UsageError, match=f"--port: port {port} is in use"),
            open_dashboard(DashboardOptions("test", port, results=results)),
        ):
            pass


def test_a_missing_package_is_named(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with (
        pytest.raises(RequirementError, match=r"pip install 'triton-cost-optimizer\[dashboard\]'"),
        open_dashboard(DashboardOptions("test", results=results)),
    ):
        pass


def test_a_rebuilt_study_has_notes_again(results: Path) -> None:
    search = search_in(results)
    search.directory.journal.unlink()
    study = open_study(search.folder, SPACE)
    study.reconcile(search.directory.trials.read_all())
    study.close()
    with served(results) as address:
        trials = detail(address)["trials"]
    assert all("**" in trials[record.number]["note"]["body"] for record in search.records)
