"""Measure the eight configurations of the published benchmark on this machine."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from optimizer.commands.protocols import search_protocol
from optimizer.commands.run_context import open_run, open_space, warn_of_space_file
from optimizer.errors import UsageError
from optimizer.files.atomic import write_text
from optimizer.fleet.benchmark_table import BenchmarkRow, write_rows
from optimizer.load.ramp import find_by_ramp, largest_rate_within
from optimizer.machine.slots import Slot
from optimizer.measurement.level_checks import capacity_basis
from optimizer.measurement.trial_record import TrialRecord
from optimizer.report.benchmark_page import benchmark_page
from optimizer.search.evaluator import LiveEvaluator
from optimizer.search.published_grid import (
    NamedConfiguration,
    published_configurations,
    published_space,
)
from optimizer.search.resumable_runs import Measure, ResumableRuns
from optimizer.space_file.reader import Space
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Watcher
from optimizer.study.gated_artifact import GatedArtifact, wrong_answers_reason
from optimizer.study.history import why_all_failed, why_most_unmeasured

_REMEDY = "restore it, or measure under another name: study: NEW"


@dataclass(frozen=True)
class BaselineOptions:
    """Options of `baseline`.

    Attributes:
        ramp: measure by the published ramp of users instead of a search for the capacity.
        seed: of the arrivals.
        results: the results are written to STUDY/baselines below it, or STUDY/ramp.
    """

    space: Path
    ramp: bool = False
    seed: int = 0
    results: Path = Path("results")
    cache: Path | str | None = None


@dataclass(frozen=True)
class BaselineResult:
    """The measured configurations.

    Attributes:
        rows: of those that answered, in the published order, priced for the demand.
        left_out: why there is no row, by name.
        unmeasured: why most could not be measured, or all failed; None where neither is so.
        within_limits: whether any of them met the limits at some load.
        table, page: files that were written.
        notes: the load of latencies that are not those at the capacity.
    """

    space: Space
    rows: tuple[BenchmarkRow, ...]
    left_out: Mapping[str, str]
    table: Path
    page: Path
    unmeasured: str | None
    within_limits: bool
    notes: tuple[str, ...] = ()

    @property
    def limit_ms(self) -> float:
        """The shortest latency limit of the streams."""
        return self.space.workload.shortest_limit_ms


def measure_baselines(options: BaselineOptions, watch: Watcher) -> BaselineResult:
    """Measure those of the eight configurations that are not yet measured."""
    whole = open_space(options.space)
    _refuse_other_models(whole)
    configurations = published_configurations(whole.search_space)
    space = replace(whole, search_space=published_space(whole.search_space))
    folder = "ramp" if options.ramp else "baselines"
    directory = StudyDirectory(options.results.absolute() / space.study / folder)
    with open_run(
        space, directory, options.cache, _REMEDY, seed=options.seed, watch=watch
    ) as context:
        with context.watched(watch) as watch_all:
            warn_of_space_file(space, watch_all)
            runs = ResumableRuns(directory.trials, context.study_context, watch_all)
            with context.evaluator(watch_all) as (evaluator, prepared):
                served, left_out = _served(configurations, prepared.gated)
                measure = _measure(evaluator, space, context.slot, options.ramp)
                configs = [each.config for each in served]
                records = runs.measure_missing("baseline", configs, measure)
        measured = [(each, records[each.config]) for each in served]
        return _written(space, measured, left_out, directory.root, options.ramp)


def _refuse_other_models(space: Space) -> None:
    """Refuse models that are served as they are, which have no other runtimes, and pipelines."""
    remedy = "`measure` measures one configuration, and `record` every one of the space"
    if (graph := space.search_space.graph) is not None:
        raise UsageError(
            "baseline: the eight configurations are of single models, and "
            f"{', '.join(sorted(graph.names))} is a pipeline: {remedy}"
        )
    if space.deployed:
        raise UsageError(
            f"baseline: the eight configurations serve a model in other runtimes, and "
            f"{', '.join(sorted(space.deployed))} of a repository is served as it is: {remedy}"
        )


def _served(
    configurations: Sequence[NamedConfiguration], gated: Sequence[GatedArtifact]
) -> tuple[list[NamedConfiguration], dict[str, str]]:
    """Return those that can be served, and why the others cannot, by name."""
    dropped = {own.spec: own.dropped for own in gated if own.dropped is not None}
    reasons = {
        each.name: "; ".join(dropped[spec] for spec in each.artifacts if spec in dropped)
        or wrong_answers_reason(each.config, gated)
        for each in configurations
    }
    served = [each for each in configurations if not reasons[each.name]]
    return served, {name: reason for name, reason in reasons.items() if reason}


def _measure(evaluator: LiveEvaluator, space: Space, slot: Slot, ramp: bool) -> Measure:
    if not ramp:
        return lambda config: evaluator.evaluate(config, slot)
    timeout = search_protocol(space).saturation_timeout_seconds
    return lambda config: evaluator.serve_and_measure(
        config, lambda run: find_by_ramp(run, space.workload, timeout)
    )


def _written(
    space: Space,
    measured: Sequence[tuple[NamedConfiguration, TrialRecord]],
    left_out: Mapping[str, str],
    folder: Path,
    ramp: bool,
) -> BaselineResult:
    """Write the table and the page of what was measured."""
    failed = {each.name: record.reason for each, record in measured if record.measurement is None}
    records = [record for _, record in measured]
    baselines = BaselineResult(
        space,
        rows=tuple(
            _row(each, record, space, ramp).priced(space.price, space.demand)
            for each, record in measured
            if each.name not in failed
        ),
        left_out={**left_out, **failed},
        table=folder / "table.csv",
        page=folder / "page.html",
        unmeasured=why_most_unmeasured(records) or why_all_failed(records),
        within_limits=any(record.outcome == "ok" for record in records),
        notes=() if ramp else tuple(_notes(measured)),
    )
    text = io.StringIO()
    write_rows(text, baselines.rows)
    write_text(baselines.table, text.getvalue())
    prices = {space.price.instance_type: space.price}
    title = f"{space.study}: the eight configurations"
    notes = [f"{name} is left out: {reason}" for name, reason in baselines.left_out.items()]
    html = benchmark_page(
        title,
        baselines.rows,
        prices,
        space.demand,
        baselines.limit_ms,
        notes=[*notes, *baselines.notes],
    )
    write_text(baselines.page, html)
    return baselines


def _notes(measured: Sequence[tuple[NamedConfiguration, TrialRecord]]) -> Iterator[str]:
    """Yield how each capacity that was not measured itself follows from another load."""
    for each, record in measured:
        if record.measurement is not None and (basis := capacity_basis(record.measurement)):
            yield f"{each.name}: its capacity is {basis}"


def _row(each: NamedConfiguration, record: TrialRecord, space: Space, ramp: bool) -> BenchmarkRow:
    per_second, latency_ms = _rate_and_latency(record, space, ramp)
    [model, *_] = each.config.models
    return BenchmarkRow(
        configuration=each.name,
        runtime=model.artifact.runtime,
        batching=model.batching is not None,
        instances=model.groups[0].count,
        instance_type=space.price.instance_type,
        gpus=len(space.search_space.hardware.gpus),
        replicas=0,
        invocations_per_minute=60 * per_second,
        latency_ms=latency_ms,
        usd_per_hour=0.0,
    )


def _rate_and_latency(record: TrialRecord, space: Space, ramp: bool) -> tuple[float, float]:
    """Return the capacity in requests a second, and the latency there at the limit's percentile.

    Where no load is within the limits, they are those of the last load that was tried.
    """
    measurement = record.measurement
    assert measurement is not None, "what failed has no row"
    last = measurement.levels[-1]
    if ramp:
        return largest_rate_within(last, space.workload.shortest_limit_ms)
    level = measurement.level_at_capacity or last
    worst = level.worst
    rate = measurement.capacity_per_second or level.achieved_per_second
    return rate, worst.latency_ms(worst.limit_percentile)
