"""What a load level is asked to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from optimizer.load.exchange import LevelProgress
from optimizer.load.user_load import UserLoad
from optimizer.measurement.level import LevelVerdict
from optimizer.workload.streams import SerialisedRequest, Stream


@dataclass(frozen=True)
class ClosedLoop:
    """Saturation: `concurrency` requests are kept outstanding, a reply sends the next one.

    Several streams are mixed in proportion to their demand.
    """

    concurrency: int


@dataclass(frozen=True)
class OpenLoop:
    """Every stream sends `load_factor` x its demand, whatever the replies do."""

    load_factor: float


@dataclass(frozen=True)
class EndReason:
    """Why a level ended before its time, and what it has shown by then."""

    reason: str
    verdict: LevelVerdict | None = None


StoppingRule = Callable[[LevelProgress], EndReason | None]
"""Looks at a level under way; the level goes on while the answer is None."""


@dataclass(frozen=True)
class LevelPlan:
    """One load level.

    Attributes:
        warmup_seconds: load before the measured window, without a pause between the two.
        seconds: length of the measured window, unless `stop` ends it.
        timeout_seconds: a request that is not answered this long after it was due has failed.
        longest_lag_ms: the level is void where the 99th percentile of the client's lag is above;
            None where it does not matter.
        stop: may end the level early; asked several times a second.
    """

    load: ClosedLoop | OpenLoop | UserLoad
    warmup_seconds: float
    seconds: float
    timeout_seconds: float
    longest_lag_ms: float | None = None
    stop: StoppingRule | None = None

    @property
    def sending_seconds(self) -> float:
        """Time during which requests become due; the last replies follow within the timeout."""
        return self.warmup_seconds + self.seconds


@dataclass(frozen=True)
class PreparedStream:
    """A stream and its requests as they go over the wire.

    Attributes:
        prepared: serialised requests, sent in turn, over and over.
    """

    stream: Stream
    prepared: tuple[SerialisedRequest, ...]


@dataclass(frozen=True)
class Target:
    """Where a level's requests go.

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
