"""Hypothesis strategies for the core values."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TypeVar

from hypothesis import strategies as st

from optimizer.configuration.model_graph import ComposedModel, ModelGraph, in_sequence
from optimizer.configuration.runtimes import PRECISIONS_OF
from optimizer.configuration.serving_config import (
    ArtifactSpec,
    Batching,
    EngineProfile,
    InstanceGroup,
    ModelServing,
    QueuePolicy,
    ServerOptions,
    ServingConfig,
)
from optimizer.measurement.cost import Score
from optimizer.measurement.estimates import Percentile
from optimizer.measurement.level import (
    BatchPoint,
    ExtraLimit,
    LoadLevel,
    Measurement,
    ServerSplit,
    StreamLevel,
)
from optimizer.measurement.resource_use import ClientUse, GpuUse, MachineUse
from optimizer.measurement.trial_record import Failure, Seconds, TrialRecord

T = TypeVar("T")

names = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,11}", fullmatch=True)
texts = st.text(max_size=20)
counts = st.integers(min_value=0, max_value=2**53)
numbers = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
"""Finite: what is not known is None, for JSON has no infinity. Rates and times are not negative."""
above_zero = st.floats(min_value=1e-9, allow_nan=False, allow_infinity=False)


def tuples(
    values: st.SearchStrategy[T], longest: int = 3, shortest: int = 0
) -> st.SearchStrategy[tuple[T, ...]]:
    return st.lists(values, min_size=shortest, max_size=longest).map(tuple)


RUNTIMES_AND_PRECISIONS = sorted(
    {
        (runtime, precision)
        for of in PRECISIONS_OF.values()
        for runtime, precisions in of.items()
        for precision in precisions
    }
)
artifact_specs = st.sampled_from(RUNTIMES_AND_PRECISIONS).flatmap(
    lambda pair: st.builds(
        ArtifactSpec,
        model=names,
        runtime=st.just(pair[0]),
        backend=st.just(pair[0] if pair[0] in ("tensorrt", "repository") else "python"),
        precision=st.just(pair[1]),
        profile=st.none() | st.builds(EngineProfile, st.integers(1, 64), st.integers(64, 128)),
        options=tuples(st.tuples(names, texts)),
    )
)
batchings = st.builds(
    Batching,
    preferred_batch_sizes=tuples(st.integers(1, 128)),
    max_queue_delay_us=st.integers(0, 10**6),
    queue_policy=st.builds(
        QueuePolicy,
        max_queue_size=st.integers(0, 1000),
        timeout_us=st.integers(0, 10**7),
        timeout_action=st.sampled_from(["reject", "delay"]),
    ),
)
instance_groups = st.builds(
    InstanceGroup,
    count=st.integers(1, 8),
    logical_gpus=tuples(st.integers(0, 7)),
    threads=st.integers(1, 64),
)
models = st.builds(
    ModelServing,
    name=names,
    artifact=artifact_specs,
    max_batch_size=st.integers(1, 128),
    batching=st.none() | batchings,
    groups=tuples(instance_groups, shortest=1),
    padding=tuples(st.integers(1, 512)),
    warmup_batch_sizes=tuples(st.integers(1, 128)),
    cuda_graphs=st.booleans(),
    rate_limited=st.booleans(),
    parameters=tuples(
        st.tuples(names.map(lambda name: f"parameters.{name}.string_value"), texts.map(json.dumps))
    ),
)


def _graphs(served: tuple[ModelServing, ...]) -> st.SearchStrategy[ModelGraph | None]:
    """Make the last of several models an ensemble of the others, or leave them apart."""
    *steps, ensemble = dict.fromkeys(model.name for model in served)
    apart: st.SearchStrategy[ModelGraph | None] = st.none()
    return (
        apart | st.just(ModelGraph((ComposedModel(ensemble, "ensemble", in_sequence(steps)),)))
        if steps
        else apart
    )


serving_configs = tuples(models, shortest=1).flatmap(
    lambda served: st.builds(
        ServingConfig,
        models=st.just(served),
        graph=_graphs(served),
        server=st.builds(
            ServerOptions,
            backend_config=tuples(st.tuples(names, names, texts)),
            executions_per_device=st.none() | st.integers(1, 8),
        ),
    )
)
percentiles = st.builds(
    Percentile,
    percentile=st.floats(0, 100),
    value_ms=numbers,
    low_ms=numbers,
    high_ms=st.none() | numbers,
    samples=counts,
    effective_samples=numbers,
)


def _at(percentile: float) -> st.SearchStrategy[Percentile]:
    return percentiles.map(lambda made: replace(made, percentile=percentile))


of_a_level = st.tuples(_at(50.0), _at(95.0), _at(99.0))
stream_levels = st.builds(
    StreamLevel,
    name=names,
    offered_per_second=numbers,
    achieved_per_second=numbers,
    sent=counts,
    completed=counts,
    errors=counts,
    first_error=st.none() | texts,
    mean_ms=numbers,
    mean_from_send_ms=numbers,
    latencies=of_a_level,
    limit_percentile=st.floats(50, 99.9),
    limit_ms=above_zero,
)
server_splits = st.builds(
    ServerSplit,
    model=names,
    requests=counts,
    queue_ms=numbers,
    compute_input_ms=numbers,
    compute_infer_ms=numbers,
    compute_output_ms=numbers,
    batches=tuples(
        st.builds(BatchPoint, batch_size=st.integers(1, 128), executions=counts, compute_ms=numbers)
    ),
)
gpu_uses = st.builds(
    GpuUse,
    uuid=names,
    name=names,
    utilization_percent=st.none() | numbers,
    memory_mib=st.none() | numbers,
    power_watts=st.none() | numbers,
    sm_clock_mhz=st.none() | numbers,
    temperature_celsius_max=st.none() | numbers,
    throttled=tuples(names, 2),
    ecc_uncorrected=st.none() | counts,
    mig=st.none() | st.booleans(),
    mps=st.none() | st.booleans(),
)
load_levels = st.builds(
    LoadLevel,
    load_factor=numbers,
    seconds=numbers,
    streams=tuples(stream_levels, 2, shortest=1),
    server=tuples(server_splits, 2),
    client=st.builds(
        ClientUse,
        processes=counts,
        cpu_seconds=numbers,
        memory_mib=numbers,
        lag_ms=numbers,
        longest_lag_ms=st.none() | numbers,
    ),
    machine=st.none()
    | st.builds(
        MachineUse,
        seconds=numbers,
        cores=st.integers(1, 256),
        server_cpu_seconds=st.none() | numbers,
        server_memory_mib=st.none() | numbers,
        foreign_cores=st.none() | numbers,
        gpus=tuples(gpu_uses, 1),
        no_gpu=st.none() | texts,
        triton=tuples(st.tuples(names, numbers), 2),
    ),
    replied_ms=st.none() | numbers,
    ended=texts,
    warnings=tuples(texts, 1),
)
measurements = st.builds(
    Measurement,
    levels=tuples(load_levels, 2, shortest=1),
    load_factor=numbers,
    load_factor_low=numbers,
    load_factor_high=st.none() | numbers,
    demand_per_second=above_zero,
    ended=texts,
)
further_limits = st.builds(
    ExtraLimit, limit_ms=above_zero, measurement=measurements, excess=numbers
)


def _could_be_written(record: TrialRecord) -> bool:
    """Whether a run could have come to it: what is ok was measured and has a score."""
    return record.outcome != "ok" or (record.measurement is not None and record.score is not None)


trial_records = st.builds(
    TrialRecord,
    number=counts,
    params=tuples(st.tuples(names, st.integers(-(2**63), 2**63 - 1) | numbers | texts)),
    config=serving_configs,
    reason=texts,
    machine=names,
    measurement=st.none() | measurements,
    score=st.none()
    | st.builds(
        Score,
        usd_per_million_at_capacity=numbers,
        replicas=counts,
        fleet_usd_per_hour=numbers,
        usd_per_million_at_demand=numbers,
    ),
    told_value=st.none() | numbers,
    constraints=tuples(st.tuples(names, numbers)),
    failure=st.none() | st.builds(Failure, kind=names, transient=st.booleans()),
    seconds=st.builds(Seconds, building=numbers, measuring=numbers, serving=numbers, total=numbers),
    attempt=st.integers(1, 2),
    origin=st.none() | names,
    further=tuples(further_limits, 2),
    told_further=tuples(numbers),
    workers=tuples(names),
    told_at_proposal=st.none() | counts,
    told_position=st.none() | counts,
    calibrated_by=st.none() | counts,
).filter(_could_be_written)
