"""Trials at the same time, on two slots of a machine: the real server in two worker processes."""

from __future__ import annotations

import signal
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
_PATIENCE_SECONDS = 150.0
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


def content_of(study: StudyDirectory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in study.trials.folder.glob("*.json")}


def test_the_loss_of_a_worker_and_of_the_coordinator_costs_no_trial(
    space: Path, study: StudyDirectory, start: StartOptimizer
) -> None:
    killed = start(space, *SLOTS)
    # As the third trial starts, both workers have one.
    killed.wait_for("  3/3 on ", _PATIENCE_SECONDS)
    servers = killed.marked.servers()
    assert len({tuple(server.cpu_affinity()) for server in servers}) == 2, "a core for each"
    assert study_status(study.root.parent, "tiny").disturbance is not None
    [lost, *_] = workers_of(killed)
    lost.kill()
    killed.wait_for("was lost: its process ended with signal SIGKILL", _PATIENCE_SECONDS)
    wait_until(lambda: len(records_of(study)) == 3, "all trials", _PATIENCE_SECONDS)
    assert max(len(record.workers) for record in records_of(study)) == 2, "one ran again"
    before = content_of(study)
    killed.kill()
    killed.assert_nothing_left()
    again = start(space, *SLOTS)
    assert again.wait() == 0, again.errors
    assert content_of(study) == before, "nothing is measured again"
    records = records_of(study)
    assert len({record.config for record in records}) == 3
    assert sorted(record.told_position or 0 for record in records) == [0, 1, 2]
    assert {record.worker for record in records} <= {"slot-0", "slot-1"}
    assert all(study.server_log_of(record) != study.server_log for record in records)
    summary = study.read_json(study.summary)
    assert summary["trials"]["ok"] == 3
    assert summary["disturbance"]["workers"] == 2
    assert summary["machine"]["cores"] == 1


def test_ctrl_c_ends_both_workers_and_the_whole_machine_does_not_go_on_with_their_study(
    space: Path, study: StudyDirectory, start: StartOptimizer
) -> None:
    optimizer = start(space, *SLOTS)
    optimizer.wait_for("  3/3 on ", _PATIENCE_SECONDS)
    assert (len(workers_of(optimizer)), len(optimizer.marked.servers())) == (2, 2)
    optimizer.process.send_signal(signal.SIGINT)
    assert optimizer.wait() == 130, optimizer.errors
    assert optimizer.errors == "interrupted (SIGINT); rerun the command to resume\n"
    other = start(space)
    assert other.wait() == 2
    assert "machine.cores" in other.errors
