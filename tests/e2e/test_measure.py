"""`measure` on a real server: capacity, curve, one rate, users, and perf_analyzer beside it."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from optimizer.triton.launcher import free_ports
from tests.e2e import tiny
from tests.e2e.conftest import StartOptimizer
from tests.sampling import sampled

pytestmark = pytest.mark.timeout(300)

SPACE = tiny.space(traffic={"arrivals": "constant", "batch_size": 2})
BATCHING = ("--set", "batching=true", "--set", "bert.max_batch_size=8")


def measured(folder: Path, number: int) -> dict[str, Any]:
    path = folder / "results" / "tiny" / "measured" / f"{number:05}" / "measured.json"
    return dict(json.loads(path.read_text()))


@pytest.mark.slow
def test_a_configuration_is_measured_in_every_way_and_nothing_is_left(
    start: StartOptimizer, tmp_path: Path
) -> None:
    space = tiny.write_space(tmp_path, SPACE)
    for arguments in ((), ("--rate", 50), ("--curve", "--seed", 3)):
        optimizer = start(space, *BATCHING, *arguments, command="measure")
        assert optimizer.wait() == 0, optimizer.errors
        for text in ("Where the time goes", "end-to-end latency", "Batches that bert executed"):
            assert text in optimizer.output
        assert "GPU: none (the trial runs on no GPU)" in optimizer.output
    capacity, rate, curve = (measured(tmp_path, number) for number in range(3))
    assert capacity["config"]["models"][0]["max_batch_size"] == 8
    assert capacity["capacity"]["per_second"] > 50
    assert rate["capacity"] is None
    [level] = rate["levels"]
    assert level["streams"][0]["offered_per_second"] == pytest.approx(50, rel=0.1)
    assert level["streams"][0]["errors"] == 0
    assert {point["batch_size"] % 2 for point in level["server"][0]["batches"]} == {0}
    assert len(curve["levels"]) >= 10
    folders = (tmp_path / "results" / "tiny" / "measured").glob("[0-9]*")
    assert all({p.name for p in f.iterdir()} <= {"measured.json", "prepared.json", "logs"}
               for f in folders)  # fmt: skip


@pytest.mark.slow
def test_users_come_in_stairs_until_a_condition_ends_them(
    start: StartOptimizer, tmp_path: Path
) -> None:
    space = tiny.write_space(tmp_path, SPACE)
    stairs = {"DurationInSeconds": 1, "NumberOfSteps": 3, "UsersPerStep": 2}
    users = tmp_path / "users.json"
    users.write_text(
        json.dumps({"TrafficPattern": {"TrafficType": "STAIRS", "Stairs": stairs},
                    "ThinkTimeInSeconds": 0.05})
    )  # fmt: skip
    optimizer = start(space, "--users", users, command="measure")
    assert optimizer.wait() == 0, optimizer.errors
    assert "User load: its time was up" in optimizer.output
    [level] = measured(tmp_path, 0)["levels"]
    assert level["kind"] == "user_load"
    completed = [part["completed"] for part in level["slices"]]
    assert sum(completed[-3:]) > 1.5 * sum(completed[:3]) > 0, "three times the users at the end"


@pytest.mark.skipif(shutil.which("perf_analyzer") is None, reason="perf_analyzer is not on PATH")
@pytest.mark.slow
def test_perf_analyzer_measures_the_same_level(start: StartOptimizer, tmp_path: Path) -> None:
    space = tiny.write_space(tmp_path, SPACE)
    arguments = (*BATCHING, "--rate", 50, "--with", "perf_analyzer")
    optimizer = start(space, *arguments, command="measure")
    assert optimizer.wait() == 0, optimizer.errors
    assert "this client" in optimizer.output
    found = measured(tmp_path, 0)
    assert found["perf_analyzer"]["achieved_per_second"] == pytest.approx(50, rel=0.2)


@pytest.mark.parametrize("transport", ["grpc", "http"])
@pytest.mark.slow
def test_no_request_goes_through_a_proxy(
    start: StartOptimizer, tmp_path: Path, transport: str
) -> None:
    own = tiny.space(traffic={"transport": {"protocol": transport}})
    proxy = f"http://127.0.0.1:{free_ports(1)[0]}"
    names = ("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "all_proxy")
    environment = {**dict.fromkeys(names, proxy), "no_proxy": "", "NO_PROXY": ""}
    space = tiny.write_space(tmp_path, own)
    optimizer = start(space, "--rate", 200, command="measure", environment=environment)
    assert optimizer.wait() == 0, optimizer.errors
    [level] = measured(tmp_path, 0)["levels"]
    assert level["streams"][0]["errors"] == 0
    assert level["machine"]["triton"], "the gauges of the server's metrics were read"


@pytest.mark.slow
def test_what_cannot_be_measured_is_said_before_anything_starts(
    start: StartOptimizer, tmp_path: Path
) -> None:
    space = tiny.write_space(tmp_path, SPACE)
    cases = {
        ("--set", "precision=int9", "--set", "colour=red"): "colour: unknown key",
        ("--set", "instance_count=64"): "instance_count * intra_op_threads <= cores",
        ("--rate", 5, "--curve"): "give one of --curve, --rate, --users, not --curve and --rate",
        ("--users", "nowhere.json"): "nowhere.json must be readable (No such file",
    }
    for arguments, message in cases.items():
        optimizer = start(space, *arguments, command="measure")
        assert optimizer.wait() == 2
        assert message in optimizer.errors
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_a_rate_that_misses_the_limit_ends_with_1(start: StartOptimizer, tmp_path: Path) -> None:
    space = tiny.write_space(tmp_path, tiny.space(limit={"latency_ms": 0.2}))
    optimizer = start(space, "--rate", 100, command="measure")
    assert optimizer.wait() == 1, optimizer.errors
    assert "The limit was not met: p95 of bert" in optimizer.output, optimizer.errors
    assert "over the limit of 0.2 ms" in measured(tmp_path, 0)["missed"]


@pytest.mark.slow
@pytest.mark.parametrize("number", sampled([signal.SIGSTOP, signal.SIGKILL], every=2))
def test_a_model_that_dies_or_stops_at_a_rate_ends_with_4(
    start: StartOptimizer, tmp_path: Path, number: signal.Signals
) -> None:
    space = tiny.write_space(tmp_path, tiny.space(measurement={"check_seconds": 4.0}))
    optimizer = start(space, "--rate", 50, "--verbose", command="measure")
    optimizer.wait_for("offering 50/s")
    for stub in optimizer.marked.processes("python_backend_stub"):
        stub.send_signal(number)
    assert optimizer.wait() == 4, optimizer.output
    how = "has died" if number == signal.SIGKILL else "is stopped"
    assert f"in which a model runs, {how}" in optimizer.errors
    optimizer.assert_nothing_left()
