"""The study storage on a real PostgreSQL, where the machine has one."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

import pytest
from sqlalchemy import event, text

from optimizer.errors import RequirementError, StorageError, StudyBusyError, UsageError
from optimizer.search.samplers import SAMPLERS
from optimizer.study import database, lease
from optimizer.study.coordinator_lease import coordinator_lease
from optimizer.study.dashboard.markdown import trial_note
from optimizer.study.dashboard.server import Notes, dashboard_server
from optimizer.study.database import open_database
from optimizer.study.history import History
from optimizer.study.optuna_study import OptunaStudy
from optimizer.triton.launcher import free_ports
from tests.e2e.postgresql import PASSWORD, QUOTED, PostgreSql, running_server
from tests.unit.studies import as_fast_as_it_is, infeasible, policy_of, record_of, small_space

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSql]:
    with running_server() as running:
        yield running


@pytest.fixture
def database_url(server: PostgreSql) -> str:
    return server.url


def opened(url: str, name: str, folder: Path) -> OptunaStudy:
    space = small_space()
    make_sampler = SAMPLERS["gp"](policy_of(space, History({}))).make_sampler
    return OptunaStudy(name, folder / "unused.journal", url, space, make_sampler, seed=1)


def test_a_study_lives_in_postgresql_across_processes(database_url: str, tmp_path: Path) -> None:
    with opened(database_url, "lives", tmp_path) as study:
        for _ in range(8):
            proposal = study.ask()
            config = small_space().config(proposal.position)
            study.tell(record_of(proposal.number, config, as_fast_as_it_is(config)))
    with opened(database_url, "lives", tmp_path) as again:
        assert again.ask().number == 8
    assert not (tmp_path / "unused.journal").exists()


def test_a_trial_cut_off_in_postgresql_is_proposed_again(database_url: str, tmp_path: Path) -> None:
    with opened(database_url, "cut-off", tmp_path) as study:
        cut_off = study.ask()
    with opened(database_url, "cut-off", tmp_path) as again:
        again.reconcile({})
        assert again.has_queue
        assert again.ask().position == cut_off.position


def test_a_database_that_is_not_there_is_named_without_the_password(tmp_path: Path) -> None:
    port = free_ports(1)[0]
    with pytest.raises(StorageError, match=f"port {port}") as caught:
        opened(f"postgresql+psycopg://me:secret@127.0.0.1:{port}/x", "any", tmp_path)
    assert "secret" not in str(caught.value)


def test_a_storage_that_is_no_url_is_a_usage_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--storage"):
        opened("nowhere", "any", tmp_path)


def test_the_dashboard_shows_a_study_in_the_database(database_url: str, tmp_path: Path) -> None:
    pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed")
    journal, artifacts = tmp_path / "study.journal", tmp_path / "artifacts"
    study = opened(database_url, "shown", tmp_path)
    proposal = study.ask()
    config = small_space().config(proposal.position)
    record = record_of(proposal.number, config, infeasible(900.0))
    study.name_constraints(["latency.bert"])
    config_file = tmp_path / "config.pbtxt"
    config_file.write_text('name: "bert"')
    artifacts.mkdir()
    study.attach(proposal.number, config_file, artifacts)
    study.tell(record)
    study.close()
    opened(database_url, "another", tmp_path).close()
    notes = Notes(lambda: "of the study", lambda _: trial_note(record))
    with dashboard_server("shown", journal, database_url, artifacts, 0, notes) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            address = f"http://127.0.0.1:{server.server_port}"
            [listed] = json.load(urlopen(f"{address}/api/studies"))["study_summaries"]
            assert listed["study_name"] == "shown"
            found = json.load(urlopen(f"{address}/api/studies/{listed['study_id']}"))
        finally:
            server.shutdown()
            thread.join()
    [trial] = found["trials"]
    assert "**infeasible**" in trial["note"]["body"]
    assert [each["filename"] for each in trial["artifacts"]] == ["config.pbtxt"]
    assert trial["constraints"] == [0.5]
    assert found["note"]["body"] == "of the study"


def test_a_wrong_password_is_refused_and_shown_nowhere(server: PostgreSql, tmp_path: Path) -> None:
    url = server.url.replace(QUOTED, "wr0ng%40pass")
    with pytest.raises(StorageError, match="password authentication failed") as caught:
        opened(url, "any", tmp_path)
    assert "wr0ng" not in str(caught.value)


def test_a_database_without_its_driver_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(RequirementError, match="driver of this database is not installed") as lacks:
        opened("postgresql+pg8000://me:secret@127.0.0.1/x", "any", tmp_path)
    assert "secret" not in str(lacks.value)


def test_a_study_outlasts_a_restart_of_the_server(server: PostgreSql, tmp_path: Path) -> None:
    with opened(server.url, "restarted", tmp_path) as study:
        first = study.ask()
        server.stop()
        again = threading.Timer(1.5, server.start)
        again.start()
        config = small_space().config(first.position)
        study.tell(record_of(first.number, config, as_fast_as_it_is(config)))
        again.join()
        server.stop()
        server.start()
        assert study.ask().number == 1


def test_a_longer_loss_ends_with_a_plain_message(
    server: PostgreSql, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "WAIT_SECONDS", 1.0)
    with opened(server.url, "lost", tmp_path) as study:
        study.ask()
        server.stop()
        try:
            with pytest.raises(StorageError) as lost:
                study.ask()
        finally:
            server.start()
    message = str(lost.value)
    assert f"study storage {server.shown}: no answer within 1 s" in message
    assert "rerun the command to resume" in message
    assert "\n" not in message


def test_a_connection_lost_within_an_operation_repeats_it(server: PostgreSql) -> None:
    storage, other = open_database(server.url), open_database(server.url)
    cut = list[str]()

    def cut_off(connection: object, cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("INSERT INTO studies") and not cut:
            cut.append(statement)
            own = "pid <> pg_backend_pid() AND application_name = 'to be cut'"
            query = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {own}"
            with other.engine.begin() as killer:
                killer.execute(text(query))

    with storage.engine.begin() as connection:
        connection.execute(text("SELECT set_config('application_name', 'to be cut', false)"))
    event.listen(storage.engine, "before_cursor_execute", cut_off)
    try:
        from optuna.study import StudyDirection

        study = storage.create_new_study([StudyDirection.MINIMIZE], "cut")
        assert cut
        assert storage.get_study_name_from_id(study) == "cut"
    finally:
        storage.close()
        other.close()


def test_of_several_coordinators_that_start_at_once_one_goes_on(server: PostgreSql) -> None:
    """On an empty database, whose tables all of them want to make."""
    admin = open_database(server.url)
    with admin.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("CREATE DATABASE fresh"))
    admin.close()
    url = server.url.removesuffix("postgres") + "fresh"
    begin, refused = threading.Barrier(4), threading.Semaphore(0)

    def take(_: int) -> str:
        begin.wait()
        try:
            with coordinator_lease(url, "race", lambda _: None):
                # However long the others take to open the database.
                assert all(refused.acquire(timeout=60.0) for _ in range(3))
                return "ran"
        except StudyBusyError as error:
            refused.release()
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        ends = list(pool.map(take, range(4)))
    assert ends.count("ran") == 1, ends
    assert all(end == "ran" or "study race in" in end for end in ends)
    assert not any(PASSWORD in end or QUOTED in end for end in ends)


def test_a_lease_outlasts_a_restart_and_is_refused_to_others(
    server: PostgreSql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.2)
    events: list[object] = []
    with coordinator_lease(server.url, "kept", events.append) as held:
        server.stop()
        again = threading.Timer(1.5, server.start)
        again.start()
        held.require()
        again.join()
        with pytest.raises(StudyBusyError):
            coordinator_lease(server.url, "kept", events.append).__enter__()
        held.require()
    said = " ".join(map(str, events))
    assert f"{server.shown} does not answer: waiting up to 60 s for it" in said
    assert f"{server.shown} answers again" in said
    assert QUOTED not in said
