"""A real server is observed under load: by itself, from a recording, and through a Prometheus."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from optimizer.commands.observe import ObserveOptions, ObserveResult, observe_production
from optimizer.simulator.batcher import Scheduler
from optimizer.triton.connections import fetch
from optimizer.triton.launcher import free_ports
from tests.benchmarks.lab_cases import Case
from tests.benchmarks.lab_server import lab_server
from tests.e2e.running import Optimizer, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SECONDS, RATE = 10.0, 40.0
FIXED_MS, EACH_MS = 20.0, 4.0
PROMETHEUS = shutil.which("prometheus")


def case(number: int = 2000) -> Case:
    rng = np.random.default_rng(number)
    due = np.sort(rng.random(int(RATE * SECONDS))) * SECONDS * 1e3
    scheduler = Scheduler(8, free_dimensions=False)
    shapes = np.zeros(len(due), dtype=np.int32)
    return Case(number, scheduler, 0, FIXED_MS, EACH_MS, due, shapes)


@contextmanager
def scraping(metrics: str, folder: Path) -> Iterator[str]:
    """A Prometheus that scrapes a server every second."""
    folder.mkdir()
    [port] = free_ports(1)
    (folder / "prometheus.yml").write_text(
        "scrape_configs:\n- job_name: triton\n  scrape_interval: 1s\n  static_configs:\n"
        f"  - targets: ['{metrics}']\n"
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                str(PROMETHEUS),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: has_scraped(url), "a scrape")
        yield url
    finally:
        process.terminate()
        process.wait(30)


def has_scraped(url: str) -> bool:
    try:
        return b"nv_inference_count" in fetch(f"{url}/api/v1/query?query=nv_inference_count", 5.0)
    except OSError:
        return False


@dataclass(frozen=True)
class Observation:
    """One load, observed in both ways."""

    live: ObserveResult
    record: Path
    json: Path
    scraped: ObserveResult | None


@pytest.fixture(scope="module")
def observation(tmp_path_factory: pytest.TempPathFactory) -> Observation:
    folder, own = tmp_path_factory.mktemp("observed"), case()
    record, json = folder / "counters.jsonl", folder / "live.json"
    with ExitStack() as stack:
        server = stack.enter_context(lab_server(folder))
        execute = stack.enter_context(server.loaded(own))
        url = None
        if PROMETHEUS is not None:
            url = stack.enter_context(scraping(server.endpoint.metrics, folder / "prometheus"))
        load = Thread(target=execute, args=(own,))
        load.start()
        live = observe_production(
            ObserveOptions(
                # The same server, read by two protocols, counts as two replicas.
                (server.endpoint.grpc, f"http://{server.endpoint.http}"),
                seconds=SECONDS - 2,
                every_seconds=0.5,
                limit_ms=200.0,
                metrics=(server.endpoint.metrics,) * 2,
                record=record,
                json=json,
            )
        )
        load.join()
        time.sleep(1.5)  # the next scrape has the end of the load
        scraped = None
        if url is not None:
            scraped = observe_production(
                ObserveOptions(
                    prometheus=url,
                    query_seconds=60.0,
                    selector='job="triton"',
                    repository=server.repository,
                    limit_ms=200.0,
                )
            )
    return Observation(live, record, json, scraped)


def test_a_server_under_load_is_observed_by_both_protocols(observation: Observation) -> None:
    learnt = observation.live.advice.learnt
    assert learnt.replicas == 2
    assert learnt.demand.mean_per_second == pytest.approx(2 * RATE, rel=0.15)
    batches = {each.batch_size: each.compute_ms for each in learnt.service.split.batches}
    assert batches[1] == pytest.approx(FIXED_MS + EACH_MS, rel=0.3)


def test_a_recording_is_replayed_to_the_same_advice(
    observation: Observation, tmp_path: Path
) -> None:
    assert "nv_inference_request_success" in observation.record.read_text()
    again = tmp_path / "again.json"
    command = ["observe", observation.record, "--limit", "200ms", "--json", again]
    replay = Optimizer(command, tmp_path)
    try:
        assert replay.wait() == 0, replay.errors
    finally:
        replay.end()
    assert "Self-check" in replay.output
    assert again.read_bytes() == observation.json.read_bytes()


@pytest.mark.tools
def test_what_a_prometheus_has_scraped_shows_the_same(observation: Observation) -> None:
    if observation.scraped is None:
        pytest.skip("prometheus is not installed (Debian: prometheus)")
    scraped, live = observation.scraped, observation.live
    assert "no statistics by batch size" in " ".join(scraped.observed.notes)
    served = sum(each.split.requests for each in scraped.observed.intervals)
    assert served == pytest.approx(SECONDS * RATE, rel=0.25)
    ours, theirs = (each.advice.learnt.service.split for each in (live, scraped))
    assert theirs.compute_infer_ms == pytest.approx(ours.compute_infer_ms, rel=0.15)
    assert theirs.queue_ms == pytest.approx(ours.queue_ms, rel=0.35)
