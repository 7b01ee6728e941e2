"""Messages between the load generator and its client processes. Plain values that cross a pipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from optimizer.load.request_sequence import RequestSequence
from optimizer.workload.transport import SerialisedRequest


@dataclass(frozen=True)
class Schedule:
    """Open loop: request i is due at `due_seconds[i]`; shape [n], ascending, from the start."""

    due_seconds: NDArray[np.float64]


@dataclass(frozen=True)
class Users:
    """Closed loop: every user's next request is due `think_seconds` after the last one's reply.

    Attributes:
        at_seconds: times at which the number of users changes, ascending from 0, shape [k].
        counts: users from then on, shape [k]. A surplus user leaves after the reply.
        seconds: no request is sent after this.
    """

    at_seconds: NDArray[np.float64]
    counts: NDArray[np.int64]
    think_seconds: float
    seconds: float


@dataclass(frozen=True)
class Order:
    """One level for one client process.

    Attributes:
        endpoint: host:port of the server's gRPC or HTTP port.
        prepared: serialised requests of every stream; at least one each.
        sequences: which of them are sent, for every stream.
        streams: index of request i's stream, shape [n]; repeats where n is too few.
        sending: when requests are sent: in an open loop, or by users.
        timeout_seconds: deadline of a request, counted from when it was due.
        report_seconds: how often the process reports.
    """

    protocol: Literal["grpc", "http"]
    endpoint: str
    prepared: tuple[tuple[SerialisedRequest, ...], ...]
    sequences: tuple[RequestSequence, ...]
    streams: NDArray[np.int64]
    sending: Schedule | Users
    timeout_seconds: float
    report_seconds: float


@dataclass(frozen=True)
class Ready:
    """The process has its order and its connection, and waits for `Begin`.

    Attributes:
        realtime: whether it has real-time priority.
    """

    realtime: bool


@dataclass(frozen=True)
class Begin:
    """Start the level at this time by time.perf_counter(), which all processes share."""

    at: float


@dataclass(frozen=True)
class Stop:
    """Send nothing more, but wait for the replies."""


@dataclass(frozen=True)
class Replies:
    """Requests that were answered or given up; all arrays have shape [n].

    Attributes:
        streams: index of the request's stream.
        due_seconds, sent_seconds, done_seconds: since the start of the level. In a closed loop
            without think time a request is due at the reply before it.
        errors: message by index of the request that failed or was rejected.
        refused_at_seconds: when the level was aborted because the server refused everything.
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


@dataclass(frozen=True)
class Report:
    """Replies to one process since its previous report.

    Attributes:
        now_seconds: time of the report since the start of the level; every request that was
            answered by then is in this report or an earlier one.
        last: whether the level is over for this process.
        cpu_seconds: process-CPU time since the start of the level.
        memory_bytes: resident memory.
    """

    now_seconds: float
    replies: Replies
    last: bool
    cpu_seconds: float
    memory_bytes: int


@dataclass(frozen=True)
class LevelProgress:
    """A running level, as passed to a stopping rule.

    Attributes:
        now_seconds: since the start of the level; `replies` has the requests that were answered by
            then, in order of their due times.
        due_seconds, streams: everything that the level will send, shape [n]; empty in a closed
            loop.
    """

    now_seconds: float
    replies: Replies
    due_seconds: NDArray[np.float64]
    streams: NDArray[np.int64]
