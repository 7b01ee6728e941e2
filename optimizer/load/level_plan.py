"""Plan of one load level: the load, its length, and where requests go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from optimizer.load.exchange import LevelProgress
from optimizer.load.request_sequence import IN_ORDER, RequestSequence
from optimizer.load.user_load import UserLoad
from optimizer.measurement.level import LevelVerdict
from optimizer.workload.streams import Stream
from optimizer.workload.transport import SerialisedRequest


@dataclass(frozen=True)
class ClosedLoop:
    """Saturation: keep `concurrency` requests outstanding, each reply sends the next one.

    Several streams are mixed in proportion to their demand.
    """

    concurrency: int


@dataclass(frozen=True)
class OpenLoop:
    """Every stream sends `load_factor` x its demand, independently of replies."""

    load_factor: float


@dataclass(frozen=True)
class EndReason:
    """Why a level ended before its time, and its verdict by then."""

    reason: str
    verdict: LevelVerdict | None = None


StoppingRule = Callable[[LevelProgress], EndReason | None]
"""Checks a running level several times a second; the level continues while it returns None."""


@dataclass(frozen=True)
class LevelPlan:
    """One load level.

    Attributes:
        warmup_seconds: load before the measured window, without a pause between the two.
        seconds: length of the measured window, unless `stop` ends it.
        timeout_seconds: a request that is not answered so long after it was due has failed.
        longest_lag_ms: the level is void where the 99th percentile of the client's lag is above;
            None where lag does not matter.
        stop: may end the level early.
        saturation_per_second: rate that the server served under saturation; tells how much of the
            latency was due to chance in the arrivals. None to leave that out.
        cold: whether the first requests count, as after a start; otherwise those are left out that
            a server that is still warming up has answered.
    """

    load: ClosedLoop | OpenLoop | UserLoad
    warmup_seconds: float
    seconds: float
    timeout_seconds: float
    longest_lag_ms: float | None = None
    stop: StoppingRule | None = None
    saturation_per_second: float | None = None
    cold: bool = False

    @property
    def sending_seconds(self) -> float:
        """Time during which requests are due; the last replies follow within the timeout."""
        return self.warmup_seconds + self.seconds


@dataclass(frozen=True)
class PreparedStream:
    """A stream, its serialised requests, and which of them are sent."""

    stream: Stream
    prepared: tuple[SerialisedRequest, ...]
    sequence: RequestSequence = IN_ORDER


@dataclass(frozen=True)
class Target:
    """The server and the streams of a level.

    Attributes:
        address: host:port of the server's port for `protocol`.
    """

    protocol: Literal["grpc", "http"]
    address: str
    streams: tuple[PreparedStream, ...]

    @property
    def plain_streams(self) -> tuple[Stream, ...]:
        """The streams without their requests."""
        return tuple(item.stream for item in self.streams)
