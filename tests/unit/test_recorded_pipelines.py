"""The recorded table of an ensemble: its graph, the statistics of its steps, and its replay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from optimizer.commands.replay import replay_table
from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.level import BatchPoint, ServerSplit
from optimizer.report.pipeline_tables import breakdowns
from optimizer.search.recorded.evaluator import RecordedEvaluator
from optimizer.search.recorded.table import (
    RecordedLevel,
    RecordedRow,
    RecordedSpace,
    RecordedTable,
    StreamLatency,
)
from optimizer.search.recorded.table_file import read_table, write_table
from optimizer.search.samplers import SAMPLERS
from optimizer.simulator.service_observation import observe
from tests.unit.pipelines import STEPS, TOP, space_of
from tests.unit.studies import SETTING
from tests.unit.tables import MACHINE

pytestmark = pytest.mark.usefixtures("fast_disk")

COMPUTE_MS = {"tokenizer": 0.4, "classifier": 8.0, "labeller": 0.5}
SCHEDULING_MS, NETWORK_MS = 0.25, 0.5


def largest(config: ServingConfig) -> int:
    """The batches of the slow step, which a level of the others' requests fills."""
    classifier = next(model for model in config.models if model.name == "classifier")
    return classifier.max_batch_size if classifier.batching is not None else 1


def recorded_level(config: ServingConfig, per_second: float, batch: int) -> RecordedLevel:
    """80 requests, of which the slow step executes `batch` at once; the others take each alone."""
    splits = []
    for name in STEPS:
        size = batch if name == "classifier" else 1
        point = BatchPoint(size, 80 // size, COMPUTE_MS[name])
        splits.append(ServerSplit(name, 80, 2.0, 0.1, COMPUTE_MS[name], 0.1, (point,), step=True))
    inside_ms = round(sum(split.total_ms for split in splits) + SCHEDULING_MS, 6)
    point = BatchPoint(1, 80, 9.5)
    top = ServerSplit(TOP, 80, 0.0, 0.3, 9.5, 0.3, (point,), ensemble=True, request_ms=inside_ms)
    latency = StreamLatency(TOP, 15.0, 30.0)
    return RecordedLevel(per_second, 1.5, NETWORK_MS, (latency,), (*splits, top))


def recorded_row(table: RecordedSpace, number: int) -> RecordedRow:
    position = table.search_space.at(number)
    config = table.search_space.config(position)
    rate = 100.0 * largest(config) + number
    return RecordedRow(
        kind="point",
        position=position,
        outcome="ok",
        reason="met the limits",
        capacity_per_second=rate,
        capacity_low_per_second=0.98 * rate,
        capacity_high_per_second=1.02 * rate,
        excess=-0.5,
        saturation=recorded_level(config, round(1.05 * rate, 2), largest(config)),
        saturation_high_per_second=1.06 * rate,
        light=recorded_level(config, 0.5 * rate, 1),
        measuring_seconds=8.0,
        serving_seconds=1.0,
    )


@pytest.fixture
def table(tmp_path: Path) -> RecordedTable:
    space = space_of(
        tmp_path, {"classifier.batching": [False, True], "tokenizer.instance_count": [1, 2]}
    )
    recorded = RecordedSpace(
        study="pipeline",
        search_space=space.search_space,
        workload=space.workload,
        price=space.price,
        demand=space.demand,
        warmup_seconds=0.5,
        machine=MACHINE,
        as_of="2026-01-01",
    )
    rows = tuple(recorded_row(recorded, number) for number in range(len(space.search_space)))
    written = RecordedTable(recorded, rows)
    write_table(tmp_path / "table.csv", written)
    read = read_table(tmp_path / "table.csv")
    assert read.space.search_space == written.space.search_space
    assert [row.saturation for row in read.rows] == [row.saturation for row in written.rows]
    assert [row.light for row in read.rows] == [row.light for row in written.rows]
    return read


def test_the_graph_and_the_targets_are_in_the_file(table: RecordedTable) -> None:
    assert len(table.rows) == 4
    space = table.space.search_space
    assert space.graph is not None
    assert [step.model for step in space.graph.steps_of(TOP)] == [*STEPS]
    assert [stream.target for stream in table.space.workload.streams] == [TOP]
    config = space.config(space.at(0))
    assert [model.name for model in config.targets] == [TOP]


def test_levels_tell_the_time_of_every_step_and_what_lies_between(table: RecordedTable) -> None:
    evaluator = RecordedEvaluator(table, np.random.default_rng(0))
    space = table.space.search_space
    for number in range(len(space)):
        config = space.config(space.at(number))
        measurement = evaluator.calibrate(config, SETTING.slot).measurement
        assert measurement is not None
        saturated, light = measurement.levels
        for made in (saturated, light):
            assert [split.model for split in made.executed] == [*STEPS]
            assert made.requests_received == 80
            assert made.network_ms == pytest.approx(NETWORK_MS)
        [own] = breakdowns(config, light, measurement.levels)
        assert own.times is not None
        assert own.limits is not None
        assert own.times.rest_ms == pytest.approx(SCHEDULING_MS + NETWORK_MS)
        assert own.limits.bottleneck == "classifier"
        # 100 requests/s and more in executions of 8.2 ms, of 1 request or of 8.
        busy = {step.model: step.busy for step in own.limits.times.steps}
        assert busy["classifier"] == pytest.approx(
            saturated.achieved_per_second * 8.2e-3 / largest(config)
        )
        curve = {
            point.batch_size
            for made in (saturated, light)
            for split in made.server
            if split.model == "classifier"
            for point in split.batches
        }
        assert curve == {1, largest(config)}, "what a simulator of the slow step is calibrated by"
        assert observe(config, saturated, light)


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if s != "gp"])
def test_the_table_is_searched(table: RecordedTable, sampler: str) -> None:
    result = replay_table(table, sampler, seed=0, trials=4, watch=lambda _: None)
    assert result.best is not None
    assert result.best.true_share == 1.0
    assert largest(result.best.record.config) == 8
