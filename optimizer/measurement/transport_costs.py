"""What ways of sending the same inferences cost. Pure values.

`optimizer.search.transport_costs` measures them.
"""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.configuration.serving_config import ServingConfig
from optimizer.workload.transport import Transport

_ALIKE = 0.05
"""Relative difference of throughputs that is none in practice."""


@dataclass(frozen=True)
class SentAs:
    """How inferences are sent: over a transport, some of them in one request."""

    transport: Transport
    batch_size: int = 1

    @property
    def name(self) -> str:
        """The transport in words, such as "HTTP with JSON"."""
        transport = self.transport
        protocol = {"grpc": "gRPC", "http": "HTTP"}[transport.protocol]
        if transport.shared_memory:
            return f"{protocol} with shared memory"
        if transport.protocol == "grpc":
            return protocol
        return f"{protocol} with {'JSON' if transport.encoding == 'json' else 'binary tensors'}"


@dataclass(frozen=True)
class TransportCost:
    """The figures of one transport, most of them means over the rounds.

    Attributes:
        throughputs_per_second: inferences at saturation, in each round.
        light_p50_ms, light_p95_ms, moderate_p50_ms, moderate_p95_ms: latency at the two rates that
            all transports have in common.
        client_cpu_ms, server_cpu_ms: CPU time of load generator and server for an inference, at the
            moderate rate; None where the server's is unknown.
        lag_ms: how late the load generator sent at most, p99 of a level.
    """

    sent_as: SentAs
    throughputs_per_second: tuple[float, ...]
    light_p50_ms: float
    light_p95_ms: float
    moderate_p50_ms: float
    moderate_p95_ms: float
    client_cpu_ms: float
    server_cpu_ms: float | None
    lag_ms: float

    @property
    def throughput_per_second(self) -> float:
        """Inferences at saturation, the mean over the rounds."""
        return sum(self.throughputs_per_second) / len(self.throughputs_per_second)

    def serves_less_than(self, other: TransportCost) -> bool:
        """Return whether every round served clearly less than every round of another."""
        most, least = max(self.throughputs_per_second), min(other.throughputs_per_second)
        clearly = self.throughput_per_second < (1 - _ALIKE) * other.throughput_per_second
        return clearly and most < least


@dataclass(frozen=True)
class RefusedTransport:
    """A transport that could not be measured, and why not."""

    sent_as: SentAs
    reason: str


@dataclass(frozen=True)
class TransportComparison:
    """Transports of one configuration, measured in turn.

    Attributes:
        costs: the study's own transport first.
        light_per_second, moderate_per_second: inferences of the two common rates.
        level_seconds: length of each load level; there are `rounds` of each.
        longest_lag_ms: lag of the load generator up to which latencies are the server's.
    """

    config: ServingConfig
    costs: tuple[TransportCost, ...]
    refused: tuple[RefusedTransport, ...]
    light_per_second: float
    moderate_per_second: float
    level_seconds: float
    rounds: int
    longest_lag_ms: float
