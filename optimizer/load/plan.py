"""What a load level is asked to do."""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.workload import Stream


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
class LevelPlan:
    """One load level.

    Attributes:
        warmup_seconds: load before the measured window, without a pause between the two.
        seconds: length of the measured window.
        timeout_seconds: a request that is not answered this long after it was due has failed.
    """

    load: ClosedLoop | OpenLoop
    warmup_seconds: float
    seconds: float
    timeout_seconds: float

    @property
    def sending_seconds(self) -> float:
        """Time during which requests become due; the last replies follow within the timeout."""
        return self.warmup_seconds + self.seconds


@dataclass(frozen=True)
class PreparedStream:
    """A stream and its requests as they go over the wire.

    Attributes:
        prepared: serialised ModelInferRequest messages, sent in turn, over and over.
    """

    stream: Stream
    prepared: tuple[bytes, ...]
