"""Trials at the same time, on two slots of a machine: the real server in two worker processes."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from optimizer.analysis.study_status import study_status
from optimizer.machine.cores import usable_cores
from optimizer.machine.topology import Topology
from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.directory import StudyDirectory
from tests.e2e import tiny
from tests.e2e.conftest import StartOptimizer
from tests.e2e.running import Optimizer, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        len(Topology().physical_cores(usable_cores())) < 2, reason="needs two physical cores"
    ),
]
SLOTS = ("--slots", 2)
PARAMETERS = {
    "runtime": ["onnxruntime"],
    "precision": ["fp32"],
    "batching": [False, True],
    "max_batch_size": [4, 8],
    "max_queue_delay_microseconds": [0],
    "instance_count": [1],
    "intra_op_threads": [1],
}


@pytest.fixture
def space(tmp_path: Path) -> Path:
    return tiny.write_space(tmp_path, tiny.space(parameters=PARAMETERS, budget={"trials": 3}))


@pytest.fixture
def study(tmp_path: Path) -> StudyDirectory:
    return StudyDirectory(tmp_path / "results" / "tiny")


def workers_of(optimizer: Optimizer) -> list[psutil.Process]:
    return optimizer.marked.processes("optimizer.cluster.worker_process")


def records_of(study: StudyDirectory) -> list[TrialRecord]:
    return list(study.trials.read_all().values())


def assert_each_told_once(study: StudyDirectory, trials: int) -> None:
    records = records_of(study)
    assert len(records) == trials
    assert len({record.config for record in records}) == trials
    assert sorted(record.told_position or 0 for record in records) == list(range(trials))
    assert study.read_json(study.summary)["trials"]["ok"] == trials


def test_a_search_on_two_slots_survives_the_loss_of_a_worker(
    space: Path, study: StudyDirectory, start: StartOptimizer
) -> None:
    optimizer = start(space, *SLOTS)
    # The baseline is measured alone; then both workers have a trial.
    optimizer.wait_for("  3/3 on ")
    servers = optimizer.marked.servers()
    assert len(servers) == 2
    affinities = {tuple(server.cpu_affinity()) for server in servers}
    assert len(affinities) == 2, "each server has a core of its own"
    status = study_status(study.root.parent, "tiny")
    assert status.disturbance is not None
    workers_of(optimizer)[0].kill()
    assert optimizer.wait() == 0, optimizer.errors
    assert_each_told_once(study, 3)
    assert "was lost: its process ended with signal SIGKILL" in optimizer.output
    assert {record.worker for record in records_of(study)} <= {"slot-0", "slot-1"}
    [again] = [record for record in records_of(study) if len(record.workers) > 1]
    assert again.outcome == "ok"
    assert (study.root / "logs" / f"server.{again.worker}.log").exists()
    assert study.read_json(study.summary)["disturbance"]["workers"] == 2
    assert study.read_json(study.summary)["machine"]["cores"] == 1


def test_a_killed_coordinator_leaves_nothing_and_is_resumed(
    space: Path, study: StudyDirectory, start: StartOptimizer
) -> None:
    killed = start(space, *SLOTS)
    killed.wait_for("  3/3 on ")
    assert (len(workers_of(killed)), len(killed.marked.servers())) == (2, 2)
    before = {path.name: path.read_bytes() for path in study.trials.folder.glob("*.json")}
    assert before
    killed.kill()
    killed.assert_nothing_left()
    again = start(space, *SLOTS)
    assert again.wait() == 0, again.errors
    assert_each_told_once(study, 3)
    for name, content in before.items():
        assert (study.trials.folder / name).read_bytes() == content, "not measured again"


def test_ctrl_c_ends_both_workers_and_their_servers(
    space: Path, study: StudyDirectory, start: StartOptimizer
) -> None:
    optimizer = start(space, *SLOTS)
    optimizer.wait_for("  3/3 on ")
    optimizer.process.send_signal(2)
    assert optimizer.wait() == 130, optimizer.errors
    assert optimizer.errors == "interrupted (SIGINT); rerun the command to resume\n"


def test_a_study_of_slots_is_not_resumed_on_the_whole_machine(
    space: Path, study: StudyDirectory, start: StartOptimizer
) -> None:
    first = start(space, *SLOTS)
    wait_until(study.space.exists, "a study")
    first.end()
    other = start(space)
    assert other.wait() == 2
    assert "machine.cores" in other.errors
