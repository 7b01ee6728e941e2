"""Sending of serialised requests over gRPC or HTTP.

Requests were serialised before the level, and of a reply only its status is read. Errors are texts
that begin with a gRPC status name over both protocols: UNAVAILABLE where nothing listens at the
endpoint, DEADLINE_EXCEEDED after the timeout.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

import grpc

from optimizer.triton.connections import http_session, load_channel
from optimizer.workload.transport import SerialisedRequest

if TYPE_CHECKING:
    import aiohttp

METHOD = "/inference.GRPCInferenceService/ModelInfer"
REFUSED = "UNAVAILABLE"
"""Start of the error of a request that reached no server."""

_REJECTIONS = ("Exceeds maximum queue size", "Request timeout expired")
"""Parts of Triton's errors that its queue policy causes; their status is `REFUSED` as well."""

TOO_LATE = "DEADLINE_EXCEEDED"
"""Start of the error of a request that was not answered in time."""

Done = Callable[[str | None], None]
"""Called once, from any thread, when a request has ended: with its error, or None."""


def is_rejection(error: str) -> bool:
    """Return whether a server's queue policy rejected the request of an error."""
    return error.startswith(REFUSED) and any(part in error for part in _REJECTIONS)


class Transmitter(Protocol):
    """A connection to one server; good for one level."""

    def send(self, request: SerialisedRequest, timeout_seconds: float, done: Done) -> None:
        """Send a request without waiting; call `done` at its end, within the timeout."""

    def close(self) -> None:
        """Cancel outstanding requests and free the connection."""


class GrpcTransmitter:
    """Sends raw bytes over one gRPC channel; `done` is called on gRPC's own thread."""

    # Decision 2026-11-23: the synchronous stub's `.future()` with a callback, one channel, bytes in
    # and bytes out. Against a real Triton 2.51 (identity model, sequence 128), client alone on a
    # core:
    #
    #     requests/s | p99 lag ms: future  aio   64 threads | CPU s per 1,000: future  aio   threads
    #     500        |             0.38    1.88  0.29       |                  0.36    0.25  0.27
    #     1000       |             0.27    1.11  0.28       |                  0.25    0.22  0.23
    #     1500       |             1.53    1.13  1.73       |                  0.25    0.19  0.19
    #
    # asyncio's timers wake about 0.5 ms late at the median (future: 0.08 ms), and a pool of threads
    # caps the requests outstanding, which closes the loop under overload. The price is CPU: this
    # client took the most in every row.

    def __init__(self, address: str) -> None:
        self._channel = load_channel(address)
        self._infer = self._channel.unary_unary(METHOD, None, None)

    def send(self, request: SerialisedRequest, timeout_seconds: float, done: Done) -> None:
        """Send a request without waiting; `done` is called on gRPC's thread."""
        call = self._infer.future(request.body, timeout=timeout_seconds)
        call.add_done_callback(partial(_report_end, done))

    def close(self) -> None:
        """Close the channel, which cancels its calls."""
        self._channel.close()


def _report_end(done: Done, call: grpc.Future[bytes]) -> None:
    assert isinstance(call, grpc.Call)
    code = call.code()
    done(None if code is grpc.StatusCode.OK else f"{code.name}: {call.details()}")


class HttpTransmitter:
    """The v2 inference protocol over HTTP/1.1, on an event loop in a thread of its own.

    Each outstanding request has a connection, since HTTP/1.1 takes one at a time; connections stay
    open between requests.
    """

    def __init__(self, address: str) -> None:
        self._base = f"http://{address}"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._session = asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()

    async def _open(self) -> aiohttp.ClientSession:
        return http_session()

    def send(self, request: SerialisedRequest, timeout_seconds: float, done: Done) -> None:
        """Send a request without waiting; `done` is called on the loop's thread."""
        asyncio.run_coroutine_threadsafe(self._exchange(request, timeout_seconds, done), self._loop)

    async def _exchange(
        self, request: SerialisedRequest, timeout_seconds: float, done: Done
    ) -> None:
        from aiohttp import ClientError

        headers = {"Content-Type": "application/json"}
        if request.json_bytes is not None:
            headers["Content-Type"] = "application/octet-stream"
            headers["Inference-Header-Content-Length"] = str(request.json_bytes)
        version = f"/versions/{request.version}" if request.version else ""
        url = f"{self._base}/v2/models/{request.model}{version}/infer"
        try:
            async with (
                asyncio.timeout(timeout_seconds),
                self._session.post(url, data=request.body, headers=headers) as reply,
            ):
                body = await reply.read()
            error = None if reply.status == 200 else f"{_status(reply.status)}: {_text(body)}"
        except TimeoutError:
            error = f"{TOO_LATE}: no reply in time"
        except (ClientError, OSError) as cause:
            error = f"{REFUSED}: {cause}"
        done(error)

    def close(self) -> None:
        """Close the session and end the loop's thread."""
        asyncio.run_coroutine_threadsafe(self._session.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _status(http_status: int) -> str:
    """Return the gRPC name of an HTTP status, as Triton uses them."""
    names = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 503: REFUSED, 504: "DEADLINE_EXCEEDED"}
    return names.get(http_status, f"HTTP {http_status}")


def _text(body: bytes) -> str:
    return " ".join(body.decode(errors="replace").split())[:500]


TRANSMITTERS: dict[str, Callable[[str], Transmitter]] = {
    "grpc": GrpcTransmitter,
    "http": HttpTransmitter,
}
"""Transmitters by protocol; their argument is host:port."""
