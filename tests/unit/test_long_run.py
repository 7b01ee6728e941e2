"""What a trial costs beside its measurement must not grow with the number of trials before it."""

from __future__ import annotations

import builtins
import io
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import JournalStorage

from optimizer.analysis import study_reading
from optimizer.configuration.search_space import SearchSpace
from optimizer.errors import StorageError
from optimizer.measurement.level import ExtraLimit, Measurement
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.surrogate.learnt_forecast import with_trials
from optimizer.simulator.service_model import ServiceModel
from optimizer.space_file.reader import Budget
from optimizer.study import record_store
from optimizer.study.events import Event, TrialFinished
from optimizer.study.optuna_storage import open_storage
from optimizer.study.record_store import RecordStore
from optimizer.study.stored_levels import StoredLevels
from optimizer.workload.streams import Workload
from tests.unit.fake_runs import FakeRuns
from tests.unit.shown_studies import shown_search
from tests.unit.studies import FakeEvaluator, Search, ok, record_of, small_space
from tests.unit.whole_studies import WholeStudy

EARLY, LATE, TRIALS = 20, 100, 20
"""Counts are taken of `TRIALS` trials from each of these on."""

SPACE = small_space(
    runtime=("onnxruntime", "openvino", "pytorch"),
    precision=("fp32", "bf16", "int8"),
    max_batch_size=tuple(range(1, 65)),
)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts what is opened, written, read of the storage, and read of records."""
    counted = Counter[str]()
    opened, read = io.open, RecordStore._read

    def count_open(file: Any, *arguments: Any, **named: Any) -> Any:
        counted["files opened"] += 1
        return opened(file, *arguments, **named)

    def count_read(store: RecordStore, path: Path) -> TrialRecord:
        counted["records read"] += 1
        return read(store, path)

    monkeypatch.setattr(io, "open", count_open)
    monkeypatch.setattr(builtins, "open", count_open)
    monkeypatch.setattr(RecordStore, "_read", count_read)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    whole = JournalStorage.get_all_trials

    def count_trials(storage: JournalStorage, *arguments: Any, **named: Any) -> Any:
        counted["times that all trials were gone through"] += 1
        return whole(storage, *arguments, **named)

    monkeypatch.setattr(JournalStorage, "get_all_trials", count_trials)
    return counted


def test_a_late_trial_opens_and_writes_and_reads_what_an_early_one_does(
    tmp_path: Path, counts: Counter[str]
) -> None:
    search = shown_search(tmp_path)
    search.space, search.evaluator = SPACE, FakeEvaluator()
    journal = search.directory.journal
    seen: list[tuple[int, Counter[str]]] = []

    def watch(event: Event) -> None:
        if isinstance(event, TrialFinished):
            written = journal.stat().st_size
            so_far = counts | Counter({"bytes of the journal": written})
            seen.append((event.record.number, so_far))

    search.watchers.append(watch)
    search.run(LATE + TRIALS + 1)
    early, late = (_of_proposals(seen, first) for first in (EARLY, LATE))
    assert (
        late.get("records read", 0) == late.get("times that all trials were gone through", 0) == 0
    )
    for name in ("files opened", "bytes of the journal"):
        assert 0 < late[name] <= 1.1 * early[name], name
    assert late["bytes of the journal"] < 5000


def _of_proposals(seen: Sequence[tuple[int, Counter[str]]], first: int) -> dict[str, float]:
    """What each proposal added, from one trial on; some repeat a trial and are only told."""
    (begin, before), (end, after) = seen[first - 1], seen[first + TRIALS - 1]
    return {name: (after[name] - before[name]) / (end - begin) for name in after | before}


@pytest.mark.usefixtures("fast_disk")
@pytest.mark.parametrize("ended", [True, False])
def test_a_resumed_run_reads_each_trial_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, ended: bool
) -> None:
    runs = FakeRuns(tmp_path, monkeypatch)
    runs.run(trials=2)
    if not ended:
        (runs.directory / "summary.json").unlink()
    read, reads = RecordStore._read, Counter[str]()

    def count(store: RecordStore, path: Path) -> TrialRecord:
        reads[f"{path.parent.name}/{path.name}"] += 1
        return read(store, path)

    monkeypatch.setattr(RecordStore, "_read", count)
    runs.run(trials=3)
    of_trials = {name: times for name, times in reads.items() if name.startswith("trials/")}
    assert of_trials == {"trials/00000.json": 1, "trials/00001.json": 1}


def test_texts_that_trials_have_in_common_are_kept_once(tmp_path: Path) -> None:
    search = Search(tmp_path, SPACE, FakeEvaluator())
    study, history = search.opened()
    search.loop(study, history).run(Budget(3, 1e9))
    [whole] = open_storage(search.directory.journal, None).get_all_studies()
    storage = open_storage(search.directory.journal, None)
    trials = storage.get_all_trials(whole._study_id, deepcopy=False)
    first, second, *_ = (trial for trial in trials if trial.params)
    for one, other in ((first.params, second.params), (first.user_attrs, second.user_attrs)):
        names = {name: name for name in one}
        in_both = [name for name in other if name in names]
        assert in_both
        assert all(names[name] is name for name in in_both)


def test_an_opened_study_is_checked_without_a_search_for_nearest_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = Search(tmp_path, SPACE, FakeEvaluator())
    study, history = search.opened()
    with study:
        search.loop(study, history).run(Budget(20, 1e9))
    nearest = Counter[str]()
    monkeypatch.setattr(SearchSpace, "nearest", lambda *_: nearest.update(["searches"]))
    study, _ = search.opened()
    study.close()
    assert not nearest


def test_levels_stay_in_their_file_and_say_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_store, "_RECENT", 1)
    store = RecordStore(tmp_path)
    configs = [SPACE.config(SPACE.at(row)) for row in range(3)]
    records = [record_of(n, config, ok(100.0 + n)) for n, config in enumerate(configs)]
    limits = tuple(ExtraLimit(n, _measurement(records[n]), 0.0) for n in (1, 2))
    records[0] = replace(records[0], further=limits)
    for record in records:
        store.write(record)
    kept = [store.kept(record) for record in records]
    assert all(isinstance(_measurement(record).levels, StoredLevels) for record in kept)
    assert kept == records == list(RecordStore(tmp_path).read_to_keep().values())
    first = _measurement(kept[0]).levels
    assert (first[0], len(first)) == (_measurement(records[0]).levels[0], 2)
    (tmp_path / "00001.json").unlink()
    with pytest.raises(StorageError, match=r"00001\.json"):
        len(_measurement(kept[1]).levels)


def _measurement(record: TrialRecord) -> Measurement:
    assert record.measurement is not None
    return record.measurement


def test_the_history_of_a_search_keeps_no_levels(tmp_path: Path) -> None:
    search = Search(tmp_path, SPACE, FakeEvaluator())
    study, history = search.opened()
    search.loop(study, history).run(Budget(4, 1e9))
    assert all(isinstance(_measurement(r).levels, StoredLevels) for r in history.records)
    assert list(history.records) == search.records


def test_equal_parts_of_configurations_and_proposals_are_one_object(tmp_path: Path) -> None:
    search = Search(tmp_path, SPACE, FakeEvaluator())
    study, history = search.opened()
    search.loop(study, history).run(Budget(20, 1e9))
    models = [record.config.models[0] for record in history.records]
    for parts in (
        [model.artifact for model in models],
        [model.batching for model in models],
        [model.groups for model in models],
        [record.config.server for record in history.records],
        [pair for record in history.records for pair in record.params],
    ):
        assert len(set(parts)) < len(parts)
        assert len({id(part) for part in parts}) == len(set(parts))


def test_a_record_is_a_line_and_an_indented_one_of_an_earlier_version_is_read(
    tmp_path: Path,
) -> None:
    store = RecordStore(tmp_path)
    record = record_of(0, SPACE.config(SPACE.baseline), ok(100.0))
    store.write(record)
    path = tmp_path / "00000.json"
    line = path.read_text()
    assert line.count("\n") == 1
    path.write_text(json.dumps(json.loads(line), indent=2))
    assert store.read(0) == record
    assert store.read(1) is None
    assert (len(store), store.read_first()) == (1, record)


def test_service_times_of_a_long_study_are_learnt_from_some_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their time and memory grow with the cube and the square of the number of trials."""
    WholeStudy(tmp_path / "one", {0: 50.0, 1: 110.0, 2: 130.0, 3: 258.0}).written()
    monkeypatch.setattr(study_reading, "MOST_TRIALS", 2)
    learnt: list[TrialRecord] = []

    def count(service: ServiceModel, trials: Sequence[TrialRecord], workload: Workload) -> Any:
        learnt.extend(trials)
        return with_trials(service, trials, workload)

    monkeypatch.setattr(study_reading, "with_trials", count)
    assert not study_reading.read_study(tmp_path, "one").saturated  # these levels have no batches
    assert [record.number for record in learnt] == [3, 2]
