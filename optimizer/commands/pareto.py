"""The cost of other latency limits: the curve of a study, as measured and as predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from optimizer.analysis.latency_curve import (
    LatencyCosts,
    MeasuredConfigurationLevels,
    latency_curve,
    possibly_cheapest,
    recommended_first,
    usual_limits,
)
from optimizer.analysis.measured_configurations import measured_configurations
from optimizer.analysis.study_reading import StudyReading, read_study
from optimizer.analysis.unmeasured_configurations import Unmeasured
from optimizer.commands.protocols import require_one_limit
from optimizer.errors import UsageError
from optimizer.files.atomic import write_text
from optimizer.machine.blas_threads import one_blas_thread
from optimizer.machine.slots import Slot
from optimizer.report.pareto_page import pareto_page
from optimizer.search.level_runner import concurrency
from optimizer.simulator.forecast import Forecast
from optimizer.simulator.network_forecast import forecaster_of
from optimizer.simulator.service_model import ServiceModel
from optimizer.study.context import StudyContext, limit_names
from optimizer.study.searched_space import SearchedSpace


@dataclass(frozen=True)
class ParetoOptions:
    """Options of `pareto`.

    Attributes:
        limits_ms: latency limits; where there are none, eight around the study's own.
    """

    study: str
    limits_ms: tuple[float, ...] = ()
    seed: int = 0
    results: Path = Path("results")


@one_blas_thread()
def latency_costs(options: ParetoOptions) -> tuple[LatencyCosts, Path]:
    """Compute the cost of each limit; return it and the page that shows it.

    Raises:
        UsageError: where there is no such study, or nothing measured in it, or limits are given
            and its streams have limits of their own.
        StorageError: when its files are damaged, or the page cannot be written.
    """
    study = read_study(options.results, options.study)
    if options.limits_ms:
        require_one_limit(study.searched.workload, "--limit")
    measured = _measured(study)
    if not measured:
        raise UsageError(f"study {options.study} has measured no capacity yet: run it first")
    limits_ms = options.limits_ms or _limits_ms(study, measured)
    costs = _costs(study, measured, limits_ms)
    if study.saturated:
        costs = _with_predictions(study, measured, costs, options.seed)
    page = study.directory.root / "pareto.html"
    write_text(page, pareto_page(costs))
    return costs, page


def measured_costs(study: StudyReading) -> LatencyCosts | None:
    """Return the measured cost of limits around the study's own; None without a measurement.

    Of its offers, only the cheapest within each limit is certain to be there.
    """
    measured = _measured(study)
    if not measured:
        return None
    limits_ms = _limits_ms(study, measured)
    best = study.own_decision.best
    recommended = [each for each in measured if best is not None and each.config == best.config]
    shown = possibly_cheapest(measured, limits_ms)
    return _costs(study, [*{x.config: x for x in [*shown, *recommended]}.values()], limits_ms)


def _limits_ms(
    study: StudyReading, measured: Sequence[MeasuredConfigurationLevels]
) -> tuple[float, ...]:
    """Return limits around the study's own, in which it was searched."""
    return tuple(usual_limits(measured, *_searched_ms(study, measured)))


def _searched_ms(
    study: StudyReading, measured: Sequence[MeasuredConfigurationLevels]
) -> list[float]:
    own_ms = study.searched.workload.shortest_limit_ms
    return sorted({limit for each in measured for limit in each.searched_ms} | {own_ms})


def _measured(study: StudyReading) -> list[MeasuredConfigurationLevels]:
    """Return the measured configurations that are still in the study's space."""
    space = study.searched.search_space
    measured = measured_configurations(study.trials, study.runs)
    return [each for each in measured if space.position_of(each.config) is not None]


def _costs(
    study: StudyReading,
    measured: Sequence[MeasuredConfigurationLevels],
    limits_ms: tuple[float, ...],
) -> LatencyCosts:
    """Return the cost of each limit, and of the study's own."""
    searched, workload = study.searched, study.searched.workload
    own_ms = workload.shortest_limit_ms
    # The other limits are compared with the study's own.
    curve_ms = sorted({*limits_ms, own_ms})
    curve = latency_curve(measured, curve_ms, searched.price, searched.demand)
    best = study.own_decision.best
    return LatencyCosts(
        study.name,
        workload.streams,
        tuple(_searched_ms(study, measured)),
        searched.price,
        searched.demand,
        recommended_first(curve, own_ms, best.config if best is not None else None),
        unconfirmed=best is not None and not best.confirmed,
    )


def _with_predictions(
    study: StudyReading,
    measured: Sequence[MeasuredConfigurationLevels],
    costs: LatencyCosts,
    seed: int,
) -> LatencyCosts:
    searched = study.searched
    # What the trials are compared with must not be learnt from them: it would fit them too well,
    # and the intervals of all other points would be too narrow.
    calibrated = study.calibrated
    service = calibrated if calibrated.observations else study.service
    unmeasured = Unmeasured(
        searched.search_space, study.trials, measured, latency_cost_context(searched)
    )
    curve = [
        replace(within, predicted=unmeasured.cheaper(within, forecast))
        for within in costs.curve
        for forecast in [forecast_within(searched, service, within.limit_ms, seed)]
    ]
    return replace(costs, curve=tuple(curve))


def forecast_within(
    searched: SearchedSpace, service: ServiceModel, limit_ms: float, seed: int
) -> Forecast:
    """Predict every configuration within a latency limit by service times."""
    workload = searched.workload.within(limit_ms)
    forecaster = forecaster_of(searched.search_space, workload, concurrency, seed)
    return forecaster.forecast(service)


def latency_cost_context(searched: SearchedSpace) -> StudyContext:
    """Return a context for costs only, in which nothing is measured."""
    names, no_slot = limit_names(searched.workload), Slot((), ())
    return StudyContext(
        searched.price, searched.demand, names, no_slot, machine="", confirm_requests=0
    )
