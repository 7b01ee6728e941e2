"""The study on real Optuna, its journal in a folder of the test."""

from __future__ import annotations

import json
import logging
import resource
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState

from optimizer.configuration.serving_config import ServingConfig
from optimizer.errors import StorageError, UsageError
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.samplers import SAMPLERS
from optimizer.study.directory import StudyDirectory
from optimizer.study.optuna_study import OptunaStudy
from tests.unit.studies import (
    as_fast_as_it_is,
    bounded,
    capacity_of,
    failed,
    infeasible,
    open_study,
    record_of,
    small_space,
)

SPACE = small_space()
SELF_TAUGHT = sorted(set(SAMPLERS) - {"guided"})
"""Samplers that know what the study is told, and no more."""

pytestmark = pytest.mark.usefixtures("fast_disk")
Answer = Callable[[ServingConfig], Evaluation]


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path) -> None:
    """As the run makes them before the study is opened."""
    for name in ("whole", "again", "1", "2"):
        (tmp_path / name).mkdir()


def journal(folder: Path) -> Path:
    return StudyDirectory(folder).journal


def trials_in(folder: Path) -> list[FrozenTrial]:
    """What another process reads from the journal, by Optuna's own means."""
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(journal(folder)))
    )
    return optuna.load_study(study_name="test", storage=storage).trials


def test_a_study_whose_records_are_in_another_folder_is_refused_by_its_name(tmp_path: Path) -> None:
    url, first, second = f"sqlite:///{tmp_path}/study.db", tmp_path / "1", tmp_path / "2"
    with open_study(first, SPACE, storage=url) as study:
        study.require_records((), first)
        number = step(study).number
        study.require_records((number,), first)
    with open_study(second, SPACE, storage=url) as study:
        with pytest.raises(UsageError) as refused:
            study.require_records((), second)
        message = str(refused.value)
        assert "study test has 1 trials in the study storage whose records are not in " in message
        assert f"they are in {first} on {socket.gethostname()}" in message
        study.require_records((number,), second)  # the folder was copied


def step(study: OptunaStudy, answer: Answer = as_fast_as_it_is) -> TrialRecord:
    """One trial: asked, measured, told."""
    proposal = study.ask()
    config = SPACE.config(proposal.position)
    record = record_of(proposal.number, config, answer(config))
    study.tell(record)
    return record


def run(study: OptunaStudy, trials: int, answer: Answer = as_fast_as_it_is) -> list[TrialRecord]:
    return [step(study, answer) for _ in range(trials)]


def slow_with_large_batches(config: ServingConfig) -> Evaluation:
    largest = config.models[0].max_batch_size
    return infeasible(capacity_of(config)) if largest > 8 else as_fast_as_it_is(config)


def configs_of(records: list[TrialRecord]) -> list[ServingConfig]:
    return [record.config for record in records]


def test_a_queued_point_comes_first(tmp_path: Path) -> None:
    study = open_study(tmp_path, SPACE)
    wanted = [SPACE.baseline, SPACE.at(len(SPACE) - 1)]
    queued = [study.has_queue]
    for position in wanted:
        study.enqueue(position)
        queued.append(study.has_queue)
    proposals = [study.ask() for _ in wanted]
    assert [p.position for p in proposals] == wanted
    assert [p.number for p in proposals] == [0, 1]
    assert [*queued, study.has_queue] == [False, True, True, False]


def test_every_point_survives_the_way_through_optuna(tmp_path: Path) -> None:
    space = small_space(
        precision=("fp32",),
        max_batch_size=(2, 8),
        preferred_batch_sizes=("none", (2, 4), "half"),
        max_queue_delay_us=(0, 100, 500),
        instance_count=(1, 2),
        padding=("max", (16, 32)),
        intra_op_threads=(1,),
        batching=(True,),
    )
    study = open_study(tmp_path, space)
    points = [space.at(row) for row in range(0, len(space), 3)]
    for point in points:
        study.enqueue(point)
    assert [study.ask().position for _ in points] == points


def test_what_optuna_sees(tmp_path: Path) -> None:
    space = small_space(preferred_batch_sizes=("none", (2, 4)), runtime=("pytorch",))
    study = open_study(tmp_path, space)
    study.enqueue(space.at(len(space) - 1))
    asked = study.ask()
    (trial,) = trials_in(tmp_path)
    assert trial.distributions == {
        "bert.precision": CategoricalDistribution(["fp32", "int8"]),
        "bert.batching": CategoricalDistribution([False, True]),
        "bert.max_batch_size.position": IntDistribution(0, 2),
        "bert.preferred_batch_sizes": CategoricalDistribution(["none", "2/4"]),
        "bert.max_queue_delay_us": IntDistribution(0, 500, step=500),
        "bert.instance_count": IntDistribution(1, 2),
        "bert.intra_op_threads": IntDistribution(1, 2),
    }
    assert dict(asked.params) == trial.params
    assert trial.params["bert.max_batch_size.position"] == 2
    assert trial.params["bert.preferred_batch_sizes"] == "2/4"


def test_a_trial_shows_the_point_that_was_measured(tmp_path: Path) -> None:
    study = open_study(tmp_path, SPACE)
    record = step(study)
    (trial,) = trials_in(tmp_path)
    (model,) = record.config.models
    shown = trial.user_attrs
    assert shown["config"] == record.config.digest
    point = {**trial.params, **shown}
    assert point["bert.runtime"] == model.artifact.runtime
    assert point["bert.instance_count"] == model.groups[0].count
    assert point["bert.max_batch_size"] in SPACE.parameters[3].values, "its position is a parameter"
    assert (shown["outcome"], shown["reason"]) == ("ok", record.reason)
    assert trial.state == TrialState.COMPLETE
    assert trial.value == record.told_value


def test_proposals_are_valid_points(tmp_path: Path) -> None:
    space = small_space(conditions=("batching and max_batch_size > 4",))
    study = open_study(tmp_path, space)
    for _ in range(15):
        position = study.ask().position
        (model,) = space.config(position).models
        assert space.position_of(space.config(position)) == position
        assert model.max_batch_size > 4


@pytest.mark.parametrize("sampler", SELF_TAUGHT)
def test_every_sampler_goes_on_past_trials_that_met_no_limit(tmp_path: Path, sampler: str) -> None:
    """More than the startup trials, with every outcome among them."""
    answers = [slow_with_large_batches, lambda _: failed(), lambda c: bounded(capacity_of(c))]
    study = open_study(tmp_path, SPACE, sampler=sampler)
    for n in range(10):
        step(study, answers[1] if n == 3 else answers[2] if n == 5 else answers[0])
    states = [trial.state for trial in trials_in(tmp_path)]
    assert states.count(TrialState.COMPLETE) == 9
    assert states.count(TrialState.FAIL) == 1


@pytest.mark.parametrize("sampler", SELF_TAUGHT)
def test_proposals_depend_on_seed_and_history_only(tmp_path: Path, sampler: str) -> None:
    """One study in one go, one reopened before every trial: the same proposals."""
    whole = run(open_study(tmp_path / "whole", SPACE, sampler=sampler, seed=3), 9)
    again = [step(open_study(tmp_path / "again", SPACE, sampler=sampler, seed=3)) for _ in whole]
    assert configs_of(whole) == configs_of(again)


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_another_seed_proposes_otherwise(tmp_path: Path, sampler: str) -> None:
    one, other = (
        run(open_study(tmp_path / str(seed), SPACE, sampler=sampler, seed=seed), 5)
        for seed in (1, 2)
    )
    assert configs_of(one) != configs_of(other)


def test_every_completed_trial_carries_its_constraints(tmp_path: Path) -> None:
    study = open_study(tmp_path, SPACE)
    records = run(study, 6, slow_with_large_batches)
    records.append(step(study, lambda c: bounded(capacity_of(c))))
    told = [trial.constraints for trial in trials_in(tmp_path)]
    assert told == [dict(record.constraints) for record in records]
    assert {record.outcome for record in records} == {"ok", "infeasible", "bounded"}
    for record, constraints in zip(records, told, strict=True):
        assert (constraints["latency.bert"] > 0) == (record.outcome == "infeasible")


def test_several_constraints_keep_their_order(tmp_path: Path) -> None:
    study = open_study(tmp_path, SPACE)
    names = ["latency.z", "latency.a", "accuracy"]
    for n in range(3):
        proposal = study.ask()
        record = record_of(proposal.number, SPACE.config(proposal.position), infeasible(50.0))
        pairs = tuple((name, float(n)) for name in names)
        study.tell(replace(record, constraints=pairs))
    assert [list(trial.constraints) for trial in trials_in(tmp_path)] == [names] * 3


def test_a_repeat_is_told_what_was_measured_before(tmp_path: Path) -> None:
    study = open_study(tmp_path, SPACE)
    first = step(study, slow_with_large_batches)
    repeat = study.ask()
    study.tell(first, repeat.number)
    before, after = trials_in(tmp_path)
    assert after.state == TrialState.COMPLETE
    assert (after.value, after.constraints) == (before.value, before.constraints)
    assert after.user_attrs["repeat_of"] == first.number
    assert "repeat_of" not in before.user_attrs


def test_a_failure_is_told_as_failed_with_its_reason(tmp_path: Path) -> None:
    study = open_study(tmp_path, SPACE)
    step(study, lambda _: failed("the model could not be loaded"))
    (trial,) = trials_in(tmp_path)
    assert (trial.state, trial.value, trial.constraints) == (TrialState.FAIL, None, {})
    assert trial.user_attrs["outcome"] == "failed"
    assert trial.user_attrs["reason"] == "the model could not be loaded"


def by_number(records: list[TrialRecord]) -> Mapping[int, TrialRecord]:
    return {record.number: record for record in records}


def test_what_was_recorded_and_not_told_is_told(tmp_path: Path) -> None:
    study = open_study(tmp_path, SPACE)
    records = run(study, 2)
    proposal = study.ask()
    config = SPACE.config(proposal.position)
    records.append(record_of(proposal.number, config, infeasible(50.0)))

    again = open_study(tmp_path, SPACE)
    again.reconcile(by_number(records))
    trial = trials_in(tmp_path)[2]
    assert (trial.state, trial.value) == (TrialState.COMPLETE, records[2].told_value)
    assert trial.constraints == {"latency.bert": 0.5}
    assert not again.has_queue


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "grid"])
@pytest.mark.parametrize("parameters", [0, 2, None])
def test_a_trial_that_was_cut_off_is_proposed_again_as_it_was(
    tmp_path: Path, sampler: str, parameters: int | None
) -> None:
    """Killed once so many of its parameters were in the journal."""
    whole, killed = (tmp_path / name for name in ("undisturbed", "killed"))
    whole.mkdir()
    killed.mkdir()
    undisturbed = open_study(whole, SPACE, sampler=sampler)
    run(undisturbed, 3)
    following = [undisturbed.ask().position for _ in range(2)]
    study = open_study(killed, SPACE, sampler=sampler)
    records = run(study, 3)
    study.ask()
    lines = journal(killed).read_bytes().splitlines(keepends=True)
    of_trial = next(n for n, line in enumerate(lines) if b'"trial_id":3' in line)
    if parameters is not None:
        journal(killed).write_bytes(b"".join(lines[: of_trial + parameters]))

    again = open_study(killed, SPACE, sampler=sampler)
    again.reconcile(by_number(records))
    assert again.has_queue
    proposals = [again.ask() for _ in range(2)]
    assert [proposal.number for proposal in proposals] == [3, 4]
    assert [proposal.position for proposal in proposals] == following
    assert not again.has_queue


def test_a_point_without_a_result_is_not_enqueued_again(tmp_path: Path) -> None:
    points = [SPACE.at(row) for row in range(3)]
    study = open_study(tmp_path, SPACE)
    for point in points[:2]:
        study.enqueue(point)
    study.ask()
    again = open_study(tmp_path, SPACE)
    again.reconcile({})
    for point in points:
        again.enqueue_once(point)
    assert [again.ask().position for _ in points] == points
    assert not again.has_queue


def test_reconciling_twice_changes_nothing(tmp_path: Path) -> None:
    records = run(open_study(tmp_path, SPACE), 3)
    for _ in range(2):
        open_study(tmp_path, SPACE).reconcile(by_number(records))
    assert len(trials_in(tmp_path)) == 3


def test_a_lost_journal_is_rebuilt_from_the_records(tmp_path: Path) -> None:
    study = open_study(tmp_path, SPACE)
    records = run(study, 4, slow_with_large_batches)
    repeat = study.ask()
    study.tell(records[1], repeat.number)
    records.append(step(study, lambda _: failed("it broke")))
    records.append(step(study))
    before = trials_in(tmp_path)
    assert [record.number for record in records] == [0, 1, 2, 3, 5, 6]

    journal(tmp_path).unlink()
    again = open_study(tmp_path, SPACE)
    again.reconcile(by_number(records))
    after = trials_in(tmp_path)
    assert [trial.number for trial in after] == [0, 1, 2, 3, 4, 5, 6]
    for number in (0, 1, 2, 3, 6):
        assert after[number].state == TrialState.COMPLETE
        assert after[number].value == before[number].value
        assert after[number].constraints == before[number].constraints
        assert after[number].distributions == before[number].distributions
    assert [after[n].state for n in (4, 5)] == [TrialState.FAIL] * 2
    assert [after[n].user_attrs["reason"] for n in (4, 5)] == ["a repeated proposal", "it broke"]
    assert again.ask().number == 7


@pytest.mark.parametrize("sampler", ["gp", "tpe"])
def test_a_rebuilt_study_proposes_what_the_lost_one_would_have(
    tmp_path: Path, sampler: str
) -> None:
    folders = [tmp_path / name for name in ("whole", "again")]
    whole = open_study(folders[0], SPACE, sampler=sampler)
    for position in [SPACE.at(row) for row in range(0, 63, 8)]:
        whole.enqueue(position)
    records = run(whole, 8)
    rebuilt = open_study(folders[1], SPACE, sampler=sampler)
    rebuilt.reconcile(by_number(records))
    assert whole.ask().position == rebuilt.ask().position


def test_a_record_of_a_point_that_left_the_space_keeps_its_number(tmp_path: Path) -> None:
    records = run(open_study(tmp_path, SPACE), 5)
    journal(tmp_path).unlink()
    gone = {r.config.models[0].artifact for r in records[:1]}
    rest = SPACE.without(gone)
    again = open_study(tmp_path, rest)
    again.reconcile(by_number(records))
    states = [trial.state for trial in trials_in(tmp_path)]
    kept = [record.config.models[0].artifact not in gone for record in records]
    assert states == [TrialState.COMPLETE if k else TrialState.FAIL for k in kept]
    assert again.ask().number == 5


def test_a_last_line_that_is_torn_is_taken_off(tmp_path: Path) -> None:
    records = run(open_study(tmp_path, SPACE), 2)
    whole = journal(tmp_path).read_bytes()
    journal(tmp_path).write_bytes(whole + b'{"op_code": 4, "worker_id"')
    study = open_study(tmp_path, SPACE)
    study.reconcile(by_number(records))
    assert step(study).number == 2
    assert journal(tmp_path).read_bytes().startswith(whole)
    for line in journal(tmp_path).read_text().splitlines():
        json.loads(line)


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_a_study_goes_on_from_a_journal_cut_anywhere(tmp_path: Path, cut: int) -> None:
    records = run(open_study(tmp_path, SPACE), 3)
    whole = journal(tmp_path).read_bytes()
    journal(tmp_path).write_bytes(whole[:-cut])
    study = open_study(tmp_path, SPACE)
    study.reconcile(by_number(records))
    assert [trial.value for trial in trials_in(tmp_path)] == [r.told_value for r in records]
    assert step(study).number == 3


def test_the_lock_of_a_killed_writer_is_removed(tmp_path: Path) -> None:
    run(open_study(tmp_path, SPACE), 1)
    lock = tmp_path / "study.journal.lock"
    lock.symlink_to(journal(tmp_path))
    half_released = tmp_path / "study.journal.lock0b1c.rename"
    half_released.symlink_to(journal(tmp_path))
    assert step(open_study(tmp_path, SPACE)).number == 1
    assert not lock.is_symlink()
    assert not half_released.is_symlink()


@pytest.mark.parametrize("damage", [b"{not json}", b"\xff\xfe\x00", b"", b'{"op_code": '])
def test_a_damaged_line_is_named(tmp_path: Path, damage: bytes) -> None:
    run(open_study(tmp_path, SPACE), 1)
    lines = journal(tmp_path).read_bytes().splitlines()
    journal(tmp_path).write_bytes(b"\n".join([*lines[:2], damage, *lines[3:]]) + b"\n")
    with pytest.raises(StorageError, match=r"study\.journal, line 3 is damaged; move the file"):
        open_study(tmp_path, SPACE)


def test_a_journal_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"nowhere/study\.journal"):
        open_study(tmp_path / "nowhere", SPACE)


def test_a_journal_that_cannot_grow_ends_the_study(tmp_path: Path) -> None:
    study = open_study(tmp_path, SPACE)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (journal(tmp_path).stat().st_size, unlimited[1]))
    try:
        with pytest.raises(StorageError, match=r"^cannot write .*/study\.journal: File too large"):
            study.ask()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)


@pytest.mark.parametrize("url", ["nonsense", "nodialect://here/db", "mysql+nodriver://here/db"])
def test_a_storage_that_cannot_be_is_a_mistake_of_the_user(tmp_path: Path, url: str) -> None:
    with pytest.raises(UsageError, match=r"^--storage: [^\n]+$"):
        OptunaStudy("test", journal(tmp_path), url, SPACE, RandomSampler, seed=0)


def test_a_database_keeps_a_study_as_a_journal_does(tmp_path: Path) -> None:
    def opened() -> OptunaStudy:
        url = f"sqlite:///{tmp_path}/study.db"
        return OptunaStudy("test", journal(tmp_path), url, SPACE, RandomSampler, 3)

    with opened() as study:
        records = run(study, 3)
    with opened() as study:
        study.reconcile(by_number(records))
        assert step(study).number == 3
    assert not journal(tmp_path).exists()


def test_optuna_says_nothing_by_itself(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        run(open_study(tmp_path, SPACE), 2)
    assert capfd.readouterr().err == ""
