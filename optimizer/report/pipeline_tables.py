"""Where the time of a pipeline goes and which step limits it, in tables and sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from optimizer.analysis.pipeline_limits import (
    BUSY,
    PipelineLimits,
    Widening,
    pipeline_limits,
    with_measured,
)
from optimizer.configuration.model_graph import NO_GRAPH
from optimizer.configuration.serving_config import ServingConfig, describe_model
from optimizer.measurement.level import LoadLevel
from optimizer.measurement.trial_record import TrialRecord
from optimizer.report import number_formats as form
from optimizer.report.table import Line, Part, Table
from optimizer.study.decision import ConfirmedCapacity
from optimizer.study.pipeline_times import (
    PipelineTimes,
    StepTimes,
    composed_targets,
    pipeline_times,
)

REST = "between steps, network, protocol"
_COLUMNS = (
    "step",
    "queue",
    "compute (input / infer / output)",
    "time",
    "share",
    "instances busy",
)
_BRANCHES = (
    "Times and shares are those of the longest path through the steps: a step at the same time as "
    "a longer one has none, or less than its queue and compute."
)
_SHOWN_TRIALS = 2
_NOTABLE = 0.01


@dataclass(frozen=True)
class Breakdown:
    """One pipeline at a load, and its limits where it was saturated too."""

    target: str
    times: PipelineTimes | None
    limits: PipelineLimits | None

    def tables(self, name: str = "") -> Iterator[Table]:
        """Yield a table for each of the loads; `name` says which configuration it is."""
        own = f"{name}: steps of {self.target}" if name else f"Steps of {self.target}"
        if self.times is not None and not self.times.saturated:
            load = f"{form.rate(self.times.per_second)} requests/s"
            yield _table(f"{own} at {load}, mean ms of a request", self.times)
        if self.limits is not None:
            load = f"saturation, {form.rate(self.limits.times.per_second)} requests/s"
            yield _table(f"{own} at {load}, mean ms of a request", self.limits.times, self.limits)


def breakdowns(
    config: ServingConfig,
    shown: LoadLevel | None,
    levels: Sequence[LoadLevel],
    trials: Sequence[TrialRecord] = (),
) -> list[Breakdown]:
    """Return the breakdown of each pipeline of a configuration.

    Args:
        shown: the level at the capacity, or another one.
        levels: all that were measured; of the saturated ones that with the highest rate shows the
            limits, because others were disturbed more.
        trials: of the study, some of which may have a wider bottleneck.
    """
    saturated = max(
        (level for level in levels if level.kind == "saturation"),
        key=lambda level: level.achieved_per_second,
        default=None,
    )
    own = []
    for target in composed_targets(config):
        times = pipeline_times(config, target, shown) if shown is not None else None
        limits = pipeline_limits(config, target, saturated) if saturated is not None else None
        limits = with_measured(limits, trials) if limits is not None else None
        if times is not None or limits is not None:
            own.append(Breakdown(target, times, limits))
    return own


def breakdowns_of(finding: ConfirmedCapacity, trials: Sequence[TrialRecord]) -> list[Breakdown]:
    """Return the breakdown of each pipeline of a configuration in a study."""
    measurement = finding.candidate.measurement
    return breakdowns(finding.config, measurement.nearest_level, measurement.levels, trials)


def step_times_ms(times: PipelineTimes) -> Mapping[str, float]:
    """Return the parts of a request's time along the longest path, by what takes them."""
    parts: dict[str, float] = {}
    for step in times.steps:
        parts[f"{step.model}: queue"] = step.path_queue_ms
        parts[f"{step.model}: compute"] = step.path_ms - step.path_queue_ms
    return {**parts, REST: times.rest_ms}


def breakdown_parts(own: Sequence[Breakdown]) -> Iterator[Part]:
    """Yield tables and sentences as a terminal shows them."""
    for each in own:
        yield from each.tables()
        if each.limits is not None:
            yield from (Line(text) for text in limit_sentences(each.limits))


def _table(title: str, times: PipelineTimes, limits: PipelineLimits | None = None) -> Table:
    alone = {each.model: each for each in limits.capacities} if limits is not None else {}
    rows = []
    for step in times.steps:
        row = [
            _step_text(step),
            f"{step.queue_ms:.2f}",
            f"{step.compute_ms:.2f} "
            f"({step.input_ms:.2f} / {step.infer_ms:.2f} / {step.output_ms:.2f})",
            f"{step.path_ms:.2f}",
            form.percent(times.share(step)),
            f"{form.percent(min(1.0, step.busy))} of {step.instances}",
        ]
        if limits is not None:
            own = alone.get(step.model)
            row.append(
                f"{form.rate(own.per_second)} in batches of {own.batch_size}"
                if own is not None
                else form.MISSING
            )
        rows.append(tuple(row))
    spare = ("",) * (len(_COLUMNS) - 5 + (limits is not None))
    rest_share = times.rest_ms / times.request_ms if times.request_ms else 0.0
    rows.append((REST, "", "", f"{times.rest_ms:.2f}", form.percent(rest_share), *spare))
    rows.append(("request", "", "", f"{times.request_ms:.2f}", form.percent(1), *spare))
    columns = (*_COLUMNS, *(("alone, requests/s",) if limits is not None else ()))
    notes = [_BRANCHES] if any(map(_beside_others, times.steps)) else []
    notes += [_cache_text(step) for step in times.steps if step.hit_rate is not None]
    return Table(title, columns, tuple(rows), tuple(notes))


def _cache_text(step: StepTimes) -> str:
    expected = step.expected_hit_rate
    text = f", {form.fine_percent(expected)} expected" if expected is not None else ""
    answered = form.fine_percent(step.hit_rate or 0.0)
    return f"The response cache answered {answered} of the requests to {step.model}{text}."


def _step_text(step: StepTimes) -> str:
    calls = f"{step.calls:.3g}"
    return step.model if calls == "1" else f"{step.model} ({calls} calls)"


def _beside_others(step: StepTimes) -> bool:
    return step.path_ms < 0.99 * step.own_ms


def limit_sentences(limits: PipelineLimits) -> Iterator[str]:
    """Yield what limits a pipeline at saturation, what it loses, and what widening gives."""
    yield bottleneck_sentence(limits)
    slowest = limits.slowest
    lost = f"{form.percent(limits.loss)} less" if limits.loss >= _NOTABLE else "no less"
    yield (
        f"The slowest step alone, {slowest.model}, serves {form.rate(slowest.per_second)} "
        f"requests/s in batches of {slowest.batch_size} by its own executions; the pipeline "
        f"saturates at {form.rate(limits.times.per_second)}, {lost}."
    )
    for trial in limits.widened[:_SHOWN_TRIALS]:
        yield (
            f"Trial {trial.trial} differs in this step alone ({describe_model(trial.serving)}): it "
            f"saturated at {form.rate(trial.per_second)} requests/s."
        )
    if limits.widenings:
        changes = "; ".join(_widening_text(each, limits) for each in limits.widenings)
        name = limits.bottleneck
        yield f"Computed and not measured, for {name}: {changes}. {_assumption(limits)}"


def bottleneck_sentence(limits: PipelineLimits) -> str:
    """Return which step limits a pipeline, or why none does."""
    first, *others = limits.by_busy
    waits = first.model in (limits.config.graph or NO_GRAPH).names
    busiest = f"{form.percent(min(1.0, first.busy))} of the time at saturation" + (
        ", the wait for its own steps included" if waits else ""
    )
    second = others[0] if others else None
    if limits.bottleneck is not None:
        beside = (
            f", those of the next, {second.model}, for {form.percent(second.busy)}"
            if second is not None
            else ""
        )
        return f"The bottleneck is {first.model}: its instances are busy for {busiest}{beside}."
    if second is not None and first.busy >= BUSY:
        return (
            f"No single step is the bottleneck: instances of {first.model} are busy for "
            f"{busiest}, those of {second.model} for {form.percent(min(1.0, second.busy))}."
        )
    return (
        f"No step is the bottleneck: the busiest instances, of {first.model}, are busy for "
        f"{busiest}{_cores(limits, '; the server used ')}."
    )


def _cores(limits: PipelineLimits, before: str) -> str:
    if limits.server_cores is None:
        return ""
    return f"{before}{limits.server_cores:.1f} of {limits.cores} cores"


def _widening_text(widening: Widening, limits: PipelineLimits) -> str:
    now = limits.times.per_second
    if widening.per_second < (1 + _NOTABLE) * now:
        gain = "would give no more"
    else:
        gain = (
            f"would saturate at {form.rate(widening.per_second)} requests/s at most "
            f"({form.change(widening.per_second / now - 1)})"
        )
    if widening.next_limit is not None:
        gain += f", where {widening.next_limit} limits"
    return f"{widening.change} {gain}"


def _assumption(limits: PipelineLimits) -> str:
    shared = _cores(limits, "; server and client share the cores, and the server used ")
    longer = any(each.change.startswith("max_batch_size") for each in limits.widenings)
    line = ", and that the time of larger batches grows in a straight line" if longer else ""
    return f"This assumes that instances do not slow each other down{line}{shared}."


def bottlenecks_table(title: str, named: Sequence[tuple[str, Breakdown]]) -> Table:
    """Return pipelines beside each other, such as those of several studies, by name."""
    columns = (
        "",
        "pipeline",
        "bottleneck",
        "busiest step",
        "next busiest",
        "saturation, requests/s",
        "slowest step alone",
        "lost",
    )
    rows = [
        (name, each.target, *_limit_cells(each.limits))
        for name, each in named
        if each.limits is not None
    ]
    texts = ("pipeline", "bottleneck", "busiest step", "next busiest", "slowest step alone")
    return Table(title, columns, tuple(rows), texts=texts)


def _limit_cells(limits: PipelineLimits) -> tuple[str, ...]:
    busy = [f"{x.model} {form.percent(min(1.0, x.busy))}" for x in limits.by_busy[:2]]
    return (
        limits.bottleneck or "none",
        busy[0],
        busy[1] if len(busy) > 1 else form.MISSING,
        form.rate(limits.times.per_second),
        f"{limits.slowest.model} {form.rate(limits.slowest.per_second)}",
        form.percent(limits.loss),
    )
