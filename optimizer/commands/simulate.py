"""Predict another configuration of a calibrated study without serving it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optimizer.analysis.study_reading import read_study
from optimizer.configuration.serving_config import ServingConfig
from optimizer.machine.blas_threads import one_blas_thread
from optimizer.measurement.level import floor_per_second
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.level_runner import concurrency
from optimizer.simulator.predicted_values import PredictedCapacity, PredictedLevel
from optimizer.simulator.prediction import Loads, predict_capacity
from optimizer.simulator.served_network import offered_streams, served_network
from optimizer.simulator.service_model import ServiceModel
from optimizer.space_file.chosen_point import only_point
from optimizer.workload.streams import Stream, Workload

SHARES = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
"""Shares of saturation at which latency is predicted."""

PERCENTILES = (50.0, 95.0, 99.0)
"""Percentiles of latency that are predicted beside the limit's own."""

_REQUESTS = 20_000


@dataclass(frozen=True)
class SimulateOptions:
    """Options of `simulate`, see `optimizer.api.simulate`; settings are YAML text by parameter."""

    study: str
    settings: Mapping[str, str]
    seed: int = 0
    results: Path = Path("results")


@dataclass(frozen=True)
class PredictedStream:
    """The prediction of one stream; rates are of its own requests.

    Attributes:
        levels: load levels at `SHARES` of saturation.
        at_capacity: the level at the capacity, None where no load is within the limits.
        floor_ms: latency at the limit's percentile at the floor load.
    """

    stream: Stream
    saturation_per_second: float
    levels: tuple[PredictedLevel, ...]
    at_capacity: PredictedLevel | None
    floor_ms: float

    @property
    def capacity_per_second(self) -> float:
        """Rate of the stream at the capacity; 0 where no load is within the limits."""
        return self.at_capacity.offered_per_second if self.at_capacity is not None else 0.0


@dataclass(frozen=True)
class PredictedServing:
    """The prediction of all streams of a configuration, which are served at once.

    Attributes:
        capacity: of all streams together.
        log_sd: standard deviation of the logarithm of the bottleneck's times, their uncertainty.
    """

    streams: tuple[PredictedStream, ...]
    capacity: PredictedCapacity
    log_sd: float


@dataclass(frozen=True)
class SimulateResult:
    """The prediction of one configuration.

    Attributes:
        runs: number of saturated load levels that it is based on.
        measured: the study's own trial of the configuration, None where it has none.
    """

    study: str
    config: ServingConfig
    prediction: PredictedServing
    runs: int
    measured: TrialRecord | None


@one_blas_thread()
def simulate_configuration(options: SimulateOptions) -> SimulateResult:
    """Predict one configuration from what a study has measured of others.

    Raises:
        UsageError: where there is no such study, no saturated level in it, or a wrong value.
        StorageError: when its files are damaged.
    """
    study = read_study(options.results, options.study)
    service = study.service
    point = only_point(study.searched.search_space, options.settings)
    config = point.config(point.baseline)
    own = [record for record in study.trials if record.config == config and record.outcome == "ok"]
    return SimulateResult(
        study=study.name,
        config=config,
        prediction=predicted_serving(study.searched.workload, config, service, options.seed),
        runs=sum(r.measurement is not None for r in (*study.calibration, *study.trials)),
        measured=own[-1] if own else None,
    )


def predicted_serving(
    workload: Workload, config: ServingConfig, service: ServiceModel, seed: int
) -> PredictedServing:
    """Predict a configuration by its service times.

    Raises:
        KeyError: when a model was never observed.
    """
    network, offered = served_network(config, service, workload), offered_streams(workload)
    capacity = predict_capacity(network, offered, concurrency(config), seed, _REQUESTS)
    limits = {stream.limit.percentile for stream in workload.streams}
    percentiles = tuple(sorted({*PERCENTILES, *limits}))
    loads = Loads(network, offered, _REQUESTS, seed)
    rate = capacity.saturation.per_second
    levels = [loads.levels(share * rate, percentiles) for share in SHARES]
    at_capacity: Sequence[PredictedLevel | None] = [None] * len(offered)
    if capacity.per_second > 0:
        at_capacity = loads.levels(capacity.per_second, percentiles)
    floors = loads.latencies_over_limits(floor_per_second(rate))
    streams = tuple(
        PredictedStream(
            stream,
            own.share * rate,
            tuple(level[n] for level in levels),
            at_capacity[n],
            floors[n] * stream.limit.latency_ms,
        )
        for n, (stream, own) in enumerate(zip(workload.streams, offered, strict=True))
    )
    bottleneck = capacity.saturation.bottleneck.name
    curves = {batcher.name: batcher.curve for batcher in network.batchers}
    return PredictedServing(streams, capacity, curves[bottleneck].log_sd)
