"""Every command names the same best configuration, wherever a run was killed.

The story: of four configurations the trial of one claims 258/s, which it does not hold when it is
measured again. In its first run the study knows two of them, in the second all four, and in this
one it is killed at some step of the confirm phase.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import optimizer
from optimizer.analysis.study_reading import read_study
from optimizer.analysis.study_status import study_status
from optimizer.commands import export as exporting
from optimizer.commands import study_run
from optimizer.commands.compare import CompareOptions, compare_studies
from optimizer.commands.dashboard import note_of_study
from optimizer.commands.pareto import ParetoOptions, latency_costs
from optimizer.commands.recommend import RecommendOptions, recommend_instances
from optimizer.commands.report import report_study
from optimizer.commands.run import RunResult
from optimizer.configuration.serving_config import ServingConfig, describe
from optimizer.errors import EverythingFailedError
from optimizer.export.bundle.repository import holds_configuration
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Event, PhaseStarted, TrialFinished
from optimizer.study.record_store import RecordStore
from tests.unit.fake_runs import FakeRuns
from tests.unit.studies import (
    DEMAND,
    FakeEvaluator,
    failed,
    infeasible,
    ok,
)
from tests.unit.whole_studies import configs

dashboard = pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed")
pytestmark = pytest.mark.usefixtures("fast_disk")

Answer = tuple[str, str] | None
"""Configuration in words and "confirmed" or "unconfirmed"; None where nothing is within limits."""

FP32_1, FP32_2, INT8_1, INT8_2 = range(4)
CLAIMS = {FP32_1: 50.0, FP32_2: 110.0, INT8_1: 130.0, INT8_2: 258.0}
"""Requests/s by the trials."""

HOLDS = {FP32_1: 50.0, FP32_2: 108.0, INT8_1: 126.0, INT8_2: 0.0}
"""Requests/s when they are measured again."""


class KilledError(BaseException):
    """Stands for a kill -9: nothing handles it."""


@dataclass
class Kill:
    """Ends a run at the n-th time that it comes to a step."""

    at: int
    seen: int = 0

    def __call__(self) -> None:
        self.seen += 1
        if self.seen == self.at:
            raise KilledError


def evaluator(all_configs: list[ServingConfig], **settings: object) -> FakeEvaluator:
    number = {config: n for n, config in enumerate(all_configs)}

    def again(config: ServingConfig, load: float, before: int) -> Evaluation:
        held = HOLDS[number[config]]
        return ok(min(held, load * DEMAND.requests_per_second)) if held else infeasible(258.0)

    return FakeEvaluator(answer=lambda config: ok(CLAIMS[number[config]]), held=again)


@dataclass
class Story:
    """A study that was begun, and its second run, which is killed."""

    runs: FakeRuns
    monkeypatch: pytest.MonkeyPatch
    all_configs: list[ServingConfig] = field(init=False)

    def __post_init__(self) -> None:
        self.all_configs = configs(self.runs.space.search_space)
        self.runs.evaluator = evaluator(self.all_configs)

    @property
    def directory(self) -> StudyDirectory:
        return StudyDirectory(self.runs.directory)

    def begin(self) -> None:
        self.runs.run(trials=2)

    def go_on(self, watch: Callable[[Event], None] = lambda _: None) -> RunResult:
        return self.runs.run(watch, trials=4)

    @contextmanager
    def killed(self) -> Iterator[pytest.MonkeyPatch]:
        """Within, the second run is killed by a step that is patched."""
        with self.monkeypatch.context() as patch, pytest.raises(KilledError):
            yield patch


@pytest.fixture
def story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Story:
    story = Story(FakeRuns(tmp_path, monkeypatch), monkeypatch)
    story.begin()
    return story


def answers(story: Story) -> dict[str, Answer]:
    """What every command that reads a study says is best."""
    results, name = story.runs.results, story.directory.name
    status = study_status(results, name)
    study = read_study(results, name)
    api = optimizer.Study(name, results).best
    compared = (
        compare_studies(CompareOptions((name, other_of(story)), results=results)).studies[0].best
    )
    offers = recommend_instances(
        RecommendOptions((name,), results=results), lambda _: None
    ).estimates
    return {
        "status": None
        if status.best is None
        else (status.best.configuration, _word(status.best.confirmed)),
        "report": _reported(results, name),
        "export": _exported(study),
        "compare": None
        if compared is None
        else (describe(compared.finding.config), compared.finding.status),
        "recommend": None if not offers else _offered(offers[0]),
        "api": None if api is None else (api.configuration, _word(api.confirmed)),
        "pareto": _within_own_limit(results, name),
        "dashboard": _noted(story.directory),
    }


def other_of(story: Story) -> str:
    """A study of the same space to compare with."""
    other = story.runs.results / "other"
    if not other.exists():
        with story.monkeypatch.context():
            story.runs.run(study="other", trials=2)
    return "other"


def _word(confirmed: bool) -> str:
    return "confirmed" if confirmed else "unconfirmed"


def _reported(results: Path, name: str) -> Answer:
    report = report_study(results, name).report
    if report.outcome.best is None:
        return None
    assert f"Serve {describe(report.outcome.best.config)} on" in report.outcome.headline()
    unconfirmed = any("Not confirmed yet" in caution for caution in report.outcome.cautions())
    return describe(report.outcome.best.config), _word(not unconfirmed)


def _exported(study: object) -> Answer:
    try:
        found = exporting._finding(study, None)  # type: ignore[arg-type]
    except optimizer.errors.UsageError:
        return None
    return describe(found.config), found.status


def _offered(offer: object) -> Answer:
    basis = offer.metrics["MaxInvocations"].basis  # type: ignore[attr-defined]
    return describe(offer.candidate.config), _word(basis == "confirmed")  # type: ignore[attr-defined]


def _within_own_limit(results: Path, name: str) -> Answer:
    costs, _ = latency_costs(ParetoOptions(name, (100.0,), results=results))
    [own] = [within for within in costs.curve if within.limit_ms == 100.0]
    cheapest = own.cheapest
    return None if cheapest is None else (describe(cheapest.config), _word(not costs.unconfirmed))


def _noted(directory: StudyDirectory) -> Answer:
    row = re.search(r"\| best, (\w+): trial \d+ \| (.*?) \|", note_of_study(directory))
    return None if row is None else (row[2].replace("\\", ""), row[1])


def all_say(story: Story) -> Answer:
    said = answers(story)
    assert len(set(said.values())) == 1, said
    return said["status"]


def assert_settled(story: Story, result: RunResult) -> None:
    """The run's own end says the same as all the others, and best/ holds it."""
    expected = (describe(story.all_configs[INT8_1]), "confirmed")
    assert all_say(story) == expected
    summary = story.directory.read_json(story.directory.summary)
    assert json.loads(json.dumps(result.summary.to_json())) == summary
    assert summary["best"]["description"] == expected[0]
    assert summary["best"]["capacity_per_second"] == pytest.approx(HOLDS[INT8_1])
    assert summary["baseline"]["capacity_per_second"] == pytest.approx(HOLDS[FP32_1])
    assert [claim["rival"] for claim in summary["claims"]] == [
        describe(story.all_configs[n]) for n in (FP32_2, FP32_1)
    ]
    progress = story.directory.read_json(story.directory.progress)
    assert (progress["best"]["configuration"], progress["best"]["confirmed"]) == (expected[0], True)
    assert holds_configuration(story.directory.best, story.all_configs[INT8_1])
    assert holds_configuration(story.directory.baseline, story.all_configs[FP32_1])
    assert not list(story.directory.root.glob(".*.new"))
    assert not list(story.directory.root.glob(".*.old"))
    assert story.go_on().was_finished


def kill_on_writing(patch: pytest.MonkeyPatch, kill: Kill) -> None:
    """Between a record and whoever is told of it."""
    write = RecordStore.write

    def then_die(store: RecordStore, record: TrialRecord) -> None:
        write(store, record)
        if store.folder.name == "confirmations":
            kill()

    patch.setattr(RecordStore, "write", then_die)


def kill_before_measuring(patch: pytest.MonkeyPatch, kill: Kill) -> None:
    confirm = FakeEvaluator.confirm

    def die(self: FakeEvaluator, *given: object) -> Evaluation:
        kill()
        return confirm(self, *given)  # type: ignore[arg-type]

    patch.setattr(FakeEvaluator, "confirm", die)


def kill_on_renaming(patch: pytest.MonkeyPatch, kill: Kill) -> None:
    """Before each of the renames by which best/ and baseline/ are replaced."""
    rename = Path.rename

    def die(path: Path, target: Path) -> Path:
        if path.name.strip(".").partition(".")[0] in ("best", "baseline"):
            kill()
        return rename(path, target)

    patch.setattr(Path, "rename", die)


def kill_on_the_summary(patch: pytest.MonkeyPatch, kill: Kill) -> None:
    patch.setattr(study_run, "write_summary", lambda *_: kill())


BETWEEN_THE_RENAMES = (kill_on_renaming, 2)
EVERY = [
    *((kill_on_writing, n) for n in range(1, 5)),
    *((kill_before_measuring, n) for n in range(1, 5)),
    *((kill_on_renaming, n) for n in range(1, 5)),
    (kill_on_the_summary, 1),
]


def interrupted(story: Story, step: Callable[[pytest.MonkeyPatch, Kill], None], at: int) -> None:
    kill = Kill(at)
    with story.killed() as patch:
        step(patch, kill)
        story.go_on()
    answer = all_say(story)
    assert answer is not None
    assert answer[0] != describe(story.all_configs[INT8_2]), "which was confirmed by nothing"
    assert_settled(story, story.go_on())


def test_all_commands_say_the_same_after_a_kill_and_after_the_run_went_on(story: Story) -> None:
    interrupted(story, *BETWEEN_THE_RENAMES)


@pytest.mark.slow
@pytest.mark.parametrize(("step", "at"), [each for each in EVERY if each != BETWEEN_THE_RENAMES])
def test_all_commands_say_the_same_after_a_kill_at_any_step(
    story: Story, step: Callable[[pytest.MonkeyPatch, Kill], None], at: int
) -> None:
    interrupted(story, step, at)


@pytest.mark.slow
def test_a_run_that_is_not_killed_says_the_same(story: Story) -> None:
    assert_settled(story, story.go_on())


def test_before_anything_is_confirmed_all_say_unconfirmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = Story(FakeRuns(tmp_path, monkeypatch), monkeypatch)
    other_of(story)
    with story.killed() as patch:
        kill_before_measuring(patch, Kill(1))
        story.go_on()
    assert all_say(story) == (describe(story.all_configs[INT8_2]), "unconfirmed")
    assert not story.directory.best.exists()


@pytest.mark.slow
def test_what_fails_to_be_measured_again_is_unconfirmed_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = Story(FakeRuns(tmp_path, monkeypatch), monkeypatch)
    other_of(story)
    able = story.runs.evaluator.held
    story.runs.evaluator.held = lambda *_: failed("the server ended", transient=True)
    with pytest.raises(EverythingFailedError, match=r"could not be measured again.*server ended"):
        story.go_on()
    assert all_say(story) == (describe(story.all_configs[INT8_2]), "unconfirmed")
    story.runs.evaluator.held = able
    again = story.go_on()
    assert not again.was_finished
    assert_settled(story, again)


def test_the_live_view_is_told_the_same_as_it_goes(story: Story) -> None:
    told: list[str] = []
    phase = ""

    def watch(event: Event) -> None:
        nonlocal phase
        if isinstance(event, PhaseStarted):
            phase = event.phase
        if isinstance(event, TrialFinished):
            assert event.best is not None
            told.append(f"{phase}: {event.best.status}")

    story.go_on(watch)
    # What the first run confirmed is the best until something better is confirmed.
    assert set(told) == {"search: confirmed", "confirm: confirmed"}


@pytest.mark.slow
def test_a_contradicted_trial_is_not_taken_over_by_another_study(story: Story) -> None:
    """Its capacity would bound every other trial there."""
    story.go_on()
    story.runs.run(study="new", warm_start="one", trials=1)
    records = StudyDirectory(story.runs.results / "new").trials.read_all().values()
    taken = [record.config for record in records if record.origin == "one"]
    assert set(taken) == set(story.all_configs[:INT8_2])
    [measured] = [record.config for record in records if record.origin is None]
    assert measured == story.all_configs[INT8_2], "it is tried again"
