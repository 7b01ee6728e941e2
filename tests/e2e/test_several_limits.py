"""A search within several latency limits on a real server, and what each limit costs after it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection

from optimizer.study.directory import StudyDirectory
from tests.e2e import tiny
from tests.e2e.conftest import Built
from tests.e2e.running import Optimizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TRIALS = 2
# So lax that a machine that is busy with something else meets them too.
OWN_MS, ALSO_MS = 2000.0, 1000.0
SPACE = tiny.space(parameters={"max_batch_size": [4, 8]}, budget={"trials": TRIALS})


@dataclass(frozen=True)
class Ran:
    """One command, run to its end in the folder of the study."""

    code: int
    output: str
    errors: str


def ran(folder: Path, *arguments: object) -> Ran:
    optimizer = Optimizer(arguments, folder)
    try:
        code = optimizer.wait()
    finally:
        optimizer.end()
    return Ran(code, optimizer.output, optimizer.errors)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("several limits")


@pytest.fixture(scope="module")
def command(folder: Path, built: Built) -> tuple[object, ...]:
    return ("run", tiny.write_space(folder, SPACE), "--cache", built.cache)


@pytest.fixture(scope="module")
def searched(folder: Path, command: tuple[object, ...]) -> Ran:
    return ran(folder, *command, "--also-limit", "1s")


def study(folder: Path) -> StudyDirectory:
    return StudyDirectory(folder / "results" / "tiny")


def test_every_configuration_is_measured_within_both_limits(folder: Path, searched: Ran) -> None:
    assert searched.code == 0, searched.errors
    assert searched.errors == ""
    assert "$ per million within each limit: the Pareto front" in searched.output
    assert "; within 1000 ms: " in searched.output
    records = study(folder).trials.read_all()
    assert len(records) == TRIALS
    for record in records.values():
        assert record.outcome == "ok", record.reason
        assert record.measurement is not None
        [also] = record.further
        assert also.limit_ms == ALSO_MS
        assert also.measurement.load_factor > 0
        assert len(record.told_further) == 1
        kinds = {level.kind for level in also.measurement.levels}
        assert kinds <= {"open_loop"}, "it is served and saturated once"


def test_the_study_has_an_objective_for_each_limit(folder: Path, searched: Ran) -> None:
    assert searched.code == 0, searched.errors
    backend = JournalFileBackend(str(study(folder).journal))
    kept = optuna.load_study(study_name="tiny", storage=optuna.storages.JournalStorage(backend))
    assert kept.directions == [StudyDirection.MINIMIZE] * 2
    assert kept.metric_names == [
        "usd_per_million_at_capacity",
        "usd_per_million_at_capacity.1000ms",
    ]
    records = study(folder).trials.read_all().values()
    # A proposal that was measured before is told again.
    told = {tuple(trial.values) for trial in kept.trials}
    assert told == {(record.told_value, *record.told_further) for record in records}


def test_the_summary_holds_the_front(folder: Path, searched: Ran) -> None:
    assert searched.code == 0, searched.errors
    front = study(folder).read_json(study(folder).summary)["pareto"]
    assert front
    for entry in front:
        assert entry["limits_ms"] == [OWN_MS, ALSO_MS]
        own, also = entry["capacity_per_second"]
        assert 0 < also <= own
        per_million = [0.36 / (rate * 3600) * 1e6 for rate in (own, also)]
        assert entry["usd_per_million_at_capacity"] == pytest.approx(per_million)


def test_pareto_says_what_each_limit_costs(folder: Path, searched: Ran) -> None:
    assert searched.code == 0, searched.errors
    costs = ran(folder, "pareto", "tiny", "--limit", "1s", "--limit", "500ms")
    assert costs.code == 0, costs.errors
    assert costs.errors == ""
    for text in ("Cheapest for 200 requests/s", "500 ", "1000*", "2000*", "measured"):
        assert text in costs.output
    page = study(folder).root / "pareto.html"
    assert f"page: {page}" in costs.output
    assert "What each latency limit costs: tiny" in page.read_text()


def test_it_goes_on_with_the_same_limits_alone(
    folder: Path, command: tuple[object, ...], searched: Ran
) -> None:
    assert searched.code == 0, searched.errors
    again = ran(folder, *command, "--also-limit", "1s")
    assert again.code == 0, again.errors
    assert "Study tiny is finished" in again.output
    other = ran(folder, *command)
    assert other.code == 2
    assert "also_limit_ms: was [1000.0], is None" in other.errors
