"""What a study measured as pandas tables, with units in the names of columns.

A column is there in every table of its kind, whatever was measured, so that code that reads one can
rely on it; a figure that does not exist is missing (NaN).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from optimizer.configuration.parameter_definition import Served
from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import (
    ServingConfig,
    describe,
)
from optimizer.measurement.cost import Score
from optimizer.measurement.level import LoadLevel, Measurement, ServerSplit, StreamLevel
from optimizer.measurement.trial_record import TrialRecord
from optimizer.simulator.predicted_values import PredictedLevel
from optimizer.study.decision import ConfirmedCapacity
from optimizer.study.pipeline_times import PipelineTimes, composed_targets, pipeline_times
from optimizer.workload.streams import Workload

Row = dict[str, object]

_PERCENTILES = (50, 95, 99)


def trials_frame(records: Sequence[TrialRecord], space: SearchSpace) -> pd.DataFrame:
    """One row for each record.

    Args:
        space: whose parameters become columns: "precision", with several models "bert.precision".
            What has no effect (a queue delay without batching) is missing.
    """
    columns = [*_record(None), *_parameters(None, space), *_figures(None)]
    rows = [
        {**_record(each), **_parameters(each.config, space), **_figures(each)} for each in records
    ]
    return pd.DataFrame(rows, columns=columns)


def confirmations_frame(
    records: Sequence[TrialRecord], trials: Sequence[TrialRecord], space: SearchSpace
) -> pd.DataFrame:
    """One row for each round of the confirm phase; a round by itself has no cost.

    Args:
        records: of the rounds.
        trials: of the search, of which `trial` names the one that is measured again.
    """
    of = {each.config: each.number for each in trials if each.outcome == "ok"}
    frame = trials_frame(records, space).drop(columns=list(_cost(None)))
    frame.insert(1, "trial", [of.get(each.config) for each in records])
    return frame


def _record(record: TrialRecord | None) -> Row:
    if record is None:
        return dict.fromkeys(("number", "outcome", "reason", "attempt", "origin", "configuration"))
    return {
        "number": record.number,
        "outcome": record.outcome,
        "reason": record.reason,
        "attempt": record.attempt,
        "origin": record.origin,
        "configuration": describe(record.config),
    }


def _figures(record: TrialRecord | None) -> Row:
    """Capacity, latency, cost and time; missing where the limits were met at no load."""
    measured = record.measurement if record is not None else None
    seconds = record.seconds if record is not None else None
    met = measured if measured is not None and measured.load_factor > 0 else None
    saturated = [x for x in measured.levels if x.kind == "saturation"] if measured else []
    return {
        "saturation_per_second": saturated[0].achieved_per_second if saturated else np.nan,
        "capacity_per_second": met.capacity_per_second if met else np.nan,
        "capacity_low_per_second": met.capacity_low_per_second if met else np.nan,
        "capacity_high_per_second": _number(met.capacity_high_per_second if met else None),
        **_latencies(met),
        **_cost(record.score if record is not None else None),
        "measuring_seconds": seconds.measuring if seconds else np.nan,
        "building_seconds": seconds.building if seconds else np.nan,
        "serving_seconds": seconds.serving if seconds else np.nan,
        "total_seconds": seconds.total if seconds else np.nan,
    }


def _cost(score: Score | None) -> Row:
    return {
        "usd_per_million_at_capacity": score.usd_per_million_at_capacity if score else np.nan,
        "usd_per_million_at_demand": score.usd_per_million_at_demand if score else np.nan,
        "replicas": score.replicas if score else np.nan,
        "fleet_usd_per_hour": score.fleet_usd_per_hour if score else np.nan,
    }


def _latencies(measurement: Measurement | None) -> Row:
    """Return those of the highest level within the limits, of the worst stream, and its load."""
    level = measurement.level_at_capacity if measurement is not None else None
    return {
        **{
            f"p{percentile}_ms_at_capacity": level.latency_ms(percentile)
            if level is not None
            else np.nan
            for percentile in _PERCENTILES
        },
        "latencies_at_per_second": level.offered_per_second if level is not None else np.nan,
    }


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def _parameters(config: ServingConfig | None, space: SearchSpace) -> Row:
    """Return the parameters of a configuration, named as in the space file."""
    several = len(space.models) > 1
    row: Row = {}
    for own in space.models:
        model = next((m for m in config.models if m.name == own.model), None) if config else None
        gpus = len(space.hardware.gpus)
        served = Served(model, config.server, gpus) if config and model is not None else None
        for parameter in own.parameters:
            if len(parameter.values) == 1 and not space.concerns(own.model, parameter.name):
                continue
            key = parameter.key if several else parameter.name
            row[key] = parameter.definition.read(served) if served is not None else None
    return row


def levels_frame(records: Sequence[TrialRecord], workload: Workload) -> pd.DataFrame:
    """One row for each load level and stream of each record, in the order of measuring."""
    targets = {stream.name: stream.target for stream in workload.streams}
    rows = [
        {"trial": record.number, "level": n, **row}
        for record in records
        if record.measurement is not None
        for n, level in enumerate(record.measurement.levels)
        for row in _streams(record.config, level, targets)
    ]
    return pd.DataFrame(rows, columns=["trial", "level", *_LEVEL_COLUMNS])


def measured_levels_frame(
    config: ServingConfig, levels: Sequence[LoadLevel], workload: Workload
) -> pd.DataFrame:
    """Return one row for each stream of levels that belong to no trial."""
    targets = {stream.name: stream.target for stream in workload.streams}
    rows = [
        {"level": n, **row}
        for n, level in enumerate(levels)
        for row in _streams(config, level, targets)
    ]
    return pd.DataFrame(rows, columns=["level", *_LEVEL_COLUMNS])


def steps_frame(records: Sequence[TrialRecord]) -> pd.DataFrame:
    """One row for each step of a pipeline in each load level; none without a pipeline."""
    rows = [
        {"trial": record.number, "level": n, "kind": level.kind, "pipeline": target, **row}
        for record in records
        if record.measurement is not None
        for n, level in enumerate(record.measurement.levels)
        for target in composed_targets(record.config)
        for row in _steps(pipeline_times(record.config, target, level))
    ]
    columns = ["trial", "level", "kind", "pipeline", "per_second", *_STEP_COLUMNS, "share"]
    return pd.DataFrame(rows, columns=columns)


_STEP_COLUMNS = (
    "model",
    "calls",
    "queue_ms",
    "input_ms",
    "infer_ms",
    "output_ms",
    "path_ms",
    "instances",
    "busy",
)
"""Fields of `StepTimes`."""


def _steps(times: PipelineTimes | None) -> Iterator[Row]:
    for step in times.steps if times is not None else ():
        own = {name: getattr(step, name) for name in _STEP_COLUMNS}
        assert times is not None
        yield {"per_second": times.per_second, **own, "share": times.share(step)}


_LEVEL_COLUMNS = (
    "kind",
    "stream",
    "load_factor",
    "seconds",
    "offered_per_second",
    "achieved_per_second",
    "mean_ms",
    "p50_ms",
    "p95_ms",
    "p95_low_ms",
    "p95_high_ms",
    "p99_ms",
    "limit_ms",
    "queue_ms",
    "compute_ms",
    "mean_batch_size",
    "sent",
    "completed",
    "errors",
    "rejected",
    "within_limit",
    "client_lag_ms",
    "meets_limits",
    "verdict",
    "ended",
)


def _streams(config: ServingConfig, level: LoadLevel, targets: Mapping[str, str]) -> Iterator[Row]:
    pipelines = composed_targets(config)
    for stream in level.streams:
        target = targets.get(stream.name)
        split = next((s for s in level.server if s.model == target), None)
        inside = pipeline_times(config, target, level) if target in pipelines else None
        yield {
            "kind": level.kind,
            "stream": stream.name,
            "load_factor": level.load_factor,
            "seconds": level.seconds,
            **_stream(stream),
            **(_split(split) if inside is None else _pipeline(inside)),
            "client_lag_ms": level.client.lag_ms,
            "meets_limits": level.meets_limits,
            "verdict": level.verdict,
            "ended": level.ended,
        }


def _stream(stream: StreamLevel) -> Row:
    p95 = stream.latency(95)
    return {
        "offered_per_second": stream.offered_per_second,
        "achieved_per_second": stream.achieved_per_second,
        "mean_ms": stream.mean_ms,
        **{f"p{percentile}_ms": stream.latency_ms(percentile) for percentile in _PERCENTILES},
        "p95_low_ms": p95.low_ms,
        "p95_high_ms": _number(p95.high_ms),
        "limit_ms": stream.limit_ms,
        "sent": stream.sent,
        "completed": stream.completed,
        "errors": stream.errors,
        "rejected": stream.rejected,
        "within_limit": _number(stream.within_limit),
    }


def _split(split: ServerSplit | None) -> Row:
    """Return the server's own mean times of a request; missing without its statistics."""
    if split is None:
        return {}
    compute_ms = split.compute_input_ms + split.compute_infer_ms + split.compute_output_ms
    executions = split.executions
    return {
        "queue_ms": split.queue_ms,
        "compute_ms": compute_ms,
        "mean_batch_size": split.inferences / executions if executions else np.nan,
    }


def _pipeline(times: PipelineTimes) -> Row:
    """Return the mean times of a request along the longest path; batches are those of steps."""
    queue_ms = sum(step.path_queue_ms for step in times.steps)
    in_steps_ms = sum(step.path_ms for step in times.steps)
    return {"queue_ms": queue_ms, "compute_ms": in_steps_ms - queue_ms}


def predicted_levels_frame(levels: Mapping[str, Sequence[PredictedLevel]]) -> pd.DataFrame:
    """One row for each predicted load level, by stream; columns are called as measured ones are."""
    rows = [
        {
            "stream": stream,
            "offered_per_second": level.offered_per_second,
            "achieved_per_second": level.achieved_per_second,
            **{f"p{percentile}_ms": level.latency_ms(percentile) for percentile in _PERCENTILES},
            "queue_ms": level.mean_queue_ms,
            "mean_batch_size": level.bottleneck.mean_batch,
            "refused_share": level.refused_share,
            "utilisation": level.utilisation,
        }
        for stream, own in levels.items()
        for level in own
    ]
    columns = [
        "stream",
        "offered_per_second",
        "achieved_per_second",
        *(f"p{percentile}_ms" for percentile in _PERCENTILES),
        "queue_ms",
        "mean_batch_size",
        "refused_share",
        "utilisation",
    ]
    return pd.DataFrame(rows, columns=columns)


def finding_series(finding: ConfirmedCapacity, space: SearchSpace) -> pd.Series:
    """Return the figures of one configuration, named as the columns of trials."""
    candidate = finding.candidate
    measurement = candidate.measurement
    return pd.Series(
        {
            "number": finding.trial.number,
            "confirmed": finding.confirmed,
            "configuration": describe(candidate.config),
            **_parameters(candidate.config, space),
            "capacity_per_second": measurement.capacity_per_second,
            "capacity_low_per_second": measurement.capacity_low_per_second,
            "capacity_high_per_second": _number(measurement.capacity_high_per_second),
            **{
                f"p{percentile}_ms_at_capacity": _number(finding.latency_ms(percentile))
                for percentile in _PERCENTILES
            },
            "p95_ms_at_demand": candidate.p95_ms_at_demand,
            **_cost(candidate.score),
        },
        dtype=object,
    )
