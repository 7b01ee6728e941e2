"""Which live figures are no longer those that were measured, model by model. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from optimizer.export.deployment import MeasuredModel
from optimizer.export.monitoring import expressions
from optimizer.export.monitoring.expressions import selected

NEAR_LIMIT = 0.8
DRIFT = 0.1
"""Share by which a latency may leave what was measured."""

QUEUE_DRIFT = 0.5
BATCH_DRIFT = 0.25
NEAR_CAPACITY = 0.8
"""Of the capacity: at less, batches are smaller than those that were measured there."""

MOST_FAILURES = 0.01


@dataclass(frozen=True)
class Live:
    """Figures of one server, with which an alert is tried.

    Attributes:
        failures: share of the requests.
    """

    requests_per_second: float
    latency_ms: float
    queue_ms: float
    batch_size: float
    failures: float = 0.0


@dataclass(frozen=True)
class Alert:
    """A rule of Prometheus, and a state of the server that sets it off.

    Attributes:
        wait: how long it must hold.
        instance: state in which the alert is on.
    """

    name: str
    expression: str
    wait: str
    severity: Literal["warning", "critical"]
    summary: str
    description: str
    instance: Live


def healthy(model: MeasuredModel) -> Live:
    """The server at its capacity, as it was measured; nothing is on."""
    return Live(
        requests_per_second=0.9 * model.requests_per_second,
        latency_ms=min(model.latency_ms, 0.5 * model.limit.latency_ms),
        queue_ms=model.queue_ms or 0.0,
        batch_size=model.batch_size or 1.0,
    )


def alerts(model: MeasuredModel) -> Iterator[Alert]:
    """All alerts of one model, the gravest first."""
    yield from _limit_alerts(model)
    yield _failing(model)
    yield _over_capacity(model)
    yield _slower(model)
    if model.queue_ms is not None:
        yield _queueing(model, model.queue_ms)
    if model.batch_size is not None:
        yield from _batch_alerts(model, model.batch_size)


def _limit_alerts(model: MeasuredModel) -> Iterator[Alert]:
    limit, percentile = model.limit.latency_ms, f"p{model.limit.percentile:g}"
    live, near = expressions.latency_ms(model), NEAR_LIMIT * limit
    text = (
        f"{percentile} inside the server, network and client excluded, of a limit of {limit:g} ms"
    )
    yield Alert(
        "TritonLatencyOverLimit",
        f"{live} > {limit:g}",
        "5m",
        "critical",
        f"{percentile} of {model.name} is over its limit on {{{{ $labels.instance }}}}",
        text,
        _changed(model, latency_ms=1.2 * limit),
    )
    yield Alert(
        "TritonLatencyNearLimit",
        f"({live} > {near:g}) <= {limit:g}",
        "10m",
        "warning",
        f"{percentile} of {model.name} is near its limit on {{{{ $labels.instance }}}}",
        text,
        _changed(model, latency_ms=0.9 * limit),
    )


def _failing(model: MeasuredModel) -> Alert:
    return Alert(
        "TritonRequestsFail",
        f"{expressions.failures(selected(model))} > {MOST_FAILURES:g}",
        "5m",
        "critical",
        f"Requests to {model.name} fail on {{{{ $labels.instance }}}}",
        f"more than {MOST_FAILURES:.0%} of them; none did when it was measured",
        _changed(model, failures=0.1),
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
        _changed(model, requests_per_second=1.2 * capacity),
    )


def _slower(model: MeasuredModel) -> Alert:
    ceiling, percentile = (1 + DRIFT) * model.latency_ms, f"p{model.limit.percentile:g}"
    return Alert(
        "TritonLatencyDrift",
        _within_capacity(model, f"({expressions.latency_ms(model)} > {ceiling:.6g})"),
        "15m",
        "warning",
        f"{model.name} is slower than it was measured on {{{{ $labels.instance }}}}",
        f"{percentile} was {model.latency_ms:.4g} ms at {model.requests_per_second:.4g} requests/s,"
        " and it is asked for no more than that",
        _changed(model, latency_ms=1.2 * ceiling),
    )


def _queueing(model: MeasuredModel, measured_ms: float) -> Alert:
    ceiling = max((1 + QUEUE_DRIFT) * measured_ms, measured_ms + 0.05 * model.limit.latency_ms)
    return Alert(
        "TritonQueueDrift",
        _within_capacity(model, f"({expressions.queue_ms(selected(model))} > {ceiling:.6g})"),
        "15m",
        "warning",
        f"{model.name} queues longer than was measured on {{{{ $labels.instance }}}}",
        f"the mean was {measured_ms:.4g} ms at {model.requests_per_second:.4g} requests/s,"
        " and it is asked for no more than that",
        _changed(model, queue_ms=1.5 * ceiling),
    )


def _batch_alerts(model: MeasuredModel, measured: float) -> Iterator[Alert]:
    live, capacity = expressions.batch_size(selected(model)), model.requests_per_second
    least, most = (1 - BATCH_DRIFT) * measured, (1 + BATCH_DRIFT) * measured
    text = f"a mean batch was {measured:.4g} inferences at {capacity:.4g} requests/s"
    if least >= 1:
        near = f"{expressions.requests(selected(model))} > {NEAR_CAPACITY * capacity:.6g}"
        yield Alert(
            "TritonBatchesSmaller",
            f"({live} < {least:.6g}) and on (instance, model) ({near})",
            "15m",
            "warning",
            f"Batches of {model.name} are smaller than measured on {{{{ $labels.instance }}}}",
            f"{text}: other shapes, other client batches, or requests that come otherwise",
            _changed(model, batch_size=(1 + least) / 2 if least > 1 else 0.9),
        )
    yield Alert(
        "TritonBatchesLarger",
        _within_capacity(model, f"({live} > {most:.6g})"),
        "15m",
        "warning",
        f"Batches of {model.name} are larger than measured on {{{{ $labels.instance }}}}",
        f"{text}: a server that is slower than it was, or requests that come in bursts",
        _changed(model, batch_size=1.2 * most),
    )


def _within_capacity(model: MeasuredModel, condition: str) -> str:
    asked = expressions.requests(selected(model))
    return f"{condition} and on (instance, model) ({asked} <= {model.requests_per_second:.6g})"


def _changed(model: MeasuredModel, **figures: float) -> Live:
    at = healthy(model)
    return Live(**{**vars(at), **figures})


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
