from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from optimizer.errors import UsageError
from optimizer.search.recorded.evaluator import RecordedEvaluator
from optimizer.search.recorded.table import RecordedTable
from optimizer.search.recorded.table_file import read_table, write_table
from tests.unit.studies import DEMAND, SETTING, capacity_of, small_space
from tests.unit.tables import recorded_row, recorded_table

SPACE = small_space()
TABLE = recorded_table(SPACE)
CONFIG = SPACE.config(SPACE.at(3))
CAPACITY = capacity_of(CONFIG)


def evaluator(table: RecordedTable = TABLE, seed: int = 0) -> RecordedEvaluator:
    return RecordedEvaluator(table, np.random.default_rng(seed))


def test_it_answers_what_was_measured_and_how_long_that_took() -> None:
    found = evaluator().evaluate(CONFIG, SETTING.slot)
    assert found.outcome == "ok"
    assert found.measurement is not None
    assert found.measurement.capacity_per_second == pytest.approx(CAPACITY)
    assert found.saturation_per_second == pytest.approx(1.05 * CAPACITY)
    assert (found.seconds.measuring, found.seconds.serving) == (8.0, 1.0)


def test_saturation_has_the_batches_that_the_server_executed() -> None:
    found = evaluator().saturate(CONFIG, SETTING.slot)
    assert found.outcome == "bounded"
    assert found.measurement is not None
    [level] = found.measurement.levels
    assert level.kind == "saturation"
    assert level.achieved_per_second == pytest.approx(1.05 * CAPACITY)
    assert level.rate[0] == pytest.approx(1.05 * CAPACITY, rel=0.05)
    recorded = recorded_row(SPACE, 3, CAPACITY).saturation
    assert recorded is not None
    assert level.server == recorded.servers
    assert level.network_ms == pytest.approx(0.5)
    # The level and its warm-up, and loading the model.
    assert (found.seconds.measuring, found.seconds.serving) == (2.5, 1.0)


def test_calibrating_adds_the_light_level_and_its_time() -> None:
    found = evaluator().calibrate(CONFIG, SETTING.slot)
    assert found.outcome == "bounded"
    assert found.measurement is not None
    saturated, light = found.measurement.levels
    assert (saturated.kind, light.kind) == ("saturation", "open_loop")
    [stream] = light.streams
    assert stream.offered_per_second == pytest.approx(0.5 * CAPACITY)
    assert stream.latency_ms(95) == pytest.approx(3 * stream.latency_ms(50))
    assert found.seconds.measuring == 2.5 + 1.5


def test_calibrating_draws_what_has_a_light_level() -> None:
    others = [replace(recorded_row(SPACE, 3, 900.0, "repeat"), light=None) for _ in range(9)]
    table = RecordedTable(TABLE.space, (*TABLE.rows, *others))
    for seed in range(20):
        measurement = evaluator(table, seed).calibrate(CONFIG, SETTING.slot).measurement
        assert measurement is not None
        assert len(measurement.levels) == 2


def test_what_saturates_below_the_bound_costs_that_level_alone() -> None:
    demand = DEMAND.requests_per_second
    above = evaluator().evaluate(CONFIG, SETTING.slot, prune_below=1.07 * CAPACITY / demand)
    below = evaluator().evaluate(CONFIG, SETTING.slot, prune_below=1.05 * CAPACITY / demand)
    assert (above.outcome, above.seconds.measuring) == ("bounded", 2.5)
    assert (below.outcome, below.seconds.measuring) == ("ok", 8.0)


def drawn(table: RecordedTable, seed: int) -> float | None:
    return evaluator(table, seed).evaluate(CONFIG, SETTING.slot).saturation_per_second


def test_one_of_several_undisturbed_measurements_is_drawn_by_the_seed() -> None:
    others = [
        replace(recorded_row(SPACE, 3, 1000.0 * n, "repeat"), disturbed=n == 3) for n in (1, 2, 3)
    ]
    table = RecordedTable(TABLE.space, (*TABLE.rows, *others))
    answers = [drawn(table, seed) for seed in range(30)]
    assert {*answers} == {drawn(TABLE, 0), 1050.0, 2100.0}
    assert answers[7] == drawn(table, 7)


def test_the_truth_of_a_point_is_the_median_of_its_repeats() -> None:
    repeats = [recorded_row(SPACE, 3, rate, "repeat") for rate in (99.0, 100.0, 40.0, 101.0)]
    table = RecordedTable(TABLE.space, (*TABLE.rows, *repeats))
    assert table.true_capacity[SPACE.at(3)] == pytest.approx(99.5)
    assert table.best_capacity == pytest.approx(99.5), "what was measured once may be lucky"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not a table"),
        ("a,b\n1,2\n", "not a table"),
        ("# study: 1\nmeasured\npoint\n", "not a table"),
    ],
)
def test_a_file_that_is_no_table_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "other.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=said) as refused:
        read_table(path)
    assert str(path) in str(refused.value)


def test_a_table_without_rows_or_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must be readable"):
        read_table(tmp_path / "missing.csv")
    write_table(tmp_path / "empty.csv", TABLE)
    text = (tmp_path / "empty.csv").read_text()
    header = [line for line in text.splitlines() if line.startswith("#")]
    columns = text.splitlines()[len(header)]
    (tmp_path / "empty.csv").write_text("\n".join([*header, columns]) + "\n")
    with pytest.raises(UsageError, match="contains no measurement"):
        read_table(tmp_path / "empty.csv")
