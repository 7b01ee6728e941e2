"""Live figures of one model in PromQL, from Triton's own metrics: one series per server."""

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
"""Metric of a pod that the HorizontalPodAutoscaler reads."""

WINDOW = "5m"


def selected(model: MeasuredModel, *matchers: str) -> str:
    """Return the label selector of a model's series, quoted for PromQL."""
    return "{" + ",".join([f"model={json.dumps(model.name, ensure_ascii=False)}", *matchers]) + "}"


def _rate(metric: str, selector: str) -> str:
    return f"sum by (instance, model) (rate({metric}{selector}[{WINDOW}]))"


def succeeded(selector: str) -> str:
    """Return the rate of successful requests, per second."""
    return _rate(SUCCESS, selector)


def requests(selector: str) -> str:
    """Return the request rate, failed requests included, per second."""
    return f"{_rate(SUCCESS, selector)} + {_rate(FAILURE, selector)}"


def failures(selector: str) -> str:
    """Return the share of failed requests."""
    return f"{_rate(FAILURE, selector)} / ({requests(selector)})"


def queue_ms(selector: str) -> str:
    """Return the mean queue time."""
    return f"{_rate(QUEUE_US, selector)} / {_rate(SUCCESS, selector)} / 1000"


def batch_size(selector: str) -> str:
    """Return the mean batch size of executions."""
    return f"{_rate(COUNT, selector)} / {_rate(EXECUTIONS, selector)}"


def pending(selector: str) -> str:
    """Return the number of pending requests."""
    return f"sum by (instance, model) ({PENDING}{selector})"


def instances(selector: str) -> str:
    """Return the number of servers that report the model."""
    return f"count by (model) (sum by (instance, model) ({SUCCESS}{selector}))"


def latency_ms(model: MeasuredModel, *matchers: str) -> str:
    """Return the latency inside the server at the limit's percentile, over about a minute."""
    own = selected(model, *matchers, f'quantile="{model.limit.percentile / 100:g}"')
    return f"max by (instance, model) ({LATENCY_US}{own}) / 1000"
