"""The eight configurations of the published benchmark, on a real server."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimizer.fleet.benchmark_table import batching, changes, instances, read_rows, runtime
from tests.e2e import tiny
from tests.e2e.conftest import StartOptimizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_eight_rows_are_measured_and_kept(start: StartOptimizer, tmp_path: Path) -> None:
    space = tiny.write_space(tmp_path, tiny.space())
    first = start(space, command="baseline")
    assert first.wait() == 0, first.errors
    folder = tmp_path / "results" / "tiny" / "baselines"
    with (folder / "table.csv").open() as lines:
        rows = read_rows(lines)
    assert [row.configuration for row in rows] == [
        "pt-base", "pt-db", "pt-ig", "pt-ig-db", "ov-base", "ov-db", "ov-ig", "ov-db-ig",
    ]  # fmt: skip
    assert all(row.invocations_per_minute > 0 and row.latency_ms > 0 for row in rows)
    assert all(row.usd_per_hour == pytest.approx(0.36 * row.replicas) for row in rows)
    for feature in (runtime, batching, instances):
        assert len(list(changes(rows, feature))) == 4
    assert "Cheapest within 2000 ms: " in first.output
    page = (folder / "page.html").read_text()
    assert page.count("plotly-graph-div") >= 3
    second = start(space, command="baseline")
    assert second.wait() == 0, second.errors
    assert "saturation" not in second.output, "what was measured is not measured again"
