"""A recorded table: every point of a space as it was measured on one machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from optimizer.configuration.model_space import Position
from optimizer.configuration.serving_config import ServingConfig
from optimizer.machine.fingerprint import Machine
from optimizer.measurement.level import ServerSplit
from optimizer.measurement.trial_record import Outcome
from optimizer.study.searched_space import SearchedSpace

Kind = Literal["point", "latencies", "repeat"]
"""Why a point is measured: "point" once like every other, "latencies" as one of the sample with
latencies at fractions of its capacity, "repeat" because it is among the best.
"""


@dataclass(frozen=True)
class RecordedSpace(SearchedSpace):
    """The space that was recorded exhaustively.

    Attributes:
        warmup_seconds: of every level, in addition to its measured time.
        as_of: day on which the recording ended.
    """

    warmup_seconds: float
    machine: Machine
    as_of: str


@dataclass(frozen=True)
class Latency:
    """The 95th percentile of latency, the largest over the streams, at a rate in requests/s."""

    per_second: float
    p95_ms: float


@dataclass(frozen=True)
class StreamLatency:
    """Percentiles of the latency of one stream at one level."""

    stream: str
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True)
class RecordedLevel:
    """One load level.

    Attributes:
        per_second: requests of all streams, achieved at saturation, offered otherwise.
        seconds: duration with warm-up.
        network_ms: mean time between client and server, None where it was not measured.
        latencies: of each stream; not kept of a saturated level.
        servers: the server's statistics by model.
    """

    per_second: float
    seconds: float
    network_ms: float | None
    latencies: tuple[StreamLatency, ...]
    servers: tuple[ServerSplit, ...]


@dataclass(frozen=True)
class RecordedRow:
    """One measurement of one point; rates are requests/s.

    Attributes:
        saturation: None where the measurement failed.
        light: the level beside it that calibrates service times, in "point" rows alone.
        capacity_per_second: 0 where no load met the limits.
        excess: `limit_overshoot` of the evaluation.
        latencies: at fractions of the capacity, where they were measured.
        measuring_seconds, serving_seconds: see `Seconds`; without the light level.
        disturbed: whether other work ran on the machine meanwhile.
    """

    kind: Kind
    position: Position
    outcome: Outcome
    reason: str
    capacity_per_second: float = 0.0
    capacity_low_per_second: float = 0.0
    capacity_high_per_second: float | None = None
    excess: float | None = None
    saturation: RecordedLevel | None = None
    saturation_high_per_second: float | None = None
    light: RecordedLevel | None = None
    latencies: tuple[Latency, ...] = ()
    measuring_seconds: float = 0.0
    serving_seconds: float = 0.0
    disturbed: bool = False


@dataclass(frozen=True)
class RecordedTable:
    """The content of a table's file."""

    space: RecordedSpace
    rows: tuple[RecordedRow, ...]

    @cached_property
    def by_position(self) -> Mapping[Position, Sequence[RecordedRow]]:
        """The measurements of each point in their order.

        Disturbed and failed ones are left out where there are others.
        """
        rows_at: dict[Position, list[RecordedRow]] = {}
        for row in self.rows:
            rows_at.setdefault(row.position, []).append(row)
        return {
            position: [row for row in measured if not row.disturbed] or measured
            for position, own in rows_at.items()
            for measured in [[row for row in own if row.outcome != "failed"] or own]
        }

    @cached_property
    def true_capacity(self) -> Mapping[Position, float]:
        """Capacity of each point in requests/s: the median of its repeats, else of all its rows.

        The median, because a slow spell of a shared machine halves one measurement and spares the
        others.
        """
        return {position: _median_capacity(rows) for position, rows in self.by_position.items()}

    def true_capacity_of(self, config: ServingConfig) -> float:
        """Return the true capacity of a configuration of the table."""
        position = self.space.search_space.position_of(config)
        assert position is not None, "points of the table alone are proposed"
        return self.true_capacity[position]

    @cached_property
    def best_capacity(self) -> float:
        """The largest true capacity of the points that were measured repeatedly."""
        repeated = {row.position for row in self.rows if row.kind == "repeat"}
        return max(self.true_capacity[p] for p in repeated or self.true_capacity)


def _median_capacity(rows: Sequence[RecordedRow]) -> float:
    repeats = [row for row in rows if row.kind == "repeat"]
    return float(np.median([row.capacity_per_second for row in repeats or rows]))
