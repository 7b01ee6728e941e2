"""How a configuration starts: until it is ready, its first requests, and the load right after.

Pure values; `optimizer.search.cold_start` measures them.
"""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.level import LoadLevel


@dataclass(frozen=True)
class FirstRequest:
    """Latency of a request of one size, as the first one after a load and later.

    Attributes:
        model: that it was sent to.
        batch_size: inferences of the request.
        first_ms: of the first request that the newly loaded model answered.
        later_ms: median of the requests that followed, one after the other.
    """

    model: str
    batch_size: int
    first_ms: float
    later_ms: float


@dataclass(frozen=True)
class Start:
    """Starts of one configuration, with model_warmup or without.

    Attributes:
        warmup: whether instances execute batches of model_warmup while they load.
        server_seconds: from the start of the server until it answers; None where it runs already.
        load_seconds: from the load request until the models are ready, the median of `loads`.
        loads: number of loads that were timed.
        first_requests: each after a load of its own.
        level: the load at the certified rate right after a start, its first requests included.
    """

    warmup: bool
    server_seconds: float | None
    load_seconds: float
    loads: int
    first_requests: tuple[FirstRequest, ...]
    level: LoadLevel

    @property
    def ready_seconds(self) -> float:
        """Time from the start of the server, unless it runs already, until the models serve."""
        return (self.server_seconds or 0.0) + self.load_seconds

    def first_request(self, model: str, batch_size: int) -> FirstRequest | None:
        """Return the first request of one size; None where it was not measured."""
        own = (model, batch_size)
        return next((r for r in self.first_requests if (r.model, r.batch_size) == own), None)


@dataclass(frozen=True)
class ColdStart:
    """Cold starts of one configuration.

    Attributes:
        starts: of the configuration as it is, and with model_warmup where it has none or without
            it where it has one; the second is missing where that is not possible.
        left_out: batch sizes for whose first requests there was no time.
    """

    config: ServingConfig
    starts: tuple[Start, ...]
    left_out: tuple[int, ...] = ()

    @property
    def as_served(self) -> Start:
        """The starts of the configuration as it is."""
        return self.starts[0]

    @property
    def otherwise(self) -> Start | None:
        """The starts without model_warmup where the configuration has it, and the reverse."""
        return self.starts[1] if len(self.starts) > 1 else None
