"""Live figures of one model as PromQL over Triton's own metrics, one series for each server."""

from __future__ import annotations

import json

from optimizer.export.deployment import MeasuredModel

SUCCESS = "nv_inference_request_success"
FAILURE = "nv_inference_request_failure"
COUNT = "nv_inference_count"
EXECUTIONS = "nv_inference_exec_count"
PENDING = "nv_inference_pending_request_count"
QUEUE_US = "nv_inference_queue_duration_us"
LATENCY_US = "nv_inference_request_summary_us"
GPU_UTILIZATION = "nv_gpu_utilization"
GPU_MEMORY_BYTES = "nv_gpu_memory_used_bytes"

REQUESTS_PER_SECOND = "triton_requests_per_second"
"""Of a pod, as autoscaling is told."""

WINDOW = "5m"


def selected(model: MeasuredModel, *further: str) -> str:
    """The label selector of a model's series, quoted as PromQL wants it."""
    return "{" + ",".join([f"model={json.dumps(model.name, ensure_ascii=False)}", *further]) + "}"


def _rate(metric: str, selector: str) -> str:
    return f"sum by (instance, model) (rate({metric}{selector}[{WINDOW}]))"


def answered(selector: str) -> str:
    """Good replies a second."""
    return _rate(SUCCESS, selector)


def requests(selector: str) -> str:
    """Requests a second, failed ones too."""
    return f"{_rate(SUCCESS, selector)} + {_rate(FAILURE, selector)}"


def failures(selector: str) -> str:
    """Share of requests that failed."""
    return f"{_rate(FAILURE, selector)} / ({requests(selector)})"


def queue_ms(selector: str) -> str:
    """Mean time in the queue."""
    return f"{_rate(QUEUE_US, selector)} / {_rate(SUCCESS, selector)} / 1000"


def batch_size(selector: str) -> str:
    """Mean inferences of an execution."""
    return f"{_rate(COUNT, selector)} / {_rate(EXECUTIONS, selector)}"


def waiting(selector: str) -> str:
    """Requests that no execution has begun with."""
    return f"sum by (instance, model) ({PENDING}{selector})"


def instances(selector: str) -> str:
    """Servers that show the model, over all of them."""
    return f"count by (model) (sum by (instance, model) ({SUCCESS}{selector}))"


def latency_ms(model: MeasuredModel, *further: str) -> str:
    """The limit's percentile of the latency inside the server, over its last minute or so."""
    own = selected(model, *further, f'quantile="{model.limit.percentile / 100:g}"')
    return f"max by (instance, model) ({LATENCY_US}{own}) / 1000"
