"""Predict another configuration of a calibrated study without serving it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from optimizer.analysis.study_reading import read_study
from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.level_runner import concurrency
from optimizer.simulator.prediction import (
    PredictedCapacity,
    PredictedLevel,
    predict_capacity,
    predict_level,
)
from optimizer.simulator.service_curve import ServiceCurve
from optimizer.simulator.service_model import ServiceModel
from optimizer.simulator.stream_estimate import serving_of
from optimizer.space_file.chosen_point import only_point
from optimizer.workload.streams import Stream

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
    """The prediction of one stream.

    Attributes:
        levels: load levels at `SHARES` of saturation.
        at_capacity: the level at the capacity, None where no load is within the limit.
    """

    stream: Stream
    curve: ServiceCurve
    capacity: PredictedCapacity
    levels: tuple[PredictedLevel, ...]
    at_capacity: PredictedLevel | None


@dataclass(frozen=True)
class SimulateResult:
    """The prediction of one configuration.

    Attributes:
        runs: number of saturated load levels that it is based on.
        measured: the study's own trial of the configuration, None where it has none.
    """

    study: str
    config: ServingConfig
    streams: tuple[PredictedStream, ...]
    runs: int
    measured: TrialRecord | None


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
        streams=tuple(
            predicted_stream(stream, config, service, options.seed)
            for stream in study.searched.workload.streams
        ),
        runs=sum(r.measurement is not None for r in (*study.calibration, *study.trials)),
        measured=own[-1] if own else None,
    )


def predicted_stream(
    stream: Stream, config: ServingConfig, service: ServiceModel, seed: int
) -> PredictedStream:
    """Predict one stream of a configuration by its service times."""
    model = next(model for model in config.models if model.name == stream.target)
    curve = service.curve(model, config.server)
    serving = serving_of(model, curve, stream)
    most = predict_capacity(
        serving, stream.arrivals, stream.limit, concurrency(config), seed, _REQUESTS
    )

    def level_at(rate_per_second: float) -> PredictedLevel:
        percentiles = tuple(sorted({*PERCENTILES, stream.limit.percentile}))
        return predict_level(
            serving, stream.arrivals, rate_per_second, seed, _REQUESTS, percentiles=percentiles
        )

    return PredictedStream(
        stream,
        curve,
        most,
        tuple(level_at(share * most.saturation.per_second) for share in SHARES),
        level_at(most.per_second) if most.per_second > 0 else None,
    )
