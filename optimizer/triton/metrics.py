"""Gauges of the server's metrics endpoint (Prometheus text format)."""

from __future__ import annotations

from collections import defaultdict

from prometheus_client.parser import text_string_to_metric_families

from optimizer.triton.connections import fetch

_GAUGES = {
    "nv_cpu_memory_used_bytes",
    "nv_cpu_utilization",
    "nv_gpu_memory_used_bytes",
    "nv_gpu_power_usage",
    "nv_gpu_utilization",
    "nv_pinned_memory_pool_used_bytes",
}
_TIMEOUT_SECONDS = 2.0


def gauges(address: str) -> tuple[tuple[str, float], ...]:
    """Return machine gauges by name, summed over devices; empty without a metrics endpoint.

    Args:
        address: host:port of the endpoint.
    """
    try:
        text = fetch(f"http://{address}/metrics", _TIMEOUT_SECONDS).decode()
    except OSError:
        return ()
    values: defaultdict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in _GAUGES:
                values[sample.name] += sample.value
    return tuple(sorted(values.items()))
