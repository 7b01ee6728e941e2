"""Answers from a recorded table, without a server."""

from __future__ import annotations

import math

import numpy as np

from optimizer.machine.slots import Slot
from optimizer.measurement import ClientUse, LoadLevel, Measurement, Slice, StreamLevel
from optimizer.search.evaluator import Evaluation
from optimizer.search.recorded.table import RecordedRow, RecordedTable
from optimizer.serving_config import ServingConfig
from optimizer.trial_record import Failure, Seconds

_SLICES = 10


class RecordedEvaluator:
    """Measures configurations by looking up what measuring them once gave.

    Where a point was measured several times, one of these is drawn: so noisy are single trials.

    Args:
        rng: draws among the measurements of a point.

    Attributes:
        seconds: that all answers together took when they were recorded.
    """

    def __init__(self, table: RecordedTable, rng: np.random.Generator) -> None:
        self._table = table
        self._rng = rng
        self._demand = table.space.workload.demand_per_second
        self.seconds = 0.0

    def evaluate(
        self,
        config: ServingConfig,
        slot: Slot,
        worse_below: float | None = None,
        expected_share: float | None = None,
    ) -> Evaluation:
        """See `Evaluator`; the time is what it took when it was recorded."""
        return self._counted(self._evaluated(self._drawn(config), worse_below))

    def _evaluated(self, row: RecordedRow, worse_below: float | None) -> Evaluation:
        if row.saturation_per_second is None:
            failure = Failure("Recorded", transient=False, out_of_memory=False)
            return Evaluation("failed", row.reason, failure=failure, seconds=_seconds(row))
        high = (row.saturation_high_per_second or row.saturation_per_second) / self._demand
        if worse_below is not None and high < worse_below:
            return self._bounded(row, high)
        measurement = Measurement(
            levels=(self._saturation(row),),
            load_factor=row.capacity_per_second / self._demand,
            load_factor_low=row.capacity_low_per_second / self._demand,
            load_factor_high=_of(row.capacity_high_per_second, self._demand),
            demand_per_second=self._demand,
            ended=row.reason,
        )
        return Evaluation(
            row.outcome,
            row.reason,
            measurement,
            row.excess,
            row.saturation_per_second,
            seconds=_seconds(row),
        )

    def saturate(self, config: ServingConfig, slot: Slot) -> Evaluation:
        """See `Evaluator`."""
        return self._counted(self._evaluated(self._drawn(config), math.inf))

    def _counted(self, evaluation: Evaluation) -> Evaluation:
        self.seconds += evaluation.seconds.measuring + evaluation.seconds.serving
        return evaluation

    def _drawn(self, config: ServingConfig) -> RecordedRow:
        position = self._table.space.search_space.position_of(config)
        assert position is not None, "points of the recorded space alone are asked for"
        rows = self._table.by_position[position]
        return rows[int(self._rng.integers(len(rows)))]

    def _bounded(self, row: RecordedRow, high: float) -> Evaluation:
        level = self._saturation(row)
        ended = "saturation alone was needed"
        measurement = Measurement((level,), 0.0, 0.0, high, self._demand, ended)
        warmed = self._table.space.warmup_seconds + row.saturation_seconds
        return Evaluation(
            "bounded",
            ended,
            measurement,
            0.0,
            row.saturation_per_second,
            seconds=Seconds(measuring=warmed, serving=row.serving_seconds),
        )

    def _saturation(self, row: RecordedRow) -> LoadLevel:
        rate, seconds = row.saturation_per_second or 0.0, row.saturation_seconds
        total_ms = [split.total_ms for split in row.servers]
        answered = sum(split.requests for split in row.servers)
        replied_ms = sum(s.total_ms * s.requests for s in row.servers) / answered if total_ms else 0
        streams = tuple(
            StreamLevel(
                name=stream.name,
                offered_per_second=rate * stream.demand_per_second / self._demand,
                achieved_per_second=rate * stream.demand_per_second / self._demand,
                sent=round(rate * seconds),
                completed=round(rate * seconds),
                errors=0,
                first_error=None,
                mean_ms=replied_ms,
                mean_from_send_ms=replied_ms,
                latencies=(),
                limit_percentile=stream.limit.percentile,
                limit_ms=stream.limit.latency_ms,
            )
            for stream in self._table.space.workload.streams
        )
        return LoadLevel(
            kind="saturation",
            load_factor=rate / self._demand,
            seconds=seconds,
            streams=streams,
            server=row.servers,
            client=ClientUse(processes=1, cpu_seconds=0.0, memory_mib=0.0, lag_ms=0.0),
            replied_ms=replied_ms + row.network_ms if row.network_ms is not None else None,
            slices=(Slice(round(rate * seconds / _SLICES), None),) * _SLICES,
            ended=row.reason,
        )


def _of(rate: float | None, demand: float) -> float | None:
    return rate / demand if rate is not None else None


def _seconds(row: RecordedRow) -> Seconds:
    return Seconds(measuring=row.measuring_seconds, serving=row.serving_seconds)
