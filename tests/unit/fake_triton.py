"""A fake Triton: gRPC's ModelInfer alone, which sleeps, fails or hangs as a test wants it to.

Faults cannot be ordered from the real server; what it does by itself is tested in tests/e2e.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent import futures

import grpc

from optimizer.load.level_plan import PreparedStream, Target
from optimizer.workload.request_sizes import LengthDistribution
from optimizer.workload.streams import LatencyLimit, Payloads, Stream
from optimizer.workload.transport import SerialisedRequest

BODIES = (b"first", b"second", b"third")
RATE = 100.0

Answer = Callable[[grpc.ServicerContext], None]


def at_once(context: grpc.ServicerContext) -> None:
    """Answer without delay."""


class FakeTriton:
    """Answers ModelInfer with any bytes, after `answer` has slept, failed or hung."""

    def __init__(self, answer: Answer = at_once, port: int = 0) -> None:
        self._answer = answer
        self._lock = threading.Lock()
        self._waiting = 0
        self.most_waiting = 0
        self.bodies: list[bytes] = []
        handler = grpc.method_handlers_generic_handler(
            "inference.GRPCInferenceService",
            {"ModelInfer": grpc.unary_unary_rpc_method_handler(self._infer)},
        )
        self._server = grpc.server(
            futures.ThreadPoolExecutor(32), [handler], options=[("grpc.so_reuseport", 0)]
        )
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self._server.start()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _infer(self, body: bytes, context: grpc.ServicerContext) -> bytes:
        with self._lock:
            self.bodies.append(body)
            self._waiting += 1
            self.most_waiting = max(self.most_waiting, self._waiting)
        try:
            self._answer(context)
        finally:
            with self._lock:
                self._waiting -= 1
        return b"logits"

    def die(self) -> None:
        """Drop every connection and listen no more."""
        self._server.stop(grace=None).wait()


def target(
    endpoint: str, bodies: tuple[bytes, ...] = BODIES, demand_per_second: float = RATE
) -> Target:
    payloads = Payloads((), LengthDistribution((32,), (1.0,)))
    limit = LatencyLimit(95, 100)
    stream = Stream("main", "bert", "poisson", payloads, limit, demand_per_second)
    requests = tuple(SerialisedRequest("bert", body) for body in bodies)
    return Target("grpc", endpoint, (PreparedStream(stream, requests),))


Serve = Callable[[Answer], FakeTriton]
