"""A study that an earlier version left, stored beside this test, is read, reported and resumed.

`stored_study` holds two of four trials, their confirmation rounds and a drift run.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from optimizer.analysis.study_reading import read_study
from optimizer.analysis.study_status import study_status
from optimizer.errors import StorageError
from optimizer.study.decision import stored_decision
from optimizer.study.directory import StudyDirectory
from optimizer.study.files import read_prepared, read_source_cards, read_start
from optimizer.study.gated_artifact import from_json
from optimizer.study.searched_space import read_searched
from tests.unit.fake_runs import FakeRuns

STORED = Path(__file__).parent / "stored_study"

pytestmark = pytest.mark.usefixtures("fast_disk")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRuns:
    fake = FakeRuns(tmp_path, monkeypatch)
    shutil.copytree(STORED, fake.directory)
    return fake


def test_every_file_of_a_stored_study_is_read(runs: FakeRuns) -> None:
    directory = StudyDirectory(runs.directory)
    assert [len(store.read_all()) for store in (directory.trials, directory.confirmations)] == [
        2,
        4,
    ]
    assert len(directory.drift_runs.read_all()) == 1
    assert read_start(directory).machine.digest == directory.trials.read_all()[0].machine
    assert len(read_searched(directory).search_space) == 4
    assert read_source_cards(directory).keys() == {"bert"}
    row, dropped = read_prepared(directory)["artifacts"]
    gated = from_json(row, read_searched(directory).search_space.artifacts[0])
    assert gated is not None
    assert gated.failing is not None
    assert (gated.failing.size, gated.instance_mib) == (4, 12.0)
    assert dropped["dropped"] == "build failed: no"
    best = stored_decision(directory, directory.trials.read_all().values()).best
    summary = json.loads(directory.summary.read_text())
    assert best is not None
    assert best.candidate.score.replicas == summary["best"]["replicas"]
    status = study_status(runs.results, "one")
    assert (status.state, status.search_ended) == ("done", "the budget of 2 trials is used up")
    assert (
        read_study(runs.results, "one")
        .decision(read_searched(directory).price, read_searched(directory).demand)
        .confirmed
    )


def test_a_stored_study_is_resumed(runs: FakeRuns) -> None:
    before = StudyDirectory(runs.directory).trials.read_all()
    runs.run(trials=4)
    after = StudyDirectory(runs.directory).trials.read_all()
    assert len(after) == 4
    assert {number: after[number] for number in before} == before
    assert len({record.config for record in after.values()}) == 4


def test_a_record_of_another_version_is_refused_with_what_to_do(runs: FakeRuns) -> None:
    path = runs.directory / "trials" / "00000.json"
    path.write_text(path.read_text().replace('"schema_version": 4', '"schema_version": 3'))
    with pytest.raises(StorageError, match=r"must be 4, got 3; .* --study NEW") as refused:
        runs.run(trials=4)
    assert str(path) in str(refused.value)
