"""The study storage on a real PostgreSQL, where the machine has one."""

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from optimizer.errors import StorageError, UsageError
from optimizer.search.samplers import SAMPLERS
from optimizer.study.dashboard.dashboard_study import DashboardStudy
from optimizer.study.dashboard.markdown import trial_note
from optimizer.study.dashboard.server import dashboard_server
from optimizer.study.history import History
from optimizer.study.optuna_study import OptunaStudy
from optimizer.triton.launcher import free_ports
from tests.unit.studies import as_fast_as_it_is, infeasible, policy_of, record_of, small_space

pytestmark = pytest.mark.slow

_USER = "postgres"


def _binaries() -> Path | None:
    on_path = shutil.which("initdb")
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return installed[-1].parent if installed else Path(on_path).parent if on_path else None


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of an empty database in a cluster of its own."""
    binaries = _binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    folder = tmp_path_factory.mktemp("postgresql")
    # PostgreSQL refuses to run as root.
    user = _USER if os.geteuid() == 0 else None
    if user is not None:
        # pytest's own folders, of which each of its processes has one more.
        own = [path for path in folder.parents if path.name.startswith(("pytest-", "popen-"))]
        for path in [folder, *own]:
            path.chmod(0o755)
        shutil.chown(folder, user)
    port = free_ports(1)[0]
    data = folder / "data"
    server = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"

    def run(*command: str) -> None:
        subprocess.run(command, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL)

    run(str(binaries / "initdb"), "-D", str(data), "-A", "trust", "-U", _USER)
    control = str(binaries / "pg_ctl")
    run(control, "-D", str(data), "-w", "-l", str(folder / "log"), "-o", server, "start")
    try:
        yield f"postgresql+psycopg://{_USER}:not-secret@127.0.0.1:{port}/postgres"
    finally:
        run(control, "-D", str(data), "-w", "-m", "immediate", "stop")


def opened(url: str, name: str, folder: Path) -> OptunaStudy:
    space = small_space()
    make_sampler = SAMPLERS["gp"](policy_of(space, History({}))).make_sampler
    return OptunaStudy(name, folder / "unused.journal", url, space, make_sampler, seed=1)


def test_a_study_lives_in_postgresql_across_processes(database: str, tmp_path: Path) -> None:
    with opened(database, "lives", tmp_path) as study:
        for _ in range(8):
            proposal = study.ask()
            config = small_space().config(proposal.position)
            study.tell(record_of(proposal.number, config, as_fast_as_it_is(config)))
    with opened(database, "lives", tmp_path) as again:
        assert again.ask().number == 8
    assert not (tmp_path / "unused.journal").exists()


def test_a_trial_cut_off_in_postgresql_is_proposed_again(database: str, tmp_path: Path) -> None:
    with opened(database, "cut-off", tmp_path) as study:
        cut_off = study.ask()
    with opened(database, "cut-off", tmp_path) as again:
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


def test_the_dashboard_shows_a_study_in_the_database(database: str, tmp_path: Path) -> None:
    pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed")
    journal, artifacts = tmp_path / "study.journal", tmp_path / "artifacts"
    study = opened(database, "shown", tmp_path)
    proposal = study.ask()
    config = small_space().config(proposal.position)
    record = record_of(proposal.number, config, infeasible(900.0))
    with DashboardStudy("shown", journal, database, artifacts) as shown:
        shown.name_constraints(["latency.bert"])
        shown.attach(proposal.number, "config.pbtxt", 'name: "bert"')
        study.tell(record)
        assert shown.trials_without_note([proposal.number]) == [proposal.number]
        shown.note_trial(proposal.number, trial_note(record))
        shown.note("a note of the study, longer than a column of the table: " + "x" * 5000)
    study.close()
    opened(database, "another", tmp_path).close()
    with dashboard_server("shown", journal, database, artifacts, 0) as server:
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
    assert found["note"]["body"].endswith("x" * 5000)
