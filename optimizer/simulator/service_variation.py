"""Variation of single executions around the mean times of a saturated server.

Triton counts sums, so a saturated level shows neither how much executions of one size differ, nor
how much longer an instance takes that was idle: its threads sleep, its caches are cold. Both show
at a light load, in the latencies and in the batches that form while instances are busy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from optimizer.configuration.serving_config import ModelServing, ServerOptions, ServingConfig
from optimizer.measurement.level import LoadLevel
from optimizer.simulator.prediction import predict_level
from optimizer.simulator.service_curve import SPREAD, ServiceCurve, ServiceVariation
from optimizer.simulator.service_model import ServiceModel
from optimizer.simulator.stream_estimate import serving_of
from optimizer.workload.streams import Stream, Workload

_PERCENTILES = (50.0, 95.0)
_SPREADS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0)
_LOG_SPREAD_SCALE = 0.3
"""Scale of the prior, a Cauchy distribution around the expected spread: a few short levels tell
little of a percentile, but where they do show another spread it may be any."""

_WAKES = (0.0, 0.15, 0.3, 0.5, 0.75, 1.0, 1.5)
"""Candidates for the wake-up time, relative to the shortest execution of the runtime."""

_REQUESTS = 4_000
_OFF = 0.12
"""Mean absolute log error of a level against a simulation of the truth."""

_FAR = 0.7
"""Log ratio at which the error is capped: a level that is further off was disturbed."""


@dataclass(frozen=True)
class LightLoadTimes:
    """Latencies and batches of one stream while its model was often idle.

    Attributes:
        per_second: requests to the model, those of other streams included.
        latencies_ms: (percentile, latency) pairs.
        mean_batch: mean inferences of an execution.
    """

    model: ModelServing
    server: ServerOptions
    stream: Stream
    per_second: float
    latencies_ms: tuple[tuple[float, float], ...]
    mean_batch: float


def light_loads(
    config: ServingConfig, level: LoadLevel, workload: Workload
) -> Iterator[LightLoadTimes]:
    """Yield the light-load times of each stream of an open-loop level that got a reply."""
    splits = {split.model: split for split in level.server}
    models = {model.name: model for model in config.models}
    measured = {each.name: each for each in level.streams}
    for stream in workload.streams:
        own, split = measured[stream.name], splits.get(stream.target)
        if split is None or not split.batches or not own.latencies:
            continue
        same_model = [each for each in workload.streams if each.target == stream.target]
        yield LightLoadTimes(
            models[stream.target],
            config.server,
            stream,
            sum(measured[each.name].offered_per_second for each in same_model),
            tuple((p, own.latency_ms(p)) for p in _PERCENTILES),
            split.inferences / split.executions,
        )


def fit_variation(service: ServiceModel, loads: Sequence[LightLoadTimes]) -> ServiceVariation:
    """Return the likeliest variation by the light loads; that of `service` without any.

    Searches a grid: the simulation is neither smooth nor slow.
    """
    if not loads:
        return service.variation
    curves = [service.curve(load.model, load.server) for load in loads]
    by_runtime: dict[str, list[tuple[LightLoadTimes, ServiceCurve]]] = {}
    for load, curve in zip(loads, curves, strict=True):
        by_runtime.setdefault(load.model.artifact.runtime, []).append((load, curve))
    candidates = (_likeliest_wakes(by_runtime, spread) for spread in _SPREADS)
    return min(candidates, key=lambda candidate: candidate[0])[1]


def _likeliest_wakes(
    by_runtime: dict[str, list[tuple[LightLoadTimes, ServiceCurve]]], spread: float
) -> tuple[float, ServiceVariation]:
    """Return the cost of a spread, and it with the best wake-up time of each runtime."""
    total, wakes = math.log1p((math.log(spread / SPREAD) / _LOG_SPREAD_SCALE) ** 2), []
    for runtime, pairs in by_runtime.items():
        shortest_ms = min(curve.execution_ms[0] for _, curve in pairs)
        candidates = [
            (sum(_misfit(load, replace(c, spread=spread, wake_ms=wake)) for load, c in pairs), wake)
            for wake in (share * shortest_ms for share in _WAKES)
        ]
        misfit, wake = min(candidates)
        total += misfit / _OFF
        wakes.append((runtime, wake))
    return total, ServiceVariation(spread, tuple(wakes))


def _misfit(load: LightLoadTimes, curve: ServiceCurve) -> float:
    """Return the mean absolute log ratio of simulated over measured."""
    serving = serving_of(load.model, curve, load.stream)
    simulated = predict_level(
        serving, load.stream.arrivals, load.per_second, 0, _REQUESTS, percentiles=_PERCENTILES
    )
    pairs = [(simulated.latency_ms(p), measured) for p, measured in load.latencies_ms]
    pairs.append((simulated.mean_batch, load.mean_batch))
    return sum(min(_FAR, abs(math.log(a / b))) for a, b in pairs) / len(pairs)
