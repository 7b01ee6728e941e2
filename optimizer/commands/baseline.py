"""The eight configurations of the published benchmark, measured on this machine."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from optimizer.commands.hosts import require_host
from optimizer.commands.parts import (
    RunPlace,
    open_space,
    require_packages,
    require_same_space,
    search_protocol,
    slot_of,
    study_context,
    warn_of_space_file,
)
from optimizer.commands.with_progress import with_progress
from optimizer.files.atomic import write_text
from optimizer.fleet.benchmark_table import BenchmarkRow, write_rows
from optimizer.load.level_checks import capacity_basis
from optimizer.load.ramp import find_by_ramp, largest_rate_within
from optimizer.machine.fingerprint import this_machine
from optimizer.machine.slots import Slot
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

_HOW_TO_GO_ON = "go on with what it was begun with, or under another name: study: NEW"


@dataclass(frozen=True)
class BaselineRequest:
    """What one `baseline` was asked to do.

    Attributes:
        results: folder of the studies; these go to STUDY/baselines below it, or STUDY/ramp.
        cache: folder of the artefact cache.
        ramp: by the published ramp of users instead of the search for the capacity.
    """

    space: Path
    results: Path
    cache: Path
    seed: int = 0
    ramp: bool = False


@dataclass(frozen=True)
class Baselines:
    """The eight as they were found.

    Attributes:
        rows: of those that answered, in the published order, priced for the demand.
        left_out: why there is no row, by name.
        unmeasured: why most could not be measured, or all failed; None where neither holds.
        within_limits: whether any of them met the limits at some load.
        table, page: files that were written.
        notes: of which load the latencies are, where it is not the capacity.
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
        """The tightest stream's."""
        return self.space.workload.shortest_limit_ms


def measure_baselines(request: BaselineRequest, watch: Watcher) -> Baselines:
    """Measure those of the eight that are not yet; what is measured is kept.

    Everything that can be known to be missing or wrong is found before anything starts.

    Raises:
        OptimizerError: one of its branches, see `optimizer.errors`.
    """
    given = open_space(request.space)
    eight = published_configurations(given.search_space)
    space = replace(given, search_space=published_space(given.search_space))
    slot = slot_of(space)
    server = require_host(space, slot)
    require_packages(space)
    machine = this_machine(server, space.search_space.hardware.gpus)
    folder = "ramp" if request.ramp else "baselines"
    directory = StudyDirectory(request.results.absolute() / space.study / folder)
    with directory.locked():
        require_same_space(directory, space, machine, _HOW_TO_GO_ON)
        place = RunPlace(directory, request.cache, slot, space.host)
        with with_progress(directory, watch) as watch_all, place.session(space) as session:
            place.introduce(machine, watch_all)
            warn_of_space_file(space, watch_all)
            prepared = place.prepare(session, space, watch_all)
            served, left_out = _served(eight, prepared.gated)
            with place.evaluator(session, space, prepared, request.seed, watch_all) as evaluator:
                measure = _measure(evaluator, space, slot, request.ramp)
                setting = study_context(space, slot, machine)
                runs = ResumableRuns(directory.trials, setting, watch_all)
                configs = [each.config for each in served]
                records = runs.measure_missing("baseline", configs, measure)
        found = [(each, records[each.config]) for each in served]
        return _shown(space, found, left_out, directory.root, request.ramp)


def _served(
    eight: Sequence[NamedConfiguration], gated: Sequence[GatedArtifact]
) -> tuple[list[NamedConfiguration], dict[str, str]]:
    """Those of the eight whose files are there, and why the others' are not, by name."""
    dropped = {own.spec: own.dropped for own in gated if own.dropped is not None}
    reasons = {
        each.name: "; ".join(dropped[spec] for spec in each.artifacts if spec in dropped)
        or wrong_answers_reason(each.config, gated)
        for each in eight
    }
    served = [each for each in eight if not reasons[each.name]]
    return served, {name: reason for name, reason in reasons.items() if reason}


def _measure(evaluator: LiveEvaluator, space: Space, slot: Slot, ramp: bool) -> Measure:
    if not ramp:
        return lambda config: evaluator.evaluate(config, slot)
    timeout = search_protocol(space).saturation_timeout_seconds
    return lambda config: evaluator.serve_and_measure(
        config, lambda run: find_by_ramp(run, space.workload, timeout)
    )


def _shown(
    space: Space,
    measured: Sequence[tuple[NamedConfiguration, TrialRecord]],
    left_out: Mapping[str, str],
    folder: Path,
    ramp: bool,
) -> Baselines:
    """The rows, and the files that show them."""
    failed = {each.name: record.reason for each, record in measured if record.measurement is None}
    rows = tuple(
        _row(each, record, space, ramp).priced(space.price, space.demand)
        for each, record in measured
        if each.name not in failed
    )
    records = [record for _, record in measured]
    found = Baselines(
        space,
        rows,
        {**left_out, **failed},
        folder / "table.csv",
        folder / "page.html",
        why_most_unmeasured(records) or why_all_failed(records),
        any(record.outcome == "ok" for record in records),
        () if ramp else tuple(_notes(measured)),
    )
    text = io.StringIO()
    write_rows(text, rows)
    write_text(found.table, text.getvalue())
    prices = {space.price.instance_type: space.price}
    title = f"{space.study}: the eight configurations"
    notes = [f"{name} is left out: {reason}" for name, reason in found.left_out.items()]
    notes += found.notes
    html = benchmark_page(title, rows, prices, space.demand, found.limit_ms, notes=notes)
    write_text(found.page, html)
    return found


def _notes(measured: Sequence[tuple[NamedConfiguration, TrialRecord]]) -> Iterator[str]:
    """Yield how each capacity that was not measured itself follows from another load."""
    for each, record in measured:
        if record.measurement is not None and (basis := capacity_basis(record.measurement)):
            yield f"{each.name}: its capacity is {basis}"


def _row(each: NamedConfiguration, record: TrialRecord, space: Space, ramp: bool) -> BenchmarkRow:
    per_second, latency_ms = _found(record, space, ramp)
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


def _found(record: TrialRecord, space: Space, ramp: bool) -> tuple[float, float]:
    """Requests a second at the capacity, and latency there at the tightest stream's percentile.

    Where nothing is within the limits: of the last load that was tried.
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
