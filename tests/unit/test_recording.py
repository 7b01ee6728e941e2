from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from optimizer.configuration.serving_config import ServingConfig
from optimizer.load.capacity import CapacityProtocol, RunLevel
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.resource_use import MachineUse
from optimizer.search.recorded.recording import (
    BEST,
    MOST_ATTEMPTS,
    ROUNDS,
    SAMPLE,
    RecordingPlan,
    RecordPhase,
)
from optimizer.search.recorded.table import RecordedSpace, RecordedTable
from optimizer.search.recorded.table_file import read_table, recorded, write_table
from optimizer.study.directory import RecordingDirectory
from optimizer.study.events import Event, TrialStarted
from tests.unit.studies import SETTING, as_fast_as_it_is, capacity_of, failed, small_space
from tests.unit.tables import MACHINE, WORKLOAD

pytestmark = pytest.mark.usefixtures("fast_disk")
SPACE = small_space()


class Stopped(Exception):
    """The run was cut off here."""


@dataclass
class Recording:
    """A recording in a folder, which a function of the configuration answers."""

    folder: Path
    answer: Callable[[ServingConfig, int], Evaluation] = lambda config, _: as_fast_as_it_is(config)
    asked: list[ServingConfig] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    stop_after: int | None = None

    @property
    def directory(self) -> RecordingDirectory:
        return RecordingDirectory(self.folder)

    def measure(
        self, config: ServingConfig, levels: Callable[[RunLevel], Evaluation]
    ) -> Evaluation:
        if len(self.asked) == self.stop_after:
            raise Stopped
        before = self.asked.count(config)
        self.asked.append(config)
        return self.answer(config, before)

    def run(self, seed: int = 0) -> None:
        protocol = CapacityProtocol()
        phase = RecordPhase(
            SPACE, WORKLOAD, protocol, self.measure, self.directory, SETTING, self.events.append
        )
        phase.run(RecordingPlan(SPACE, seed))

    @property
    def table(self) -> RecordedTable:
        space = RecordedSpace(
            study="test",
            search_space=SPACE,
            workload=WORKLOAD,
            price=SETTING.price,
            demand=SETTING.demand,
            warmup_seconds=0.5,
            machine=MACHINE,
            as_of="2026-01-01",
        )
        return recorded(space, self.directory)


def disturbed(evaluation: Evaluation) -> Evaluation:
    measurement = evaluation.measurement
    assert measurement is not None
    use = MachineUse(
        seconds=1.0, cores=2, server_cpu_seconds=1.0, server_memory_mib=1.0, foreign_cores=0.5
    )
    levels = tuple(replace(level, machine=use) for level in measurement.levels)
    return replace(evaluation, measurement=replace(measurement, levels=levels))


def test_every_point_is_measured_then_a_sample_then_the_best_in_rounds(tmp_path: Path) -> None:
    recording = Recording(tmp_path)
    recording.run()
    points = recording.asked[: len(SPACE)]
    assert Counter(points) == Counter(SPACE.config(SPACE.at(row)) for row in range(len(SPACE)))
    sample = recording.asked[len(SPACE) : len(SPACE) + SAMPLE]
    assert len(set(sample)) == SAMPLE
    rounds = recording.asked[len(SPACE) + SAMPLE :]
    assert len(rounds) == ROUNDS * BEST
    best = sorted(points, key=capacity_of)[-BEST:]
    for start in range(0, len(rounds), BEST):
        assert {capacity_of(c) for c in rounds[start : start + BEST]} == {*map(capacity_of, best)}


def test_points_come_in_an_order_that_the_seed_decides(tmp_path: Path) -> None:
    first, again, other = (Recording(tmp_path / name) for name in "abc")
    for recording, seed in ((first, 0), (again, 0), (other, 1)):
        recording.run(seed)
    assert first.asked == again.asked
    assert first.asked[: len(SPACE)] != other.asked[: len(SPACE)]
    listed = [SPACE.config(SPACE.at(row)) for row in range(len(SPACE))]
    assert first.asked[: len(SPACE)] != listed


def test_what_was_recorded_is_not_measured_again_after_an_interruption(tmp_path: Path) -> None:
    whole = Recording(tmp_path / "whole")
    whole.run()
    cut = Recording(tmp_path / "cut", stop_after=70)
    with pytest.raises(Stopped):
        cut.run()
    rest = Recording(tmp_path / "cut")
    rest.run()
    assert cut.asked + rest.asked == whole.asked
    first = next(event for event in rest.events if isinstance(event, TrialStarted))
    assert first.measured == 71


def test_a_disturbed_point_is_measured_again_but_not_for_ever(tmp_path: Path) -> None:
    noisy = SPACE.config(SPACE.at(5))
    recording = Recording(
        tmp_path,
        lambda config, _: (
            disturbed(as_fast_as_it_is(config)) if config == noisy else as_fast_as_it_is(config)
        ),
    )
    recording.run()
    assert recording.asked[len(SPACE) : len(SPACE) + 2] == [noisy] * 2
    assert len(recording.directory.trials.read_all()) == len(SPACE) + 2


def test_only_a_failure_that_may_pass_is_tried_again(tmp_path: Path) -> None:
    broken, shaky = SPACE.config(SPACE.at(7)), SPACE.config(SPACE.at(9))

    def answer(config: ServingConfig, _: int) -> Evaluation:
        if config in (broken, shaky):
            return failed(transient=config == shaky)
        return as_fast_as_it_is(config)

    recording = Recording(tmp_path, answer)
    recording.run()
    tried = Counter(record.config for record in recording.directory.trials.read_all().values())
    assert (tried[broken], tried[shaky]) == (1, MOST_ATTEMPTS)


def test_a_table_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    broken = SPACE.config(SPACE.at(7))
    recording = Recording(
        tmp_path,
        lambda config, n: (
            failed("it broke, twice: #1")
            if config == broken
            else (disturbed(as_fast_as_it_is(config)) if n == 0 else as_fast_as_it_is(config))
        ),
    )
    recording.run()
    table = recording.table
    write_table(tmp_path / "table.csv", table)
    again = read_table(tmp_path / "table.csv")
    assert again.space == table.space
    assert [row.position for row in again.rows] == [row.position for row in table.rows]
    write_table(tmp_path / "again.csv", again)
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "table.csv").read_text()
    assert {row.reason for row in again.rows if row.outcome == "failed"} == {"it broke, twice: #1"}
    best = max(capacity_of(SPACE.config(SPACE.at(row))) for row in range(len(SPACE)))
    assert again.best_capacity == pytest.approx(best, rel=1e-5)
