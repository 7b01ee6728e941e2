"""A recording on a real server, cut off and resumed; and its table, searched without one."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from click.testing import CliRunner

from optimizer.cli import commands
from optimizer.search.recorded.table_file import read_table
from tests.e2e import tiny
from tests.e2e.conftest import StartOptimizer
from tests.e2e.running import RECORDING_ONCE

pytestmark = pytest.mark.timeout(300)

SPACE = tiny.space(
    parameters={
        "batching": [False, True],
        "max_batch_size": [8],
        "preferred_batch_sizes": ["none"],
        "max_queue_delay_us": [0],
        "instance_count": [1],
        "intra_op_threads": [1],
    }
)


@pytest.mark.slow
def test_a_space_is_recorded_resumed_and_replayed(start: StartOptimizer, tmp_path: Path) -> None:
    space = tiny.write_space(tmp_path, SPACE)
    first = start(space, command="record", python=RECORDING_ONCE)
    first.wait_for("  2/")
    first.process.send_signal(signal.SIGINT)
    assert first.wait() == 130
    second = start(space, command="record", python=RECORDING_ONCE)
    assert second.wait() == 0, second.errors
    assert "  1/" not in second.output, "what was measured is not measured again"
    path = tmp_path / "results" / "tiny" / "recorded" / "table.csv"
    assert f"table: {path}" in second.output
    table = read_table(path)
    assert {row.kind for row in table.rows} == {"point", "latencies", "repeat"}
    assert all(row.outcome == "ok" for row in table.rows)
    assert all(row.saturation and row.saturation.servers[0].batches for row in table.rows)
    points = [row for row in table.rows if row.kind == "point"]
    assert all(row.light and row.light.latencies[0].p95_ms > 0 for row in points)
    sampled = [row for row in table.rows if row.kind == "latencies"]
    assert all(len(row.latencies) == 2 for row in sampled)

    for sampler in ("guided", "random"):
        replay = CliRunner().invoke(commands, ["replay", str(path), "--sampler", sampler])
        assert replay.exit_code == 0, replay.output
        assert "of the table's best" in replay.output
