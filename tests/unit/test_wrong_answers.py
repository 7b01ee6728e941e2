"""Trials of an earlier run whose answers are found to be wrong afterwards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from optimizer.artifacts.accuracy import FailingBatch
from optimizer.configuration.serving_config import ServingConfig
from optimizer.study.events import Event, Note
from optimizer.study.gated_artifact import (
    GatedArtifact,
    GatedShapes,
    reject_wrong_answers,
    wrong_answers_reason,
)
from optimizer.study.record_store import RecordStore
from optimizer.study.trial_records import has_wrong_answers
from tests.unit.studies import infeasible, ok, record_of, small_space

SPACE = small_space()
LARGE, SMALL = (
    next(
        config
        for row in range(len(SPACE))
        if (config := SPACE.config(SPACE.at(row))).models[0].max_batch_size == size
        and config.models[0].artifact == SPACE.artifacts[0]
    )
    for size in (16, 4)
)
RIGHT = GatedArtifact(
    SPACE.artifacts[0], "ab", 0.0, None, None, None, GatedShapes((1, 9, 16), (16,))
)
FAILING = replace(RIGHT, failing=FailingBatch(16, "rows are zeros"))


def reasons(gated: GatedArtifact) -> list[str | None]:
    return [wrong_answers_reason(config, [gated]) for config in (LARGE, SMALL)]


def test_configurations_that_reach_a_failing_batch_answer_wrongly() -> None:
    assert reasons(RIGHT) == [None, None]
    assert reasons(FAILING) == ["rows are zeros", None]
    assert reasons(replace(RIGHT, dropped="accuracy: bad")) == ["accuracy: bad"] * 2
    assert reasons(replace(RIGHT, dropped="could not be served", shapes=None)) == [None, None]


def test_their_records_become_infeasible_and_no_others(tmp_path: Path) -> None:
    store, events = RecordStore(tmp_path), list[Event]()
    configs: list[ServingConfig] = [LARGE, SMALL, LARGE]
    for number, (config, found) in enumerate(
        zip(configs, (ok(100), ok(50), infeasible(80)), strict=True)
    ):
        store.write(record_of(number, config, found))
    before = store.read_all()
    judged = reject_wrong_answers(store, store.read_all(), [FAILING], events.append)
    assert [judged[n].outcome for n in range(3)] == ["infeasible", "ok", "infeasible"]
    assert judged[0].reason == "wrong answers: rows are zeros"
    assert (judged[0].score, judged[0].told_value, judged[0].constraints) == (None, None, ())
    assert (judged[0].further, judged[0].told_further) == ((), ())
    assert [has_wrong_answers(judged[n]) for n in range(3)] == [True, False, False]
    assert (judged[1], judged[2]) == (before[1], before[2])
    assert store.read_all() == judged
    assert [event.text for event in events if isinstance(event, Note)] == [
        "trial 0 is infeasible: wrong answers: rows are zeros"
    ]
    assert reject_wrong_answers(store, judged, [FAILING], events.append) == judged
    assert len(events) == 1
