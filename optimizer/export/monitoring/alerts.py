"""Alerts for production: which live figures differ from the measured ones, model by model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from optimizer.export.deployment import Deployment, MeasuredModel
from optimizer.export.monitoring import expressions
from optimizer.export.monitoring.expressions import selected
from optimizer.export.monitoring.server_states import (
    NEAR_CAPACITY,
    ServerState,
    at_capacity,
    below_capacity,
    expected_latency_ms,
)

NEAR_LIMIT = 0.8
_TOO_NEAR_LIMIT = 0.98
"""Share of the limit from which on a warning would only come together with the alert itself."""

DRIFT = 0.1
"""Share by which a latency may differ from the measured one."""

QUEUE_DRIFT = 0.5
BATCH_DRIFT = 0.25

FAILURE_LIMIT = 0.01

_INSTANCE = "{{ $labels.instance }}"


@dataclass(frozen=True)
class Alert:
    """A rule of Prometheus, and a state of the servers in which it fires.

    Attributes:
        wait: how long its condition must hold.
        servers: with which it fires; because of the first.
        by_instance: whether it names a server, or is about all of them.
    """

    name: str
    expression: str
    wait: str
    severity: Literal["warning", "critical"]
    summary: str
    description: str
    servers: tuple[ServerState, ...]
    by_instance: bool = True


def alerts(deployment: Deployment, model: MeasuredModel) -> Iterator[Alert]:
    """Yield all alerts of one model, the most severe first; of a step those of its batcher."""
    if not model.step:
        yield from _service_alerts(deployment, model)
    if model.queue_ms is not None:
        yield _queue_drift(deployment, model, model.queue_ms)
    if model.queue_ms is not None and model.batch_size is not None:
        yield from _smaller_batches(model, model.queue_ms, model.batch_size)
    if model.batch_size is not None:
        yield from _larger_batches(deployment, model, model.batch_size)


def _service_alerts(deployment: Deployment, model: MeasuredModel) -> Iterator[Alert]:
    """Yield alerts about what clients get."""
    yield _down(model)
    if deployment.replicas > 1:
        yield _instance_gone(deployment, model)
    yield _no_replies(model)
    yield _over_limit(model)
    yield from _near_limit(model)
    yield _failing(model)
    yield _over_capacity(model)
    yield from _latency_drift(deployment, model)


def _down(model: MeasuredModel) -> Alert:
    return Alert(
        "TritonDown",
        f"absent({expressions.SUCCESS}{selected(model)})",
        "5m",
        "critical",
        f"No server reports metrics of {model.name}",
        "No server with this model is up, or Prometheus reaches none: check the servers and their"
        " logs, then the targets of Prometheus.",
        (replace(at_capacity(model), gone_after_minutes=10),),
        by_instance=False,
    )


def _instance_gone(deployment: Deployment, model: MeasuredModel) -> Alert:
    """Alert on fewer instances than the demand needs, if there were more within the last hour.

    Autoscaling never goes below that number, so it cannot have removed the instance.
    """
    live = expressions.instances(selected(model))
    return Alert(
        "TritonInstanceGone",
        f"({live} < max_over_time(({live})[1h:1m])) < {deployment.replicas}",
        "10m",
        "warning",
        f"An instance of {model.name} has disappeared within the last hour",
        f"The demand of the study needs {deployment.replicas} instances: look for one that is down"
        " or that Prometheus no longer reaches.",
        (replace(at_capacity(model), gone_after_minutes=10), at_capacity(model)),
        by_instance=False,
    )


def _no_replies(model: MeasuredModel) -> Alert:
    """Alert on a server without replies, for which no other alert can fire."""
    pending = f"{expressions.pending(selected(model))} > 0"
    return Alert(
        "TritonNoReplies",
        f"({pending}) and on (instance, model) ({expressions.requests(selected(model))} == 0)",
        "5m",
        "critical",
        f"Requests to {model.name} are pending and none is answered on {_INSTANCE}",
        "The server no longer executes anything: keep its log, and restart it.",
        (replace(at_capacity(model), requests_per_second=0.0, latency_ms=math.nan),),
    )


def _percentile(model: MeasuredModel) -> str:
    return f"p{model.limit.percentile:g}"


def _over_limit(model: MeasuredModel) -> Alert:
    limit = model.limit.latency_ms
    return Alert(
        "TritonLatencyOverLimit",
        f"{expressions.latency_ms(model)} > {limit:g}",
        "5m",
        "critical",
        f"{_percentile(model)} latency of {model.name} is over its limit on {_INSTANCE}",
        f"The latency inside the server, without network and client, is over {limit:g} ms. Start"
        " more instances if TritonOverCapacity fires too; otherwise check what has changed on the"
        " machine and in the requests, or roll back.",
        (replace(at_capacity(model), latency_ms=1.2 * limit),),
    )


def _near_limit(model: MeasuredModel) -> Iterator[Alert]:
    """Warn from halfway between the measured latency and the limit where that is above 80 %."""
    limit = model.limit.latency_ms
    near = max(NEAR_LIMIT * limit, (expected_latency_ms(model) + limit) / 2)
    if near > _TOO_NEAR_LIMIT * limit:
        return
    yield Alert(
        "TritonLatencyNearLimit",
        f"({expressions.latency_ms(model)} > {near:.6g}) <= {limit:g}",
        "10m",
        "warning",
        f"{_percentile(model)} latency of {model.name} is near its limit on {_INSTANCE}",
        f"The latency inside the server, without network and client, approaches {limit:g} ms; it"
        f" was {model.latency_ms:.4g} ms at the capacity. Start more instances before the limit is"
        " missed.",
        (replace(at_capacity(model), latency_ms=(near + limit) / 2),),
    )


def _failing(model: MeasuredModel) -> Alert:
    return Alert(
        "TritonRequestsFail",
        f"{expressions.failures(selected(model))} > {FAILURE_LIMIT:g}",
        "5m",
        "critical",
        f"Requests to {model.name} fail on {_INSTANCE}",
        f"More than {FAILURE_LIMIT:.0%} of the requests fail; none failed in the measurement. The"
        f" server's log gives the reason, and the label reason of {expressions.FAILURE} tells"
        " whether the model failed (BACKEND) or the client gave up (CANCELED).",
        (replace(at_capacity(model), failures=0.1),),
    )


def _over_capacity(model: MeasuredModel) -> Alert:
    capacity = model.requests_per_second
    return Alert(
        "TritonOverCapacity",
        f"{expressions.requests(selected(model))} > {capacity:.6g}",
        "5m",
        "warning",
        f"{model.name} receives more requests than its measured capacity on {_INSTANCE}",
        f"One instance serves {capacity:.4g} requests/s within the limit: start more of them.",
        (replace(at_capacity(model), requests_per_second=1.2 * capacity),),
    )


def _latency_drift(deployment: Deployment, model: MeasuredModel) -> Iterator[Alert]:
    """Alert on drift, unless the alert for the limit fires first."""
    ceiling, limit = (1 + DRIFT) * expected_latency_ms(model), model.limit.latency_ms
    if ceiling >= limit:
        return
    yield Alert(
        "TritonLatencyDrift",
        _below_capacity_only(deployment, f"{expressions.latency_ms(model)} > {ceiling:.6g}"),
        "15m",
        "warning",
        f"{model.name} is slower than measured on {_INSTANCE}",
        f"{_percentile(model)} was {model.latency_ms:.4g} ms {_at_capacity_text(model)}. Look for"
        " other load on the machine, longer inputs or another version; `python -m optimizer"
        " verify` measures it again.",
        (replace(below_capacity(model), latency_ms=(ceiling + limit) / 2),),
    )


def _max_queue_ms(model: MeasuredModel, measured_ms: float) -> float:
    small = 0.05 * model.limit.latency_ms
    return max((1 + QUEUE_DRIFT) * measured_ms, measured_ms + small, model.queue_delay_ms + small)


def _queue_drift(deployment: Deployment, model: MeasuredModel, measured_ms: float) -> Alert:
    ceiling = _max_queue_ms(model, measured_ms)
    live = expressions.queue_ms(selected(model))
    return Alert(
        "TritonQueueDrift",
        _below_capacity_only(deployment, f"{live} > {ceiling:.6g}"),
        "15m",
        "warning",
        f"Requests to {model.name} queue longer than measured on {_INSTANCE}",
        f"The mean queue time was {measured_ms:.4g} ms {_at_capacity_text(model)}. The server is"
        " slower than it was, or requests arrive in bursts.",
        (replace(below_capacity(model), queue_ms=1.5 * ceiling),),
    )


def _smaller_batches(model: MeasuredModel, measured_ms: float, measured: float) -> Iterator[Alert]:
    """Alert only where requests queue longer than measured: a shorter queue has smaller batches."""
    least, ceiling_ms = (1 - BATCH_DRIFT) * measured, _max_queue_ms(model, measured_ms)
    if least <= 1:
        return
    batch, queue = expressions.batch_size(selected(model)), expressions.queue_ms(selected(model))
    yield Alert(
        "TritonBatchesSmaller",
        f"({batch} < {least:.6g}) and on (instance, model) ({queue} > {ceiling_ms:.6g})",
        "15m",
        "warning",
        f"Requests to {model.name} queue, but its batches are small on {_INSTANCE}",
        f"The mean batch was {measured:.4g} inferences with a mean queue time of"
        f" {measured_ms:.4g} ms. Check whether config.pbtxt is still the measured one; otherwise"
        " shapes or client batch sizes have changed, or requests arrive in bursts.",
        (replace(at_capacity(model), batch_size=(1 + least) / 2, queue_ms=1.5 * ceiling_ms),),
    )


def _larger_batches(
    deployment: Deployment, model: MeasuredModel, measured: float
) -> Iterator[Alert]:
    live, most = expressions.batch_size(selected(model)), (1 + BATCH_DRIFT) * measured
    if most >= model.largest_batch:
        return
    yield Alert(
        "TritonBatchesLarger",
        _below_capacity_only(deployment, f"{live} > {most:.6g}"),
        "15m",
        "warning",
        f"Batches of {model.name} are larger than measured on {_INSTANCE}",
        f"The mean batch was {measured:.4g} inferences {_at_capacity_text(model)}. The server is"
        " slower than it was, or requests arrive in bursts.",
        (replace(below_capacity(model), batch_size=(most + model.largest_batch) / 2),),
    )


def _below_capacity_only(deployment: Deployment, condition: str) -> str:
    """Restrict a condition to instances on which no model is near its capacity."""
    busy = (
        f"unless on (instance) ({expressions.requests(selected(each))}"
        f" > {NEAR_CAPACITY * each.requests_per_second:.6g})"
        for each in deployment.models
    )
    return " ".join((f"({condition})", *busy))


def _at_capacity_text(model: MeasuredModel) -> str:
    return (
        f"at {model.requests_per_second:.4g} requests/s, and the load is below"
        f" {NEAR_CAPACITY:.0%} of that"
    )
