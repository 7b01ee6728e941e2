"""The gauges of the server's own metrics endpoint (Prometheus text format)."""

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
_ANSWER_SECONDS = 2.0


def gauges(address: str) -> tuple[tuple[str, float], ...]:
    """Machine gauges by name, summed over devices; empty where the server offers none.

    Args:
        address: host:port of the metrics endpoint.
    """
    try:
        text = fetch(f"http://{address}/metrics", _ANSWER_SECONDS).decode()
    except OSError:
        return ()
    found: defaultdict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in _GAUGES:
                found[sample.name] += sample.value
    return tuple(sorted(found.items()))
