"""An evaluator that reads its results from a recorded table, without a server."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from optimizer.configuration.serving_config import ServingConfig
from optimizer.load.levels import SLICES
from optimizer.machine.slots import Slot
from optimizer.measurement.estimates import Percentile
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.level import (
    LevelKind,
    LoadLevel,
    Measurement,
    Slice,
    StreamLevel,
    inside_server_ms,
)
from optimizer.measurement.resource_use import ClientUse, MachineUse
from optimizer.measurement.trial_record import Failure, Seconds
from optimizer.search.recorded.table import (
    RecordedLevel,
    RecordedRow,
    RecordedTable,
    StreamLatency,
)
from optimizer.workload.streams import Stream


class RecordedEvaluator:
    """Evaluates configurations by the measurements of a recorded table.

    Where a point was measured several times, one measurement is drawn: so noisy are single trials.

    Args:
        rng: draws among the measurements of a point.

    Attributes:
        seconds: that the measurements of all evaluations together took.
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
        prune_below: float | None = None,
        expected_share: float | None = None,
    ) -> Evaluation:
        """Return a recorded evaluation; its seconds are those of the recording."""
        return self._counted(self._evaluated(self._drawn(config), prune_below))

    def _evaluated(self, row: RecordedRow, prune_below: float | None) -> Evaluation:
        if row.saturation is None:
            failure = Failure("Recorded", transient=False, out_of_memory=False)
            return Evaluation("failed", row.reason, failure=failure, seconds=_seconds(row))
        if prune_below is not None and self._upper(row, row.saturation) < prune_below:
            return self._bounded(row, {"saturation": row.saturation})
        high = row.capacity_high_per_second
        measurement = Measurement(
            levels=(self._level("saturation", row.saturation),),
            load_factor=row.capacity_per_second / self._demand,
            load_factor_low=row.capacity_low_per_second / self._demand,
            load_factor_high=high / self._demand if high is not None else None,
            demand_per_second=self._demand,
            ended=row.reason,
        )
        return Evaluation(row.outcome, row.reason, measurement, row.excess, seconds=_seconds(row))

    def saturate(self, config: ServingConfig, slot: Slot) -> Evaluation:
        """Return a recorded saturation rate, see `Evaluator.saturate`."""
        return self._counted(self._evaluated(self._drawn(config), math.inf))

    def calibrate(self, config: ServingConfig, slot: Slot) -> Evaluation:
        """Return a recorded saturation and light load, see `Evaluator.calibrate`."""
        row = self._drawn(config, lambda row: row.light is not None)
        if row.saturation is None or row.light is None:
            return self._counted(self._evaluated(row, math.inf))
        levels: dict[LevelKind, RecordedLevel] = {
            "saturation": row.saturation,
            "open_loop": row.light,
        }
        return self._counted(self._bounded(row, levels))

    def _upper(self, row: RecordedRow, saturation: RecordedLevel) -> float:
        """Return the upper bound of a row's load factor."""
        return (row.saturation_high_per_second or saturation.per_second) / self._demand

    def _counted(self, evaluation: Evaluation) -> Evaluation:
        self.seconds += evaluation.seconds.measuring + evaluation.seconds.serving
        return evaluation

    def _drawn(
        self, config: ServingConfig, accept: Callable[[RecordedRow], bool] = lambda _: True
    ) -> RecordedRow:
        position = self._table.space.search_space.position_of(config)
        assert position is not None, "only points of the recorded space can be evaluated"
        all_rows = self._table.by_position[position]
        rows = list(filter(accept, all_rows)) or all_rows
        return rows[int(self._rng.integers(len(rows)))]

    def _bounded(self, row: RecordedRow, levels: Mapping[LevelKind, RecordedLevel]) -> Evaluation:
        reason = "only the saturation rate was needed"
        levels_measured = tuple(self._level(kind, level) for kind, level in levels.items())
        high = self._upper(row, levels["saturation"])
        measurement = Measurement(levels_measured, 0.0, 0.0, high, self._demand, reason)
        measuring = sum(level.seconds for level in levels.values())
        seconds = Seconds(measuring=measuring, serving=row.serving_seconds)
        return Evaluation("bounded", reason, measurement, 0.0, seconds=seconds)

    def _level(self, kind: LevelKind, recorded: RecordedLevel) -> LoadLevel:
        rate, seconds = recorded.per_second, recorded.seconds - self._table.space.warmup_seconds
        requests = round(rate * seconds)
        inside_ms = inside_server_ms(recorded.servers) or 0.0
        network_ms = recorded.network_ms
        latencies = {each.stream: each for each in recorded.latencies}
        return LoadLevel(
            kind=kind,
            load_factor=rate / self._demand,
            seconds=seconds,
            streams=tuple(
                self._stream(stream, rate, requests, inside_ms, latencies.get(stream.name))
                for stream in self._table.space.workload.streams
            ),
            server=recorded.servers,
            client=ClientUse(processes=1, cpu_seconds=0.0, memory_mib=0.0, lag_ms=0.0),
            machine=MachineUse(seconds, self._table.space.machine.cores, None, None, None),
            replied_ms=inside_ms + network_ms if network_ms is not None else None,
            slices=(Slice(round(requests / SLICES), None),) * SLICES,
            ended="recorded",
        )

    def _stream(
        self,
        stream: Stream,
        rate: float,
        requests: int,
        mean_ms: float,
        latency: StreamLatency | None,
    ) -> StreamLevel:
        share = stream.demand_per_second / self._demand
        percentiles = () if latency is None else ((50.0, latency.p50_ms), (95.0, latency.p95_ms))
        return StreamLevel(
            name=stream.name,
            offered_per_second=rate * share,
            achieved_per_second=rate * share,
            sent=round(requests * share),
            completed=round(requests * share),
            errors=0,
            first_error=None,
            mean_ms=mean_ms,
            mean_from_send_ms=mean_ms,
            latencies=tuple(Percentile(p, ms, ms, ms, requests, requests) for p, ms in percentiles),
            limit_percentile=stream.limit.percentile,
            limit_ms=stream.limit.latency_ms,
        )


def _seconds(row: RecordedRow) -> Seconds:
    return Seconds(measuring=row.measuring_seconds, serving=row.serving_seconds)
