"""The published benchmark: every figure that follows from it is worked out anew."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from optimizer.cli import commands
from optimizer.fleet.benchmark_table import (
    BenchmarkRow,
    Feature,
    batching,
    changes,
    cheapest,
    instances,
    read_rows,
    runtime,
    write_rows,
)
from optimizer.fleet.price_list import shipped_prices
from optimizer.fleet.published_claims import (
    PUBLISHED,
    PUBLISHED_DEMAND,
    PUBLISHED_LIMIT_MS,
    claims,
    per_gpu,
    published_rows,
)
from optimizer.report.benchmark_page import benchmark_page

ROWS = published_rows()
PRICES = shipped_prices()


def test_there_are_eight_configurations_on_three_instance_types() -> None:
    assert len(ROWS) == 24
    assert len({(row.configuration, row.instance_type) for row in ROWS}) == 24
    assert len({row.configuration for row in ROWS}) == 8


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.instance_type}-{row.configuration}")
def test_replicas_and_cost_are_those_that_were_published(row: BenchmarkRow) -> None:
    found = row.priced(PRICES[row.instance_type], PUBLISHED_DEMAND)
    assert found.replicas == row.replicas
    assert found.usd_per_hour == pytest.approx(row.usd_per_hour, abs=0.01)


def test_rows_are_read_as_they_were_written() -> None:
    file = io.StringIO()
    write_rows(file, ROWS)
    assert read_rows(io.StringIO(file.getvalue())) == ROWS


def test_the_cheapest_is_another_where_the_limit_counts() -> None:
    any_latency, within = cheapest(ROWS), cheapest(ROWS, PUBLISHED_LIMIT_MS)
    assert any_latency is not None
    assert within is not None
    assert (any_latency.configuration, any_latency.instance_type) == ("trt-db-ig", "ml.g4dn.xlarge")
    assert (any_latency.usd_per_hour, any_latency.latency_ms) == (7.364, 783)
    assert (within.configuration, within.instance_type) == ("trt-db", "ml.g4dn.2xlarge")
    assert (within.usd_per_hour, within.latency_ms) == (21.62, 499)


def test_nothing_is_the_cheapest_within_a_limit_that_nothing_meets() -> None:
    assert cheapest(ROWS, 100.0) is None


@pytest.mark.parametrize("feature", [runtime, batching, instances])
def test_each_feature_has_twelve_pairs_that_differ_in_it_alone(feature: Feature) -> None:
    pairs = list(changes(ROWS, feature))
    assert len(pairs) == 12
    for pair in pairs:
        differing = [f for f in (runtime, batching, instances) if f(pair.before) != f(pair.after)]
        assert differing == [feature]


def ratios(said: str) -> tuple[float, ...]:
    [claim] = [each for each in claims(ROWS) if each.text.startswith(said)]
    return claim.ratios


def test_batching_gains_pytorch_nothing() -> None:
    found = ratios("dynamic batching, pytorch")
    assert (round(found[0], 2), round(found[-1], 2)) == (0.95, 1.08)


def test_what_the_table_does_not_bear_out_is_counted() -> None:
    of = {claim.text: (claim.supporting_pairs, len(claim.pairs)) for claim in claims(ROWS)}
    assert of["dynamic batching, pytorch: twice the throughput"] == (0, 6)
    borne_out, pairs = of["TensorRT: about half the latency on one GPU"]
    assert 0 < borne_out < pairs == 8


def test_tensorrt_gains_little_latency_on_one_instance_type() -> None:
    [pair] = [
        c
        for c in changes(ROWS, runtime)
        if c.after.configuration == "trt-base" and c.after.instance_type == "ml.g4dn.2xlarge"
    ]
    assert 1 - pair.latency == pytest.approx(0.004)


def test_the_headline_row_serves_more_than_the_same_gpu_elsewhere() -> None:
    by_type = per_gpu(ROWS, "trt-db-ig")
    others = [rate for name, rate in by_type.items() if name != "ml.g4dn.xlarge"]
    assert by_type["ml.g4dn.xlarge"] / max(others) == pytest.approx(2.33, abs=0.01)


def test_each_row_is_a_load_of_few_users() -> None:
    users = [row.per_second * row.latency_ms / 1e3 for row in ROWS]
    assert (round(min(users)), round(max(users))) == (8, 47)
    assert all(math.isfinite(each) for each in users)


def test_replay_prints_every_row_both_winners_and_the_page(tmp_path: Path) -> None:
    arguments = ["replay", PUBLISHED, "--results", str(tmp_path)]
    ran = CliRunner().invoke(commands, arguments, env={"COLUMNS": "120"})
    assert ran.exit_code == 0, ran.output
    assert "Cheapest without a limit: trt-db-ig on ml.g4dn.xlarge, $7.36 an hour" in ran.output
    assert "Cheapest within 500 ms: trt-db on ml.g4dn.2xlarge, $21.62 an hour" in ran.output
    assert "0 of 6 pairs" in ran.output
    page = (tmp_path / "published_benchmark.html").read_text()
    own = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert own.count("<tr") == 24 + 3 + 8 + 1
    assert "$7.36" in own
    assert "$21.62" in own
    assert not re.search(r'(src|href)="http', own), "nothing is fetched from elsewhere"
    assert '<script src="' not in page


def test_a_page_of_fewer_configurations_draws_those_that_there_are() -> None:
    rows = [row for row in ROWS if row.runtime == "tensorrt"]
    page = benchmark_page("some", rows, PRICES, PUBLISHED_DEMAND, PUBLISHED_LIMIT_MS)
    own = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert own.count("<tr") == 12 + 3
    assert "pt-base" not in page
