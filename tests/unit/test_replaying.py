from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

from optimizer.cli import commands
from optimizer.commands.replay import Replay, open_table, replay_table
from optimizer.errors import UsageError
from optimizer.search.recorded.recording import BEST, ROUNDS, SAMPLE
from optimizer.search.recorded.table_file import write_table
from optimizer.search.samplers import CALIBRATED, SAMPLERS
from optimizer.study import record_store
from optimizer.study.events import Event, PhaseStarted
from tests.unit.studies import small_space
from tests.unit.tables import recorded_table

pytestmark = pytest.mark.usefixtures("fast_disk")
SPACE = small_space()
TABLE = recorded_table(SPACE)
CALIBRATION_SECONDS = 6 * (2.5 + 1.0) + 3 * 1.5


def replayed(sampler: str, *, trials: int = 12, seed: int = 0, near: float | None = None) -> Replay:
    return replay_table(TABLE, sampler, seed, trials, lambda _: None, near)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "gp"])
def test_every_sampler_searches_a_table(sampler: str) -> None:
    found = replayed(sampler)
    assert 1 <= len(found.trials) <= 12
    assert found.best is not None
    assert 0 < found.best.true_share <= 1
    calibrates = sampler in CALIBRATED
    assert found.calibration_seconds == (CALIBRATION_SECONDS if calibrates else 0)
    seconds = [trial.seconds for trial in found.trials]
    assert seconds == sorted(seconds)
    assert seconds[0] > found.calibration_seconds


def test_a_long_replay_reads_its_first_records_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run keeps the levels of its latest records alone, and a table has no 99th percentile."""
    monkeypatch.setattr(record_store, "_RECENT", 2)
    assert len(replayed("grid", trials=8).trials) == 8


@pytest.mark.slow
def test_the_same_seed_finds_the_same() -> None:
    for sampler in ("guided", "random"):
        one, two = (replayed(sampler, seed=3) for _ in range(2))
        assert [t.record.config for t in one.trials] == [t.record.config for t in two.trials]


def test_it_ends_at_the_first_trial_that_is_near_enough_where_that_is_asked() -> None:
    found = replayed("guided", trials=63, near=0.05)
    first = found.first_within(0.05)
    assert first is not None
    assert first[0] == len(found.trials)
    assert first[1] == found.trials[-1].seconds
    assert "within 5%" in found.ended.reason


def test_workers_share_the_trials_of_a_replay() -> None:
    one, four = (
        replay_table(TABLE, "random", 0, 21, lambda _: None, workers=workers) for workers in (1, 4)
    )
    assert len(one.trials) == len(four.trials) == 21
    # Each trial takes 9 s, or less where it is pruned.
    durations = [t.record.seconds.measuring + t.record.seconds.serving for t in four.trials]
    busy = sum(durations) / 4
    assert busy <= four.trials[-1].seconds < busy + 3 * max(durations)
    assert four.trials[-1].seconds < one.trials[-1].seconds / 2
    seconds = [trial.seconds for trial in four.trials]
    assert seconds == sorted(seconds)
    assert [trial.record.told_position for trial in four.trials] == list(range(21))


def test_a_search_that_finds_nothing_near_says_none() -> None:
    assert replayed("grid", trials=1).first_within(0.001) is None


def test_the_calibration_comes_before_the_search() -> None:
    events: list[Event] = []
    replay_table(TABLE, "guided", 0, 3, events.append)
    phases = [event.phase for event in events if isinstance(event, PhaseStarted)]
    assert phases == ["calibrate", "search"]


@pytest.mark.slow
def test_replay_prints_what_was_found_and_how_soon(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_table(path, TABLE)
    ran = CliRunner().invoke(commands, ["replay", str(path), "--trials", "20"])
    assert ran.exit_code == 0, ran.output
    assert "calibrate: up to 6 steps" in ran.output
    assert "test, recorded 2026-01-01 on a processor, 2 cores, 24 GiB (avx2)" in ran.output
    assert "of the table's best, 537/s" in ran.output
    assert "within 5% of it after" in ran.output
    shared = CliRunner().invoke(
        commands, ["replay", str(path), "--trials", "20", "--sampler", "grid", "--workers", "5"]
    )
    alone = CliRunner().invoke(commands, ["replay", str(path), "--trials", "20", "--sampler=grid"])
    assert (shared.exit_code, alone.exit_code) == (0, 0)
    seconds = [int(re.findall(r"20 trials: (\d+) s", each.output)[0]) for each in (shared, alone)]
    assert seconds[0] < seconds[1] / 2


def test_a_table_that_is_no_file_and_does_not_ship_is_refused_with_those_that_do() -> None:
    ran = CliRunner().invoke(commands, ["replay", "nowhere"])
    assert isinstance(ran.exception, UsageError)
    assert "short_sequences" in str(ran.exception)


@pytest.mark.parametrize(
    "name", ["precision_and_instances", "short_sequences", "text_classification"]
)
def test_shipped_tables_hold_every_point_and_the_best_again_and_again(name: str) -> None:
    table = open_table(name)
    space = table.space.search_space
    assert 120 <= len(space) <= 200
    assert table.by_position.keys() == {space.at(row) for row in range(len(space))}
    kinds = Counter(row.kind for row in table.rows)
    assert kinds["repeat"] == ROUNDS * BEST
    assert kinds["latencies"] == SAMPLE
    assert table.space.machine.server == "embedded"


def test_tuning_all_steps_of_the_pipeline_beats_tuning_its_model_alone() -> None:
    table = open_table("text_classification")
    space = table.space.search_space
    others = [n for n, p in enumerate(space.parameters) if p.model in ("tokenizer", "labeller")]
    model_alone = [
        capacity
        for position, capacity in table.true_capacity.items()
        if all(position[n] == space.baseline[n] for n in others)
    ]
    assert len(model_alone) == 20
    assert table.best_capacity > 1.4 * max(model_alone)
