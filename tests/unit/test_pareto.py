"""`pareto` on made-up studies: what it prints, what it draws, and what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from optimizer.analysis.study_reading import read_study
from optimizer.cli import commands
from optimizer.commands import pareto as pareto_module
from optimizer.commands.pareto import ParetoOptions, latency_costs
from optimizer.configuration.serving_config import ServingConfig, describe
from optimizer.errors import UsageError
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.level import Measurement
from optimizer.search.calibrate import CalibratePhase
from optimizer.search.recorded.evaluator import RecordedEvaluator
from optimizer.search.running_tasks import RunningTasks
from optimizer.search.surrogate import learnt_forecast
from optimizer.search.worker_pool import InlinePool
from optimizer.simulator.calibration import calibration_points
from optimizer.simulator.forecast import Forecast
from optimizer.simulator.service_model import ServiceModel
from optimizer.study.directory import StudyDirectory
from optimizer.study.searched_space import SearchedSpace
from optimizer.workload.streams import LatencyLimit, Workload
from tests.unit.studies import (
    DEMAND,
    PRICE,
    SETTING,
    begin_study,
    capacity_of,
    infeasible,
    level,
    ok,
    record_of,
    small_space,
)
from tests.unit.tables import WORKLOAD, recorded_table

pytestmark = pytest.mark.usefixtures("fast_disk")
SPACE = small_space()
SEARCHED = SearchedSpace("made-up", SPACE, WORKLOAD, PRICE, DEMAND)
FAST, SLOW = (SPACE.config(point) for point in (SPACE.at(len(SPACE) - 1), SPACE.baseline))


def found(saturation: float, capacity: float, *levels: tuple[float, float]) -> Evaluation:
    """Levels by requests/s and p95."""
    demand = DEMAND.requests_per_second
    whole = (
        level(saturation / demand, kind="saturation"),
        *(level(rate / demand, p95_ms) for rate, p95_ms in levels),
    )
    at, low, high = (factor * capacity / demand for factor in (1.0, 0.95, 1.05))
    measurement = Measurement(whole, at, low, high, demand, "known closely")
    return replace(ok(capacity), measurement=measurement)


# Waits long for large batches, or answers soon and serves little.
HIGH = found(1000.0, 900.0, (700.0, 70.0), (850.0, 90.0), (920.0, 115.0))
SOON = found(300.0, 280.0, (150.0, 10.0), (250.0, 25.0), (285.0, 110.0))
TRIALS = ((FAST, HIGH), (SLOW, SOON))


def study(
    results: Path,
    trials: Sequence[tuple[ServingConfig, Evaluation]] = TRIALS,
    searched: SearchedSpace = SEARCHED,
) -> StudyDirectory:
    directory = StudyDirectory(results / "made-up")
    begin_study(directory, searched)
    for number, (config, evaluation) in enumerate(trials):
        directory.trials.write(record_of(number, config, evaluation))
    return directory


def calibrate(directory: StudyDirectory) -> None:
    evaluator = RecordedEvaluator(recorded_table(SPACE), np.random.default_rng(0))
    tasks = RunningTasks(InlinePool(evaluator, SETTING.slot), lambda _: None)
    phase = CalibratePhase(tasks, directory, SETTING, lambda _: None)
    phase.run([SPACE.config(point) for point in calibration_points(SPACE)])


def pareto(results: Path, *arguments: str) -> Result:
    options = ["--results", str(results), *arguments]
    return CliRunner().invoke(commands, ["pareto", "made-up", *options], standalone_mode=False)


def test_each_limit_has_its_cheapest_configuration(tmp_path: Path) -> None:
    study(tmp_path)
    costs, page = latency_costs(ParetoOptions("made-up", (20.0, 80.0), results=tmp_path))
    assert [within.limit_ms for within in costs.curve] == [20.0, 80.0, 100.0]
    cheapest = [within.cheapest for within in costs.curve]
    assert [offer.config for offer in cheapest if offer] == [SLOW, FAST, FAST]
    assert [offer.basis for offer in cheapest if offer] == ["measured"] * 3
    prices = [offer.usd_per_million for offer in cheapest if offer]
    assert prices == sorted(prices, reverse=True)
    assert cheapest[2] is not None
    assert cheapest[2].usd_per_million == pytest.approx(0.36 / (900 * 3600) * 1e6)
    assert costs.front == [(SLOW, [20.0]), (FAST, [80.0, 100.0])]
    assert page == tmp_path / "made-up" / "pareto.html"


def test_the_command_says_what_each_limit_costs_and_draws_it(tmp_path: Path) -> None:
    study(tmp_path)
    ran = pareto(tmp_path, "--limit", "20ms", "--limit", "0.08s", "--limit", "9ms")
    assert ran.return_value == 0, ran.output
    assert "Cheapest for 500 requests/s within each limit of p95" in ran.output
    assert "100*" in ran.output
    assert {f": {describe(config)}" in ran.output for config in (SLOW, FAST)} == {True}
    assert "900 855 to 945" in " ".join(ran.output.split())
    assert "$0.1111" in ran.output, "900 requests/s at 0.36 $ an hour"
    page = (tmp_path / "made-up" / "pareto.html").read_text()
    assert "What each latency limit costs: made-up" in page
    assert "<script src" not in page, "all of it in one file"
    for text in ("$0.1111", "855 to 945", "measured"):
        assert text in page
    for marker in ("circle", "diamond-open"):
        assert f'"symbol":"{marker}"' in page
    assert '"symbol":"triangle-up-open"' not in page, "nothing was predicted"


def test_without_limits_some_are_spread_around_the_studys_own(tmp_path: Path) -> None:
    study(tmp_path)
    costs, _ = latency_costs(ParetoOptions("made-up", results=tmp_path))
    limits = [within.limit_ms for within in costs.curve]
    assert len(limits) == 8
    assert (limits[0], limits[-1]) == (10.0, 200.0)
    assert 100.0 in limits


def test_what_was_not_measured_and_is_predicted_to_be_much_cheaper_is_said(tmp_path: Path) -> None:
    rate = capacity_of(SLOW)
    as_recorded = found(1.05 * rate, rate, (0.5 * rate, 30.0), (rate, 95.0))
    calibrate(study(tmp_path, [(SLOW, as_recorded)]))
    costs, _ = latency_costs(ParetoOptions("made-up", (100.0,), results=tmp_path))
    [within] = costs.curve
    assert within.cheapest is not None
    predicted = within.predicted
    assert predicted is not None
    assert predicted.basis == "predicted"
    assert predicted.config != SLOW
    assert predicted.config.models[0].artifact.precision == "int8"
    assert predicted.surely_usd_per_million < 0.9 * within.cheapest.surely_usd_per_million
    assert predicted.capacity.high is not None
    assert predicted.capacity.low < predicted.capacity.per_second < predicted.capacity.high
    ran = pareto(tmp_path, "--limit", "100ms")
    assert "Predicted: not measured; the simulator and the trials" in ran.output
    assert '"symbol":"triangle-up-open"' in (tmp_path / "made-up" / "pareto.html").read_text()


def test_the_forecast_that_the_trials_correct_was_not_learnt_from_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would fit them too well, and the intervals of all other points would be too narrow."""
    evaluator = RecordedEvaluator(recorded_table(SPACE), np.random.default_rng(0))
    shown, measured = evaluator.saturate(SLOW, SETTING.slot).measurement, SOON.measurement
    assert shown is not None
    assert measured is not None
    saturated = replace(measured.levels[0], server=shown.levels[0].server)
    trial = replace(SOON, measurement=replace(measured, levels=(saturated, *measured.levels[1:])))
    calibrate(study(tmp_path, [(SLOW, trial)]))
    services = list[ServiceModel]()

    def taken(_: SearchedSpace, service: ServiceModel, *__: object) -> Forecast:
        services.append(service)
        raise UsageError("no forecast is needed")

    monkeypatch.setattr(pareto_module, "forecast_within", taken)
    # A fit of ten seconds that tells nothing here.
    monkeypatch.setattr(learnt_forecast, "fit_variation", lambda service, _: service.variation)
    with pytest.raises(UsageError, match="no forecast is needed"):
        latency_costs(ParetoOptions("made-up", (100.0,), results=tmp_path))
    own = read_study(tmp_path, "made-up")
    assert len(own.service.observations) > len(own.calibrated.observations)
    assert services == [own.calibrated]


@pytest.mark.slow
def test_what_is_measured_already_is_not_predicted(tmp_path: Path) -> None:
    best = [(SPACE.config(SPACE.at(row)), HIGH) for row in range(len(SPACE))]
    calibrate(study(tmp_path, best))
    costs, _ = latency_costs(ParetoOptions("made-up", (1.0, 100.0), results=tmp_path))
    assert [within.predicted for within in costs.curve] == [None, None]


def test_where_no_limit_is_met_the_exit_code_says_so(tmp_path: Path) -> None:
    study(tmp_path, [(SLOW, infeasible(300.0))])
    ran = pareto(tmp_path, "--limit", "1ms")
    assert ran.return_value == 1, ran.output
    assert "No measured configuration meets any of these limits." in ran.output


@pytest.mark.parametrize("limit", ["fast", "300", "-3ms", "0ms", "3h"])
def test_a_limit_that_is_none_is_refused(tmp_path: Path, limit: str) -> None:
    study(tmp_path)
    rule = "must be a number above 0 and ms or s, such as 300ms, and at most an hour"
    assert f"{rule}; got {limit!r}" in usage_error(tmp_path, "--limit", limit)


def usage_error(results: Path, *arguments: str) -> str:
    ran = pareto(results, *arguments)
    assert getattr(ran.exception, "exit_code", None) == 2, ran.output
    return str(ran.exception)


def test_a_study_that_is_not_there_or_has_measured_nothing_is_refused(tmp_path: Path) -> None:
    assert "study 'made-up' not found" in usage_error(tmp_path)
    study(tmp_path, [])
    assert "study made-up has measured no capacity yet: run it first" in usage_error(tmp_path)


def several(*limits_ms: float) -> SearchedSpace:
    [stream] = WORKLOAD.streams
    streams = [
        replace(stream, name=f"stream {n}", limit=LatencyLimit(95.0, limit_ms))
        for n, limit_ms in enumerate(limits_ms)
    ]
    return replace(SEARCHED, workload=Workload(tuple(streams)))


def test_streams_with_limits_of_their_own_share_no_limit(tmp_path: Path) -> None:
    study(tmp_path, searched=several(100.0, 300.0))
    said = usage_error(tmp_path, "--limit", "50ms")
    assert said == (
        "--limit: must be left out where streams have limits of their own; "
        "got stream 0 100 ms, stream 1 300 ms"
    )
    ran = pareto(tmp_path)
    assert ran.return_value == 0, ran.output
    assert "The limits are those of stream 0; stream 1: 3 times as long." in ran.output
    assert "stream 1, 300 ms where that is 100 ms" in (
        tmp_path / "made-up" / "pareto.html"
    ).read_text().replace("\n", " ")


def test_streams_with_one_limit_share_every_limit(tmp_path: Path) -> None:
    study(tmp_path, searched=several(100.0, 100.0))
    ran = pareto(tmp_path, "--limit", "50ms")
    assert ran.return_value == 0, ran.output
