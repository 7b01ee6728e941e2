"""Which live figures are no longer those that were measured, model by model. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from optimizer.export.deployment import Deployment, MeasuredModel
from optimizer.export.monitoring import expressions
from optimizer.export.monitoring.expressions import selected
from optimizer.export.monitoring.live import (
    NEAR_CAPACITY,
    Live,
    at_capacity,
    longest_ms,
    with_room,
)

NEAR_LIMIT = 0.8
_TOO_NEAR_LIMIT = 0.98
"""Of the limit: a warning from there on comes together with what it warns of."""

DRIFT = 0.1
"""Share by which a latency may leave what was measured."""

QUEUE_DRIFT = 0.5
BATCH_DRIFT = 0.25

MOST_FAILURES = 0.01


@dataclass(frozen=True)
class Alert:
    """A rule of Prometheus, and a state of the servers that sets it off.

    Attributes:
        wait: how long it must hold.
        servers: with which it is on; because of the first.
        by_instance: whether it names the server, or is about all of them.
    """

    name: str
    expression: str
    wait: str
    severity: Literal["warning", "critical"]
    summary: str
    description: str
    servers: tuple[Live, ...]
    by_instance: bool = True


def alerts(deployment: Deployment, model: MeasuredModel) -> Iterator[Alert]:
    """All alerts of one of its models, the gravest first."""
    yield _down(model)
    if deployment.replicas > 1:
        yield _fewer(deployment, model)
    yield _stuck(model)
    yield _over_limit(model)
    yield from _near_limit(model)
    yield _failing(model)
    yield _over_capacity(model)
    yield from _slower(deployment, model)
    if model.queue_ms is not None:
        yield _queueing(deployment, model, model.queue_ms)
    if model.queue_ms is not None and model.batch_size is not None:
        yield from _smaller_batches(model, model.queue_ms, model.batch_size)
    if model.batch_size is not None:
        yield from _larger_batches(deployment, model, model.batch_size)


def _down(model: MeasuredModel) -> Alert:
    return Alert(
        "TritonDown",
        f"absent({expressions.SUCCESS}{selected(model)})",
        "5m",
        "critical",
        f"No server shows {model.name}",
        "none is up with this model, or Prometheus reaches none: look at the servers and their"
        " logs, then at the targets of Prometheus",
        (replace(at_capacity(model), gone_after_minutes=10),),
        by_instance=False,
    )


def _fewer(deployment: Deployment, model: MeasuredModel) -> Alert:
    """Those for the demand are the least that autoscaling leaves: fewer are not its doing.

    Where there never were as many, none has gone.
    """
    live = expressions.instances(selected(model))
    return Alert(
        "TritonInstanceGone",
        f"({live} < max_over_time(({live})[1h:1m])) < {deployment.replicas}",
        "10m",
        "warning",
        f"An instance of {model.name} has gone within the hour",
        f"the demand of the study needs {deployment.replicas} of them: look for one that is down,"
        " or that Prometheus no longer reaches",
        (replace(at_capacity(model), gone_after_minutes=10), at_capacity(model)),
        by_instance=False,
    )


def _stuck(model: MeasuredModel) -> Alert:
    """Such a server has no latency, queue or failures: no other alert sees it."""
    waiting = f"{expressions.waiting(selected(model))} > 0"
    return Alert(
        "TritonNoReplies",
        f"({waiting}) and on (instance, model) ({expressions.requests(selected(model))} == 0)",
        "5m",
        "critical",
        f"Requests to {model.name} wait and none is answered on {{{{ $labels.instance }}}}",
        "it executes nothing any more: keep its log, and restart the server",
        (replace(at_capacity(model), requests_per_second=0.0, latency_ms=math.nan),),
    )


def _inside(model: MeasuredModel) -> str:
    return (
        f"p{model.limit.percentile:g} inside the server, network and client excluded,"
        f" of a limit of {model.limit.latency_ms:g} ms"
    )


def _over_limit(model: MeasuredModel) -> Alert:
    limit = model.limit.latency_ms
    return Alert(
        "TritonLatencyOverLimit",
        f"{expressions.latency_ms(model)} > {limit:g}",
        "5m",
        "critical",
        f"p{model.limit.percentile:g} of {model.name} is over its limit on"
        " {{ $labels.instance }}",
        f"{_inside(model)}: start more instances where TritonOverCapacity is on as well, else look"
        " at what has changed on the machine and in the requests, or roll back",
        (replace(at_capacity(model), latency_ms=1.2 * limit),),
    )


def _near_limit(model: MeasuredModel) -> Iterator[Alert]:
    """From halfway between what was measured and the limit, where that is near it already."""
    limit, longest = model.limit.latency_ms, longest_ms(model)
    near = max(NEAR_LIMIT * limit, (longest + limit) / 2)
    if near > _TOO_NEAR_LIMIT * limit:
        return
    yield Alert(
        "TritonLatencyNearLimit",
        f"({expressions.latency_ms(model)} > {near:.6g}) <= {limit:g}",
        "10m",
        "warning",
        f"p{model.limit.percentile:g} of {model.name} is near its limit on"
        " {{ $labels.instance }}",
        f"{_inside(model)}; it was {model.latency_ms:.4g} ms at the capacity: start more instances"
        " before the limit is missed",
        (replace(at_capacity(model), latency_ms=(near + limit) / 2),),
    )


def _failing(model: MeasuredModel) -> Alert:
    return Alert(
        "TritonRequestsFail",
        f"{expressions.failures(selected(model))} > {MOST_FAILURES:g}",
        "5m",
        "critical",
        f"Requests to {model.name} fail on {{{{ $labels.instance }}}}",
        f"more than {MOST_FAILURES:.0%} of them; none did when it was measured: the server's log"
        f" says why, and the label reason of {expressions.FAILURE} whether it is the model"
        " (BACKEND) or the client that gave up (CANCELED)",
        (replace(at_capacity(model), failures=0.1),),
    )


def _over_capacity(model: MeasuredModel) -> Alert:
    capacity = model.requests_per_second
    return Alert(
        "TritonOverCapacity",
        f"{expressions.requests(selected(model))} > {capacity:.6g}",
        "5m",
        "warning",
        f"{model.name} is asked for more than was measured on {{{{ $labels.instance }}}}",
        f"within its limit one instance serves {capacity:.4g} requests/s: start more of them",
        (replace(at_capacity(model), requests_per_second=1.2 * capacity),),
    )


def _slower(deployment: Deployment, model: MeasuredModel) -> Iterator[Alert]:
    """Where it is over the limit first, the alert for that says it all."""
    ceiling, limit = (1 + DRIFT) * longest_ms(model), model.limit.latency_ms
    if ceiling >= limit:
        return
    yield Alert(
        "TritonLatencyDrift",
        _with_room(deployment, f"{expressions.latency_ms(model)} > {ceiling:.6g}"),
        "15m",
        "warning",
        f"{model.name} is slower than it was measured on {{{{ $labels.instance }}}}",
        f"p{model.limit.percentile:g} was {model.latency_ms:.4g} ms {_at_capacity_text(model)}:"
        " look for what else runs on the machine, longer inputs, or another version; `python -m"
        " optimizer verify` measures it again",
        (replace(with_room(model), latency_ms=(ceiling + limit) / 2),),
    )


def _longest_queue_ms(model: MeasuredModel, measured_ms: float) -> float:
    little = 0.05 * model.limit.latency_ms
    return max((1 + QUEUE_DRIFT) * measured_ms, measured_ms + little, model.queue_delay_ms + little)


def _queueing(deployment: Deployment, model: MeasuredModel, measured_ms: float) -> Alert:
    ceiling = _longest_queue_ms(model, measured_ms)
    return Alert(
        "TritonQueueDrift",
        _with_room(deployment, f"{expressions.queue_ms(selected(model))} > {ceiling:.6g}"),
        "15m",
        "warning",
        f"{model.name} queues longer than was measured on {{{{ $labels.instance }}}}",
        f"the mean was {measured_ms:.4g} ms {_at_capacity_text(model)}: a server that is slower"
        " than it was, or requests that come in bursts",
        (replace(with_room(model), queue_ms=1.5 * ceiling),),
    )


def _smaller_batches(model: MeasuredModel, measured_ms: float, measured: float) -> Iterator[Alert]:
    """Only where requests wait longer than was measured: with a shorter queue they are smaller."""
    least, ceiling_ms = (1 - BATCH_DRIFT) * measured, _longest_queue_ms(model, measured_ms)
    if least <= 1:
        return
    batch, queue = expressions.batch_size(selected(model)), expressions.queue_ms(selected(model))
    yield Alert(
        "TritonBatchesSmaller",
        f"({batch} < {least:.6g}) and on (instance, model) ({queue} > {ceiling_ms:.6g})",
        "15m",
        "warning",
        f"Requests to {model.name} wait, but its batches are small on {{{{ $labels.instance }}}}",
        f"a mean batch was {measured:.4g} inferences with a queue of {measured_ms:.4g} ms: see"
        " whether config.pbtxt is still the one that was measured; else other shapes, other client"
        " batches, or requests that come in bursts",
        (replace(at_capacity(model), batch_size=(1 + least) / 2, queue_ms=1.5 * ceiling_ms),),
    )


def _larger_batches(
    deployment: Deployment, model: MeasuredModel, measured: float
) -> Iterator[Alert]:
    """No batch is larger than `largest_batch`."""
    live, most = expressions.batch_size(selected(model)), (1 + BATCH_DRIFT) * measured
    if most >= model.largest_batch:
        return
    yield Alert(
        "TritonBatchesLarger",
        _with_room(deployment, f"{live} > {most:.6g}"),
        "15m",
        "warning",
        f"Batches of {model.name} are larger than measured on {{{{ $labels.instance }}}}",
        f"a mean batch was {measured:.4g} inferences {_at_capacity_text(model)}: a server that is"
        " slower than it was, or requests that come in bursts",
        (replace(with_room(model), batch_size=(most + model.largest_batch) / 2),),
    )


def _with_room(deployment: Deployment, condition: str) -> str:
    """Unless the instance is near its capacity, for whichever of its models."""
    busy = (
        f"unless on (instance) ({expressions.requests(selected(each))}"
        f" > {NEAR_CAPACITY * each.requests_per_second:.6g})"
        for each in deployment.models
    )
    return " ".join((f"({condition})", *busy))


def _at_capacity_text(model: MeasuredModel) -> str:
    return (
        f"at {model.requests_per_second:.4g} requests/s, and it is asked for less than"
        f" {NEAR_CAPACITY:.0%} of that"
    )


Recording = tuple[str, Callable[[MeasuredModel], str]]

RECORDED: tuple[Recording, ...] = (
    (
        "instance_model:triton_requests:rate5m",
        lambda model: expressions.requests(selected(model)),
    ),
    (
        "instance_model:triton_failures:ratio_rate5m",
        lambda model: expressions.failures(selected(model)),
    ),
    ("instance_model:triton_queue_ms:mean5m", lambda model: expressions.queue_ms(selected(model))),
    (
        "instance_model:triton_batch_size:mean5m",
        lambda model: expressions.batch_size(selected(model)),
    ),
    (
        "instance_model:triton_capacity_used:ratio_rate5m",
        lambda model: (
            f"({expressions.requests(selected(model))}) / {model.requests_per_second:.6g}"
        ),
    ),
)
"""Series that are recorded of every model, by name."""
