"""What the client process is told, and what it reports. Plain values that cross a pipe."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Schedule:
    """Open loop: request i is due at `due_seconds[i]`; shape [n], ascending, from the start."""

    due_seconds: NDArray[np.float64]


@dataclass(frozen=True)
class Outstanding:
    """Closed loop: keep `count` requests unanswered until `seconds` have passed."""

    count: int
    seconds: float


@dataclass(frozen=True)
class Order:
    """One level for the client process.

    Attributes:
        endpoint: host:port of the gRPC server.
        prepared: serialised requests of every stream; at least one each.
        streams: which stream request i belongs to, shape [n]; starts over where n requests are
            not enough.
        timeout_seconds: deadline of a request, counted from when it was due.
    """

    endpoint: str
    prepared: tuple[tuple[bytes, ...], ...]
    streams: NDArray[np.int64]
    pace: Schedule | Outstanding
    timeout_seconds: float


@dataclass(frozen=True)
class Replies:
    """What became of every request of a level, in order of sending; all arrays have shape [n].

    Attributes:
        streams: which stream the request belongs to.
        due_seconds, sent_seconds, done_seconds: since the start of the level. In a closed loop a
            request is due when it is sent.
        errors: message by index of the request that failed.
        refused_at_seconds: when the level was given up because the server refused everything.
    """

    streams: NDArray[np.int64]
    due_seconds: NDArray[np.float64]
    sent_seconds: NDArray[np.float64]
    done_seconds: NDArray[np.float64]
    errors: dict[int, str]
    refused_at_seconds: float | None = None

    @property
    def good(self) -> NDArray[np.bool_]:
        """Whether the request got a good reply, shape [n]."""
        good = np.ones(len(self.streams), dtype=bool)
        good[list(self.errors)] = False
        return good
