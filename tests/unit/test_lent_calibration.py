"""What a study on other hardware lends, and which study may lend."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from optimizer.analysis.lent_savings import LentSavings
from optimizer.cli import commands
from optimizer.commands.replay import lent_by, replay_table
from optimizer.commands.run import run_study
from optimizer.commands.run_options import RunOptions
from optimizer.configuration.hardware import Hardware
from optimizer.errors import UsageError
from optimizer.files.atomic import write_json
from optimizer.report.study_outcome import lent_sentence
from optimizer.search.lent_calibration import lend, lending_study, prior_of
from optimizer.search.recorded.table_file import write_table
from optimizer.space_file.reader import load_space
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Event, Note
from tests.unit import whole_studies
from tests.unit.service_truths import affine_truth, saturated
from tests.unit.studies import bounded, capacity_of, ok, record_of, small_space
from tests.unit.tables import WORKLOAD, recorded_table

pytestmark = pytest.mark.usefixtures("fast_disk")
SPACE = small_space()
TABLE = recorded_table(SPACE)
OTHER = recorded_table(SPACE, lambda config: 3 * capacity_of(config))


MODELS = {"bert": {"lengths": {"fixed": 32}}}


def calibrated_study(folder: Path) -> StudyDirectory:
    """A study with one calibration run and one trial."""
    directory = StudyDirectory(folder / "other")
    content = {"models": MODELS}
    machine = TABLE.space.machine.to_json()
    directory.root.mkdir(parents=True)
    write_json(directory.space, {"space": content, "machine": machine})
    config = SPACE.config(SPACE.baseline)
    for store, evaluation in (
        (directory.calibration, bounded(100.0)),
        (directory.trials, ok(90.0)),
    ):
        record = record_of(0, config, evaluation)
        assert record.measurement is not None
        first = saturated(config, affine_truth(0))
        levels = (first, *record.measurement.levels[1:])
        store.write(replace(record, measurement=replace(record.measurement, levels=levels)))
    return directory


def test_calibration_runs_and_the_saturation_of_trials_are_lent_once(tmp_path: Path) -> None:
    other, own = calibrated_study(tmp_path), StudyDirectory(tmp_path / "own")
    lend(other, own)
    lent = own.prior.read_all()
    assert [record.origin for record in lent.values()] == ["other", "other"]
    assert [record.outcome for record in lent.values()] == ["bounded", "ok"]
    levels = [r.measurement.levels for r in lent.values() if r.measurement is not None]
    assert [level.kind for level in levels[1]] == ["saturation"]
    other.trials.write(replace(other.trials.read_all()[0], number=1))
    lend(other, own)
    assert own.prior.read_all() == lent
    prior = prior_of([*lent.values()], WORKLOAD)
    assert prior is not None
    assert prior.study == "other"
    assert all(each.layout.elsewhere for each in prior.observations)


def lending(folder: Path, study: str = "other", **models: Any) -> StudyDirectory:
    content = {"models": models or MODELS}
    return lending_study(folder, study, "guided", content)


def test_a_study_that_is_not_there_or_has_nothing_to_lend_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--prior: study 'nowhere' not found in "):
        lending(tmp_path, "nowhere")
    other = calibrated_study(tmp_path)
    assert lending(tmp_path).root == other.root
    (other.calibration.folder / "00000.json").unlink()
    with pytest.raises(UsageError, match="study other has no calibration run to lend"):
        lending(tmp_path)


def test_a_study_of_other_models_is_refused_with_the_differences(tmp_path: Path) -> None:
    calibrated_study(tmp_path)
    lending(tmp_path, bert={**MODELS["bert"], "accuracy": {"min_cosine": 0.5}})
    with pytest.raises(UsageError, match=r"models\.bert\.lengths\.fixed: 32 there, 64 here"):
        lending(tmp_path, bert={"lengths": {"fixed": 64}})


def test_only_a_sampler_that_calibrates_takes_service_times(tmp_path: Path) -> None:
    space = whole_studies.of_file(tmp_path)
    options = RunOptions(space, sampler="tpe", prior="other", results=tmp_path)
    with pytest.raises(UsageError, match="--prior: needs --sampler guided"):
        run_study(options, lambda _: None)


@pytest.mark.slow
def test_a_replay_with_a_prior_calibrates_less_and_says_what_it_saves() -> None:
    events: list[Event] = []
    alone = replay_table(TABLE, "guided", 0, 5, lambda _: None)
    lent = replay_table(TABLE, "guided", 0, 5, events.append, prior=lent_by(OTHER, 0))
    assert lent.calibration_seconds < alone.calibration_seconds
    notes = [each.text for each in events if isinstance(each, Note)]
    assert any("2 calibration runs instead of 6, which saves about" in note for note in notes)


@pytest.mark.slow
def test_the_command_compares_the_searches_with_and_without(tmp_path: Path) -> None:
    paths = []
    for name, table in (("own", TABLE), ("other", OTHER)):
        paths.append(tmp_path / f"{name}.csv")
        write_table(paths[-1], table)
    arguments = ["replay", str(paths[0]), "--trials", "8", "--prior", str(paths[1])]
    ran = CliRunner().invoke(commands, arguments)
    assert ran.exit_code == 0, ran.output
    assert "s of calibration saved" in ran.output
    assert "within 5% of the best, with them: " in ran.output
    assert "within 5% of the best, without: " in ran.output
    refused = CliRunner().invoke(commands, [*arguments, "--sampler", "tpe"])
    assert isinstance(refused.exception, UsageError)


def test_the_report_says_what_was_saved() -> None:
    text = lent_sentence(LentSavings("other", 1, 5, 17.0, (2, 9)))
    assert "of study other were taken over up to a scale: 1 calibration run instead of 6" in text
    assert "the best was trial 2 of this study, and trial 9 of that one" in text
    assert "the best" not in lent_sentence(LentSavings("other", 1, 5, 17.0, (2, None)))


def test_the_space_of_the_second_table_is_that_of_one_core() -> None:
    path = Path(__file__).parents[1] / "benchmarks" / "one_core.yaml"
    space = load_space(path, {}, Hardware(cores=1, memory_mib=8000))
    assert len(space.search_space) == 36
