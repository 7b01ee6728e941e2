"""Requests one after the other, each sent when the one before it is answered."""

from __future__ import annotations

import time
from threading import Event

from optimizer.errors import LoadTestFailure
from optimizer.load.level_plan import PreparedStream, Target
from optimizer.load.transmit import TRANSMITTERS, Transmitter
from optimizer.workload.transport import SerialisedRequest

_NO_MODEL = SerialisedRequest("no-model", b"")
"""A request that every server refuses at once."""


def latencies_ms(
    target: Target, stream: PreparedStream, count: int, timeout_seconds: float
) -> list[float]:
    """Send `count` requests of a stream, one after the other, and return their latencies.

    The connection is opened before the first of them by a request that reaches no model.

    Raises:
        LoadTestFailure: when a request fails or is not answered in time.
    """
    transmitter = TRANSMITTERS[target.protocol](target.address)
    try:
        _exchange(transmitter, _NO_MODEL, timeout_seconds)
        latencies = []
        for number in range(count):
            request = stream.prepared[number % len(stream.prepared)]
            latency_ms, error = _exchange(transmitter, request, timeout_seconds)
            if error is not None:
                raise LoadTestFailure(f"{request.model} did not answer: {error}")
            latencies.append(latency_ms)
        return latencies
    finally:
        transmitter.close()


def _exchange(
    transmitter: Transmitter, request: SerialisedRequest, timeout_seconds: float
) -> tuple[float, str | None]:
    """Return the latency in ms, and the error of a request that failed."""
    answered, errors = Event(), list[str | None]()

    def done(error: str | None) -> None:
        errors.append(error)
        answered.set()

    started = time.perf_counter()
    transmitter.send(request, timeout_seconds, done)
    answered.wait()
    return (time.perf_counter() - started) * 1e3, errors[0]
