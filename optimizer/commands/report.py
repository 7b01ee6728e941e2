"""Write the report of a study from its records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from optimizer.analysis.effects import Effects, effects_of
from optimizer.analysis.study_reading import StudyReading, read_study
from optimizer.commands.pareto import latency_cost_context, measured_costs
from optimizer.commands.simulate import predicted_serving
from optimizer.configuration.parameter_definition import label
from optimizer.configuration.serving_config import ServingConfig, describe
from optimizer.files.atomic import write_text
from optimizer.fleet.price_list import price_warning
from optimizer.machine.blas_threads import one_blas_thread
from optimizer.report.model_figures import Predicted
from optimizer.report.study_figures import PredictedCurve
from optimizer.report.study_markdown import study_markdown
from optimizer.report.study_outcome import StudyOutcome
from optimizer.report.study_page import study_page
from optimizer.report.study_report import StudyReport, finalists
from optimizer.report.study_sections import sections
from optimizer.search.level_runner import concurrency
from optimizer.search.surrogate.idle_models import open_rows
from optimizer.search.surrogate.point_features import PointFeatures
from optimizer.search.surrogate.posterior import LogForecast, Posterior
from optimizer.simulator.forecast import Forecast, Forecaster
from optimizer.simulator.network_forecast import forecaster_of
from optimizer.simulator.service_model import ServiceModel

_LIKELY = 0.5
"""Probability of meeting the limits above which a configuration's cost counts."""


@dataclass(frozen=True)
class ReportResult:
    """A report and its files."""

    page: Path
    markdown: Path
    report: StudyReport


@one_blas_thread()
def report_study(results: Path, study: str, seed: int = 0) -> ReportResult:
    """Write report.html and report.md into a study's folder.

    Args:
        results: folder of the studies.
        study: a name in it, or the path of a study's own folder.
        seed: of the simulation.

    Raises:
        UsageError: where there is no such study.
        StorageError: when its files are damaged, or the report cannot be written.
    """
    reading = read_study(results, study)
    report = _report(reading, seed)
    folder, made = reading.directory.root, sections(report)
    reported = ReportResult(folder / "report.html", folder / "report.md", report)
    write_text(reported.page, study_page(report, made))
    write_text(reported.markdown, study_markdown(report.title, made))
    return reported


def _report(study: StudyReading, seed: int) -> StudyReport:
    searched, today = study.searched, datetime.now(UTC)
    service = study.calibrated
    forecaster = forecaster_of(searched.search_space, searched.workload, concurrency, seed)
    # Before the search, if the study was calibrated.
    forecast = forecaster.forecast(service) if service.observations else None
    outcome = StudyOutcome(study, study.summary, price_warning(searched.price, today.date()))
    return StudyReport(
        outcome=outcome,
        effects=_effects(study, forecast) if forecast is not None else None,
        predicted=tuple(_predicted(study, forecast)) if forecast is not None else (),
        costs=measured_costs(study),
        curves=_curves(study, finalists(outcome), seed) if study.saturated else {},
        written=f"{today:%Y-%m-%d %H:%M} UTC",
        left_at_baseline=_left_at_baseline(study, forecaster, service)
        if forecast is not None
        else (),
    )


def _left_at_baseline(
    study: StudyReading, forecaster: Forecaster, service: ServiceModel
) -> tuple[str, ...]:
    """Return what the guided search said of models that cannot limit the others."""
    opened = open_rows(study.searched.search_space, forecaster, service)
    return tuple(f"{idle.text}." for idle in opened.idle)


def _curves(
    study: StudyReading, configs: Sequence[ServingConfig], seed: int
) -> dict[tuple[str, str], PredictedCurve]:
    """Return the predicted latency over load, by configuration and stream."""
    curves: dict[tuple[str, str], PredictedCurve] = {}
    for config in configs:
        prediction = predicted_serving(study.searched.workload, config, study.service, seed)
        for own in prediction.streams:
            percentile = own.stream.limit.percentile
            curves[describe(config), own.stream.name] = [
                (level.offered_per_second, level.latency_ms(percentile)) for level in own.levels
            ]
    return curves


def _effects(study: StudyReading, forecast: Forecast) -> Effects:
    """Return the effects of the parameters, by the forecast and the trials together."""
    space, context = study.searched.search_space, latency_cost_context(study.searched)
    records = [
        (space.row_of[position], record)
        for record in study.trials
        if (position := space.position_of(record.config)) is not None
    ]
    posterior = Posterior.fitted(
        records, LogForecast.of(forecast, context), PointFeatures.of(space)
    )
    rows = np.arange(len(space))
    log_cost, _ = posterior.log_cost(rows)
    likely = posterior.feasible(rows) > _LIKELY
    one_model = len(space.models) == 1
    parameters = [
        (each.name if one_model else each.key, [str(label(value)) for value in each.values])
        for each in space.parameters
    ]
    return effects_of(parameters, space.points[likely], log_cost[likely])


def _predicted(study: StudyReading, forecast: Forecast) -> Sequence[Predicted]:
    """Return predicted and measured capacities of trials that the calibration did not measure."""
    space = study.searched.search_space
    demand_per_second = study.searched.demand.requests_per_second
    calibrated_with = {record.config for record in study.calibration}
    predictions = []
    for record in study.trials:
        measurement, position = record.measurement, space.position_of(record.config)
        new = record.config not in calibrated_with and record.outcome == "ok"
        if measurement is None or position is None or not new:
            continue
        predicted = float(forecast.capacity[space.row_of[position]]) * demand_per_second
        if predicted > 0 and math.isfinite(predicted):
            predictions.append(
                Predicted(
                    describe(record.config),
                    predicted,
                    measurement.capacity_per_second,
                    measurement.capacity_low_per_second,
                    measurement.capacity_high_per_second,
                )
            )
    return predictions
