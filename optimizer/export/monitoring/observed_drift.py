"""What a deployed bundle does in production, beside what was measured before its deployment.

The shares by which figures may differ are those of the exported alerts, whose names are given: an
alert says that something differs, and this says what.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2

from optimizer.errors import UsageError
from optimizer.export.bundle.manifest import Bundle
from optimizer.export.monitoring.alerts import BATCH_DRIFT, DRIFT, QUEUE_DRIFT
from optimizer.measurement.level import LoadLevel, ServerSplit
from optimizer.production.advice import Learnt
from optimizer.triton.model_config import differences
from optimizer.workload.arrivals import ArrivalPattern, ArrivalTrace, Bursts

_SAME_LOAD = 0.25
"""Relative difference of the load up to which queues and batches are compared."""

_LEAST_EXECUTIONS = 20
_LEAST_QUEUE_SHARE = 0.1
"""Of an execution: shorter queue times are not compared by their ratio."""


@dataclass(frozen=True)
class DriftFigure:
    """A figure as measured and as observed in production.

    Attributes:
        drifts: whether it differs by more than it may.
        alert: exported alert that fires because of it; empty where none does.
    """

    name: str
    measured: str
    observed: str
    drifts: bool
    alert: str = ""


def drift_figures(
    bundle: Bundle, learnt: Learnt, config: model_config_pb2.ModelConfig
) -> tuple[DriftFigure, ...]:
    """Compare a model in production with the measurements of its bundle.

    Args:
        config: that the server runs.

    Raises:
        UsageError: where the bundle has no such model, or no measurement of it.
    """
    manifest, name = bundle.manifest, learnt.stream.name
    exported = next((each for each in manifest.models if each.name == name), None)
    if exported is None:
        names = ", ".join(each.name for each in manifest.models)
        raise UsageError(f"--after: {bundle.root} has no model {name}; it has {names}")
    level = manifest.measured.at_demand or manifest.measured.at_capacity
    split = next((each for each in level.server if each.model == name), None) if level else None
    if level is None or split is None or not split.executions:
        raise UsageError(f"--after: {bundle.root} has no server statistics of {name}")
    wanted = json_format.ParseDict(
        dict(exported.config), model_config_pb2.ModelConfig(), ignore_unknown_fields=True
    )
    wrong = differences(wanted, config)
    return (
        DriftFigure("configuration", "as exported", "; ".join(wrong) or "the same", bool(wrong)),
        *_service_times(split, learnt.service.split),
        *_load(bundle, learnt),
        *_queue_and_batches(level, split, learnt),
    )


def _service_times(measured: ServerSplit, observed: ServerSplit) -> Iterator[DriftFigure]:
    """Compare the times of sizes that both have executed, weighted by production's executions."""
    then = {each.batch_size: each for each in measured.batches}
    pairs = [
        (then[each.batch_size], each)
        for each in observed.batches
        if each.batch_size in then
        and min(each.executions, then[each.batch_size].executions) >= _LEAST_EXECUTIONS
    ]
    if not pairs:
        yield DriftFigure("service time", "-", "no batch size was executed in both", False)
        return
    weights = [own.executions for _, own in pairs]
    before = sum(w * own.compute_ms for w, (own, _) in zip(weights, pairs, strict=True))
    now = sum(w * own.compute_ms for w, (_, own) in zip(weights, pairs, strict=True))
    sizes = f"batches of {', '.join(str(own.batch_size) for own, _ in pairs)}"
    yield DriftFigure(
        "service time",
        f"{before / sum(weights):.3g} ms ({sizes})",
        f"{now / sum(weights):.3g} ms ({now / before - 1:+.0%})",
        abs(now / before - 1) > DRIFT,
        "TritonLatencyDrift",
    )


def _load(bundle: Bundle, learnt: Learnt) -> Iterator[DriftFigure]:
    demand, planned = learnt.demand, bundle.manifest.recommended.per_replica_per_second
    mean = demand.mean_per_second / learnt.replicas
    peak = demand.peak_per_second / learnt.replicas
    yield DriftFigure(
        "load of a replica",
        f"{planned:.4g} requests/s",
        f"{mean:.4g} requests/s, at the peak {peak:.4g}",
        mean > (1 + DRIFT) * planned,
        "TritonOverCapacity",
    )
    own = next(each for each in bundle.load.workload.streams if each.target == learnt.stream.name)
    uneven = not isinstance(own.arrivals, str)
    yield DriftFigure(
        "arrivals",
        _arrivals_text(own.arrivals),
        demand.arrivals_text,
        isinstance(demand.arrivals, ArrivalTrace) and not uneven,
    )


def _arrivals_text(arrivals: ArrivalPattern) -> str:
    if isinstance(arrivals, Bursts):
        return "bursts"
    return "a recorded trace" if isinstance(arrivals, ArrivalTrace) else arrivals


def _queue_and_batches(
    level: LoadLevel, split: ServerSplit, learnt: Learnt
) -> Iterator[DriftFigure]:
    """Compare what depends on the load, where that is nearly the measured one."""
    observed = learnt.service.split
    mean = learnt.demand.mean_per_second / learnt.replicas
    measured = level.achieved_per_second
    comparable = abs(mean / measured - 1) <= _SAME_LOAD
    other = "" if comparable else f", at {measured:.4g} requests/s: not comparable"
    batches = [each.inferences / each.executions for each in (split, observed)]
    yield DriftFigure(
        "mean batch",
        f"{batches[0]:.3g}{other}",
        f"{batches[1]:.3g}",
        comparable and abs(batches[1] / batches[0] - 1) > BATCH_DRIFT,
        "TritonBatchesSmaller" if batches[1] < batches[0] else "TritonBatchesLarger",
    )
    least_ms = _LEAST_QUEUE_SHARE * split.compute_ms
    yield DriftFigure(
        "mean queue time",
        f"{split.queue_ms:.3g} ms{other}",
        f"{observed.queue_ms:.3g} ms",
        comparable and observed.queue_ms > (1 + QUEUE_DRIFT) * split.queue_ms + least_ms,
        "TritonQueueDrift",
    )
