"""A sample of the simulator's lab: the server forms the batches that the simulator says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from optimizer.configuration.serving_config import QueuePolicy
from optimizer.simulator.batcher import Scheduler
from tests.benchmarks.lab_cases import Case, Execution, Overheads, simulated
from tests.benchmarks.lab_server import LabServer, lab_server
from tests.benchmarks.simulator_lab import run_configuration

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SERVICE_MS = 60.0
GENERATED = (2, 7)
"""A queue policy with a delay; preferred sizes, a timeout and requests of two shapes."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    with lab_server(tmp_path_factory.mktemp("lab")) as running:
        yield running


@dataclass(frozen=True)
class Known:
    """Arrivals in ms, and the batches that follow; each execution takes `SERVICE_MS`."""

    scheduler: Scheduler
    due_ms: tuple[int, ...]
    sizes: tuple[int, ...]
    rejected: tuple[int, ...] = ()


def batcher(largest: int, preferred: tuple[int, ...] = (), delay_us: int = 0) -> Scheduler:
    return Scheduler(largest, preferred, delay_us, free_dimensions=False)


def with_policy(policy: QueuePolicy) -> Scheduler:
    return Scheduler(1, free_dimensions=False, policy=policy)


KNOWN = {
    "largest preferred size + 1": Known(
        batcher(8, (4,), 20_000), (0, 40, 64, 88, 104, 120, 128, 136), (1, 1, 5, 1)
    ),
    "above all preferred sizes": Known(
        batcher(8, (4,), 20_000), (0, 16, 32, 56, 64, 80, 88, 96, 120), (2, 1, 6)
    ),
    "smallest preferred size": Known(
        batcher(8, (2, 6)), (0, 8, 16, 56, 80, 120, 144, 168), (1, 2, 2, 2, 1)
    ),
    "1, 1, 1, 2": Known(
        Scheduler(4, instances=3, free_dimensions=False), (0, 16, 24, 32, 40), (1, 1, 1, 2)
    ),
    "timeout": Known(
        with_policy(QueuePolicy(timeout_us=10_000)), (0, 8, 16, 40, 80), (1, 1), (1, 2, 3)
    ),
    "full queue": Known(
        with_policy(QueuePolicy(max_queue_size=2)), (0, 8, 16, 40, 80), (1, 1, 1, 1), (3,)
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_batches_that_users_have_wondered_about(server: LabServer, name: str) -> None:
    known, number = KNOWN[name], 1000 + [*KNOWN].index(name)
    due = np.array(known.due_ms, dtype=np.float64)
    shapes = np.zeros(len(due), dtype=np.int32)
    case = Case(number, known.scheduler, 0, SERVICE_MS, 0.0, due, shapes)
    with server.loaded(case) as execute:
        run = execute(case)
        if tuple(run.sizes) != known.sizes:
            run = execute(case)  # an accident of a busy machine does not repeat itself
    for each in (run, simulated(case, run, Overheads.of(run, 0.0))):
        assert tuple(each.sizes) == known.sizes
        assert tuple(np.flatnonzero(each.rejected)) == known.rejected
        if name == "timeout":
            assert_rejected_at_the_end_of_the_execution(each)


def assert_rejected_at_the_end_of_the_execution(run: Execution) -> None:
    """Their time was over after 10 ms of 60."""
    assert (run.done_ms[run.rejected] > run.batch_begin_ms[0] + SERVICE_MS - 1).all()


def test_generated_cases_agree(server: LabServer) -> None:
    rows = [row for number in GENERATED for row in run_configuration(server, number, (0,))]
    assert [str(row) for row in rows if row.differs] == []
