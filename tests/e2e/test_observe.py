"""A real server is observed under load, and the recording gives the same advice again."""

from __future__ import annotations

from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from optimizer.commands.observe import ObserveOptions, observe_production
from optimizer.simulator.batcher import Scheduler
from tests.benchmarks.lab_cases import Case
from tests.benchmarks.lab_server import lab_server
from tests.e2e.running import Optimizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SECONDS, RATE = 10.0, 40.0
FIXED_MS, EACH_MS = 20.0, 4.0


def case(number: int = 2000) -> Case:
    rng = np.random.default_rng(number)
    due = np.sort(rng.random(int(RATE * SECONDS))) * SECONDS * 1e3
    scheduler = Scheduler(8, free_dimensions=False)
    shapes = np.zeros(len(due), dtype=np.int32)
    return Case(number, scheduler, 0, FIXED_MS, EACH_MS, due, shapes)


def test_a_server_under_load_is_observed_by_both_protocols_and_replayed(tmp_path: Path) -> None:
    own, record, live = case(), tmp_path / "counters.jsonl", tmp_path / "live.json"
    with lab_server(tmp_path) as server, server.loaded(own) as execute:
        load = Thread(target=execute, args=(own,))
        load.start()
        options = ObserveOptions(
            # The same server, read by two protocols, counts as two replicas.
            (server.endpoint.grpc, f"http://{server.endpoint.http}"),
            seconds=SECONDS - 2,
            every_seconds=0.5,
            limit_ms=200.0,
            metrics=(server.endpoint.metrics,) * 2,
            record=record,
            json=live,
        )
        learnt = observe_production(options).advice.learnt
        load.join()
    assert learnt.replicas == 2
    assert learnt.demand.mean_per_second == pytest.approx(2 * RATE, rel=0.15)
    batches = {each.batch_size: each.compute_ms for each in learnt.service.split.batches}
    assert batches[1] == pytest.approx(FIXED_MS + EACH_MS, rel=0.3)
    assert "nv_inference_request_success" in record.read_text(), "metrics are recorded"
    again = tmp_path / "again.json"
    replay = Optimizer(["observe", record, "--limit", "200ms", "--json", again], tmp_path)
    try:
        assert replay.wait() == 0, replay.errors
    finally:
        replay.end()
    assert "Self-check" in replay.output
    assert again.read_bytes() == live.read_bytes()
