"""What the commands that measure end with: 1 where the limits were missed, 4 where nothing was
measured."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from optimizer.cli import baseline, measure, record, replay, simulate
from optimizer.commands import baseline as baselines
from optimizer.commands import measure as measuring
from optimizer.commands.baseline import BaselineResult
from optimizer.commands.measure import LoadTestResult, MeasureOptions, MeasureResult
from optimizer.commands.record import RecordResult
from optimizer.errors import LoadTestFailure, ServerFailure, VoidLevelFailure
from optimizer.load import perf_analyzer
from optimizer.load.capacity import RunLevel
from optimizer.load.level_plan import LevelPlan
from optimizer.load.perf_analyzer import PerfAnalyzerResult
from optimizer.load.ramp import find_by_ramp
from optimizer.load.stopping import StoppingConditions
from optimizer.load.user_load import Phase, UserLoad
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.level import LoadLevel, Slice
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.published_grid import NamedConfiguration
from optimizer.space_file.reader import MeasurementSettings
from optimizer.study.events import Event, Note
from optimizer.study.history import why_all_failed, why_most_unmeasured
from tests.unit.commands import Commands
from tests.unit.simulated_server import SimulatedServer, workload
from tests.unit.studies import failed, four_points, infeasible, level, ok, record_of
from tests.unit.test_load_void import lagging
from tests.unit.test_wiring import SPACE as STUDY_SPACE

POINTS = four_points()
CONFIG = POINTS.config(POINTS.baseline)
CONFIGS = [POINTS.config(POINTS.at(row)) for row in range(4)]
WORK = workload(100)
RATE = 100.0


def request(**asked: Any) -> MeasureOptions:
    return MeasureOptions(Path("space.yaml"), {}, **asked)


def bench(run: RunLevel) -> Any:
    """What `measure` does with a server that is made up."""
    space = SimpleNamespace(
        workload=WORK, measurement=MeasurementSettings(4.0, 4.0, 0.5, None, 5000)
    )
    levels = SimpleNamespace(on=lambda *_: nullcontext(run), requests=lambda *_: [])
    server = SimpleNamespace(endpoint=SimpleNamespace(grpc="", http=""))
    return measuring._Bench(
        cast(Any, space), CONFIG, cast(Any, levels), cast(Any, SimpleNamespace(server=server))
    )


def failing(share: float, run: RunLevel) -> RunLevel:
    """The same, with a share of the requests answered by an error."""

    def failed(plan: LevelPlan) -> LoadLevel:
        found = run(plan)
        [stream] = found.streams
        errors = round(share * stream.sent)
        stream = replace(
            stream, errors=errors, completed=stream.sent - errors, first_error="INTERNAL: broken"
        )
        return replace(found, streams=(stream,))

    return failed


FAST = SimulatedServer(WORK)
SLOW = SimulatedServer(WORK, instances=1, batch_seconds=0.2)


def measured_at_one_rate(run: RunLevel) -> LoadTestResult:
    found: LoadTestResult = bench(run).measure(request(rate_per_second=RATE), None)
    return found


def test_a_rate_within_the_limit_is_met() -> None:
    assert measured_at_one_rate(FAST).missed is None


def test_a_rate_whose_latency_is_over_the_limit_is_missed() -> None:
    assert "requests failed: DEADLINE_EXCEEDED" in str(measured_at_one_rate(SLOW).missed)
    late = SimulatedServer(workload(5))
    assert "over the limit of 5 ms" in str(measured_at_one_rate(late).missed)


@pytest.mark.parametrize("share", [0.01, 0.75, 0.87])
def test_a_rate_at_which_requests_fail_is_missed(share: float) -> None:
    assert "requests failed: INTERNAL" in str(measured_at_one_rate(failing(share, FAST)).missed)


def test_a_rate_that_is_never_answered_is_no_measurement() -> None:
    with pytest.raises(LoadTestFailure, match="every request failed: INTERNAL"):
        measured_at_one_rate(failing(1.0, FAST))


def test_a_rate_that_was_not_sent_in_time_is_no_measurement() -> None:
    with pytest.raises(VoidLevelFailure, match=r"the load generator fell 31\.8 ms behind"):
        measured_at_one_rate(lagging(FAST))


@pytest.mark.parametrize("curve", [False, True])
def test_a_capacity_of_nothing_is_missed(curve: bool) -> None:
    unfit = SimulatedServer(workload(5))
    asked = request(curve=curve)
    missed = replace(bench(unfit), space=SimpleNamespace(
        workload=unfit.work, measurement=MeasurementSettings(4.0, 4.0, 0.5, None, 5000)
    )).measure(asked, None).missed  # fmt: skip
    assert "over the limit of 5 ms" in missed
    assert bench(FAST).measure(asked, None).missed is None


def user_load(*parts: tuple[int, float | None], errors: int = 0) -> RunLevel:
    found = level(0.1, kind="user_load")
    [stream] = found.streams
    stream = replace(stream, errors=errors, first_error="INTERNAL: broken" if errors else None)
    slices = tuple(Slice(*part) for part in parts)
    return lambda _: replace(found, streams=(stream,), slices=slices, seconds=100.0)


USERS = (UserLoad((Phase(2, 2.0, 100.0),)), StoppingConditions())


@pytest.mark.parametrize(
    ("run", "missed"),
    [
        (user_load((100, 20.0), (500, 130.0)), None),
        (user_load((100, 110.0), (500, 130.0)), "p95 was at least 110.0 ms, over the limit"),
        (user_load((100, 20.0), errors=870), "870 of 1000 requests failed: INTERNAL: broken"),
    ],
)
def test_users_are_held_to_the_limit(run: RunLevel, missed: str | None) -> None:
    found = bench(run).measure(request(), USERS).missed
    assert found is None if missed is None else missed in found


def test_users_who_are_never_answered_are_no_measurement() -> None:
    for nothing in (user_load((0, None), errors=1000), user_load((0, None))):
        with pytest.raises(LoadTestFailure, match=r"every request failed|no request"):
            bench(nothing).measure(request(), USERS)


def test_a_job_whose_requests_fail_finds_no_capacity() -> None:
    result = find_by_ramp(user_load((100, 20.0), errors=870), WORK, 30.0)
    assert (result.outcome, result.valid_measurement.capacity_per_second) == ("infeasible", 0.0)
    assert result.valid_measurement.ended == "870 of 1000 requests failed: INTERNAL: broken"
    assert result.limit_overshoot is not None
    assert result.limit_overshoot > 0


def test_a_second_opinion_is_held_to_the_limit_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    opinion = PerfAnalyzerResult(199.0, 40.0, 95.0, 110.0, 4.5, ("perf_analyzer",), 1.0)
    monkeypatch.setattr(perf_analyzer, "run_perf_analyzer", lambda *_: opinion)
    notes: list[Event] = []
    slot = SimpleNamespace(client_cores=(0,))

    def compared(run: RunLevel, **asked: Any) -> LoadTestResult:
        found = bench(run).measure(request(**asked), None)
        whole: LoadTestResult = bench(run).compared(
            found, request(**asked), Path("p"), slot, notes.append
        )
        return whole

    assert compared(FAST).missed is None
    assert "INTERNAL" in str(compared(failing(0.5, FAST), rate_per_second=RATE).missed)
    nothing = compared(failing(0.5, FAST))
    assert nothing.opinion is None
    assert "INTERNAL" in str(nothing.missed)
    assert notes == [Note("no load met the limits: perf_analyzer measures one with --rate", True)]


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (None, 0),
        ("over the limit", 1),
        (LoadTestFailure("every request failed"), 4),
        (ServerFailure("process 12, in which a model runs, has died"), 4),
        (VoidLevelFailure("could not be measured"), 4),
    ],
)
def test_measure_ends_with(
    outcome: Exception | str | None,
    code: int,
    optimizer: Commands,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def measured(*_: object) -> MeasureResult:
        if isinstance(outcome, Exception):
            raise outcome
        found = LoadTestResult((level(0.1),), level(0.1), missed=outcome)
        return MeasureResult(Path("measured.json"), CONFIG, (), found)

    monkeypatch.setattr(measure, "measure_configuration", measured)
    said = optimizer("measure", "space.yaml", "--rate", "50")
    assert said.code == code
    if isinstance(outcome, str):
        assert "The limit was not met: over the limit" in said.out


def records(*evaluations: Evaluation) -> list[TrialRecord]:
    return [record_of(n, CONFIGS[n], each) for n, each in enumerate(evaluations)]


VOID = failed("could not be measured: it fell behind", transient=True)
SETS: list[tuple[list[TrialRecord], int]] = [
    (records(ok(100), infeasible(50)), 0),
    (records(infeasible(100, 50.0), infeasible(50)), 1),
    (records(ok(100), VOID), 0),
    (records(ok(100), VOID, VOID), 4),
    (records(VOID), 4),
    (records(failed("no such operator"), failed("no such operator")), 4),
]


@pytest.mark.parametrize(("found", "code"), SETS)
def test_baseline_ends_with(
    found: list[TrialRecord],
    code: int,
    optimizer: Commands,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """By outcomes: one whose requests fail may be quick."""
    named = [(NamedConfiguration(f"number {r.number}", r.config), r) for r in found]

    def measure_baselines(*_: object) -> BaselineResult:
        return baselines._written(STUDY_SPACE, named, {}, tmp_path, ramp=False)

    monkeypatch.setattr(baseline, "measure_baselines", measure_baselines)
    said = optimizer("baseline", "space.yaml")
    assert said.code == code
    assert (said.err != "") == (code == 4)


@pytest.mark.parametrize(("found", "code"), SETS)
def test_record_ends_with(
    found: list[TrialRecord], code: int, optimizer: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    within = any(record.outcome == "ok" for record in found)

    def record_space(*_: object) -> RecordResult:
        unmeasured = why_most_unmeasured(found) or why_all_failed(found)
        return RecordResult(Path("table.csv"), unmeasured, within)

    monkeypatch.setattr(record, "record_space", record_space)
    assert optimizer("record", "space.yaml").code == code


@pytest.mark.parametrize(("at_capacity", "code"), [(object(), 0), (None, 1)])
def test_simulate_ends_with(
    at_capacity: object, code: int, optimizer: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = [SimpleNamespace(at_capacity=at_capacity)]
    predicted = SimpleNamespace(prediction=SimpleNamespace(streams=streams))
    monkeypatch.setattr(simulate, "simulate_configuration", lambda _: predicted)
    monkeypatch.setattr(simulate, "show_what_if", lambda *_: None)
    assert optimizer("simulate", "quickstart").code == code


@pytest.mark.parametrize(("best", "code"), [(object(), 0), (None, 1)])
def test_replay_ends_with(
    best: object, code: int, optimizer: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = SimpleNamespace(best=best)
    monkeypatch.setattr(replay, "open_table", lambda _: None)
    monkeypatch.setattr(replay, "replay_table", lambda *_, **__: found)
    monkeypatch.setattr(replay, "replay_text", lambda _: "")
    assert optimizer("replay", "table.csv", "--trials", "3").code == code
