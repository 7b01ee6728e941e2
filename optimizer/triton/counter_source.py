"""Reads the counters of running servers, by gRPC or HTTP. Nothing but reads is sent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol
from urllib.parse import quote

from optimizer.errors import ServerFailure, UsageError
from optimizer.files.untrusted import UnreadableError, parse_json
from optimizer.triton.client_errors import server_errors
from optimizer.triton.connections import fetch, triton_client
from optimizer.triton.counter_recording import CounterReading

_READ_SECONDS = 5.0


class CounterSource(Protocol):
    """Counters of one server. Every method raises ServerFailure where the server is gone."""

    def statistics(self) -> Mapping[str, Any]:
        """Return the answer of v2/models/stats: the counters of every model."""

    def config(self, model: str) -> Mapping[str, Any]:
        """Return the configuration that the server runs."""

    def close(self) -> None:
        """Close the connection."""


class GrpcCounters:
    """Reads over gRPC, at HOST:PORT."""

    def __init__(self, address: str) -> None:
        self._client = triton_client(address)

    def statistics(self) -> Mapping[str, Any]:
        """Return the counters of every model."""
        with server_errors("read the statistics"):
            answer: Mapping[str, Any] = self._client.get_inference_statistics(
                as_json=True, client_timeout=_READ_SECONDS
            )
        return answer

    def config(self, model: str) -> Mapping[str, Any]:
        """Return the configuration that the server runs."""
        with server_errors(f"read the configuration of {model}"):
            answer: Mapping[str, Any] = self._client.get_model_config(
                model, as_json=True, client_timeout=_READ_SECONDS
            )["config"]
        return answer

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class HttpCounters:
    """Reads over HTTP, at http://HOST:PORT."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def statistics(self) -> Mapping[str, Any]:
        """Return the counters of every model."""
        return self._get("v2/models/stats")

    def config(self, model: str) -> Mapping[str, Any]:
        """Return the configuration that the server runs."""
        return self._get(f"v2/models/{quote(model, safe='')}/config")

    def close(self) -> None:
        """Close nothing: each read has its own connection."""

    def _get(self, path: str) -> Mapping[str, Any]:
        try:
            answer = parse_json(fetch(f"{self._url}/{path}", _READ_SECONDS))
        except (OSError, UnreadableError) as error:
            raise ServerFailure(f"cannot read {self._url}/{path}: {error}") from error
        if not isinstance(answer, dict):
            raise ServerFailure(f"cannot read {self._url}/{path}: it must be an object")
        return answer


def counter_source(address: str) -> CounterSource:
    """Return the counters at HOST:PORT (gRPC) or http://HOST:PORT. Raises UsageError."""
    if address.startswith(("http://", "https://")):
        return HttpCounters(address)
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(
            f"{address}: must be HOST:PORT (gRPC), http://HOST:PORT, or an existing recording"
        )
    return GrpcCounters(address)


def metrics_url(address: str) -> str:
    """Return where a server at this address has its metrics by default."""
    host = address.partition("://")[2] if "://" in address else address
    return f"http://{host.rstrip('/').rpartition(':')[0]}:8002/metrics"


def read_counters(
    addresses: Sequence[str],
    metrics: Sequence[str],
    seconds: float,
    every_seconds: float,
    take: Callable[[CounterReading], None],
    model: str | None = None,
) -> None:
    """Read servers in turn, at equal intervals, and pass on every reading.

    Args:
        metrics: URL of the metrics of each server.
        seconds: how long; there are at least two readings.
        model: whose configuration and metrics are read; all of them where it is None.
    """
    with ExitStack() as stack:
        servers = []
        for address, url in zip(addresses, metrics, strict=True):
            source = counter_source(address)
            stack.callback(source.close)
            servers.append(_CounterReader(address, source, url, model))
        began = time.monotonic()
        for number in range(max(2, 1 + round(seconds / every_seconds))):
            time.sleep(max(0.0, began + number * every_seconds - time.monotonic()))
            for server in servers:
                take(server.read(began))


class _CounterReader:
    """Reads one server, and its configurations again wherever they have changed."""

    def __init__(self, name: str, source: CounterSource, url: str, model: str | None) -> None:
        self._name, self._source, self._url, self._model = name, source, url, model
        self._configs: dict[str, Mapping[str, Any]] = {}

    def read(self, began: float) -> CounterReading:
        """Return the next reading, with the reason where it failed."""
        at = round(time.monotonic() - began, 6)
        try:
            stats = self._source.statistics()
            at = round(time.monotonic() - began, 6)
            configs = dict(self._changed(stats))
        except ServerFailure as error:
            return CounterReading(at, self._name, error=str(error))
        return CounterReading(at, self._name, stats, configs, self._metrics())

    def _changed(self, stats: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for name in dict.fromkeys(row["name"] for row in stats.get("model_stats", ())):
            if self._model is not None and name != self._model:
                continue
            config = self._source.config(name)
            if self._configs.get(name) != config:
                self._configs[name] = config
                yield name, config

    def _metrics(self) -> str:
        """Return the metrics of inference; empty where the server has no such endpoint."""
        try:
            text = fetch(self._url, _READ_SECONDS).decode(errors="replace")
        except OSError:
            return ""
        own = "" if self._model is None else f'model="{self._model}"'
        return "".join(
            f"{line}\n"
            for line in text.splitlines()
            if line.startswith("nv_inference_") and own in line
        )
