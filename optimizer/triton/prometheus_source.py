"""Counters of Triton as a Prometheus has scraped them, as readings like those of the servers.

Samples are taken as they were scraped and not at steps of the query: a step that is not the scrape
interval would repeat some counts and join others.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2

from optimizer.errors import RunError, UsageError
from optimizer.files.untrusted import UnreadableError, parse_json
from optimizer.triton.connections import fetch
from optimizer.triton.counter_recording import CounterReading

_PARTS: Mapping[str, tuple[str, str]] = {
    "nv_inference_request_success": ("success", "count"),
    "nv_inference_request_failure": ("fail", "count"),
    "nv_inference_request_duration_us": ("success", "ns"),
    "nv_inference_queue_duration_us": ("queue", "ns"),
    "nv_inference_compute_input_duration_us": ("compute_input", "ns"),
    "nv_inference_compute_infer_duration_us": ("compute_infer", "ns"),
    "nv_inference_compute_output_duration_us": ("compute_output", "ns"),
}
_COUNTS: Mapping[str, str] = {
    "nv_inference_count": "inference_count",
    "nv_inference_exec_count": "execution_count",
}
_QUERY_SECONDS = 120.0
_SELECTOR = re.compile(r"""[a-zA-Z_]\w*(=|!=|=~|!~)("[^"\\]*"|'[^'\\]*')""")


def check_selector(selector: str) -> None:
    """Check matchers of labels, such as namespace="prod",pod=~"bert.*". Raises UsageError."""
    rest = selector
    while rest:
        match = _SELECTOR.match(rest)
        if match is None or rest[match.end() :][:1] not in ("", ","):
            raise UsageError(
                '--selector: must be matchers of labels such as namespace="prod",job=~"triton.*"; '
                f"got {selector[:80]!r}"
            )
        rest = rest[match.end() :].lstrip(",")


def read_prometheus(
    url: str,
    range_seconds: float,
    selector: str,
    configs: Mapping[str, model_config_pb2.ModelConfig],
) -> tuple[CounterReading, ...]:
    """Return the samples of the last seconds, as readings of each instance.

    Args:
        url: of the Prometheus.
        selector: matchers of labels; empty for all instances.
        configs: of the models, which no metric tells.

    Raises:
        RunError: when the Prometheus does not answer.
        UsageError: when it has no such series.
    """
    names = "|".join((*_PARTS, *_COUNTS))
    query = f"{{{', '.join(filter(None, (f'__name__=~{chr(34)}{names}{chr(34)}', selector)))}}}"
    series = _series(url, f"{query}[{round(range_seconds)}s]")
    if not series:
        raise UsageError(
            f"{url} has no series of Triton in the last {range_seconds:g} s: check that it scrapes "
            f"the metrics endpoints of the servers, and --selector; the query was {query[-200:]}"
        )
    rows: dict[tuple[str, float], dict[tuple[str, str], dict[str, Any]]] = defaultdict(dict)
    for own in series:
        labels = own["metric"]
        key = (str(labels.get("model", "")), str(labels.get("version", "")))
        for at, value in own["values"]:
            reading = rows[str(labels.get("instance", url)), float(at)]
            row = reading.setdefault(key, _empty_row(*key))
            _add(row, labels["__name__"], float(value))
    first = min(at for _, at in rows)
    first_of = dict(sorted(rows, reverse=True))  # the least time of a replica comes last
    written = {
        name: json_format.MessageToDict(config, preserving_proto_field_name=True)
        for name, config in configs.items()
    }
    return tuple(
        CounterReading(
            round(at - first, 3),
            replica,
            {"model_stats": [*own.values()]},
            written if at == first_of[replica] else {},
        )
        for (replica, at), own in sorted(rows.items())
    )


def _series(url: str, query: str) -> Sequence[Mapping[str, Any]]:
    address = f"{url.rstrip('/')}/api/v1/query?query={quote(query, safe='')}"
    try:
        answer = parse_json(fetch(address, _QUERY_SECONDS))
        if answer["status"] != "success" or answer["data"]["resultType"] != "matrix":
            raise UnreadableError(str(answer.get("error", "no matrix")))
        result: Sequence[Mapping[str, Any]] = answer["data"]["result"]
    except (OSError, UnreadableError, KeyError, TypeError) as error:
        raise RunError(f"cannot query {url}: {error}") from error
    return result


def _empty_row(model: str, version: str) -> dict[str, Any]:
    parts = {part: {"count": 0, "ns": 0} for part, _ in _PARTS.values()}
    return {"name": model, "version": version, "inference_stats": parts}


def _add(row: dict[str, Any], metric: str, value: float) -> None:
    """Add a sample; a model has a series for each of its GPUs, and of its reasons to fail."""
    if metric in _COUNTS:
        name = _COUNTS[metric]
        row[name] = row.get(name, 0) + int(value)
        return
    part, field = _PARTS[metric]
    row["inference_stats"][part][field] += round(value * (1000 if field == "ns" else 1))
