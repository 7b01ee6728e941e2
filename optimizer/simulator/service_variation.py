"""How single executions depart from the mean times of a saturated server. Pure.

Triton counts sums, so a saturated level tells neither how much executions of one size differ nor
what an instance takes longer when it was idle: its threads sleep, its caches are cold. Both show at
a light load: in the latencies, and in the batches that form while others wait.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from optimizer.configuration.serving_config import ModelServing, ServerOptions, ServingConfig
from optimizer.measurement.level import LoadLevel
from optimizer.simulator.prediction import level
from optimizer.simulator.service_curve import SPREAD, ServiceCurve, Unevenness
from optimizer.simulator.service_model import ServiceModel
from optimizer.simulator.stream_simulation import serving_of
from optimizer.workload.streams import Stream, Workload

_PERCENTILES = (50.0, 95.0)
_SPREADS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0)
_LOG_SPREAD_SCALE = 0.3
"""Of a Cauchy distribution around the expected spread: a few short levels tell little of a
percentile, but where they tell of another spread it may be any."""

_WAKES = (0.0, 0.15, 0.3, 0.5, 0.75, 1.0, 1.5)
"""In the shortest time that an inference takes with the runtime."""

_REQUESTS = 4_000
_OFF = 0.12
"""Mean size of the logarithms by which a level is off from a simulation of the truth."""

_FAR = 0.7
"""Logarithm of a ratio; a level that is further off was disturbed, however far it is."""


@dataclass(frozen=True)
class LightLoadTimes:
    """What one stream met while its model was often idle.

    Attributes:
        per_second: requests to the model, those of other streams included.
        latencies_ms: (percentile, latency) pairs.
        mean_batch: inferences in an execution.
    """

    model: ModelServing
    server: ServerOptions
    stream: Stream
    per_second: float
    latencies_ms: tuple[tuple[float, float], ...]
    mean_batch: float


def light_loads(
    config: ServingConfig, found: LoadLevel, workload: Workload
) -> Iterator[LightLoadTimes]:
    """What an open-loop level shows, for each stream of which anything was answered."""
    splits = {split.model: split for split in found.server}
    models = {model.name: model for model in config.models}
    seen = {each.name: each for each in found.streams}
    for stream in workload.streams:
        own, split = seen[stream.name], splits.get(stream.target)
        if split is None or not split.batches or not own.latencies:
            continue
        asking = [each for each in workload.streams if each.target == stream.target]
        yield LightLoadTimes(
            models[stream.target],
            config.server,
            stream,
            sum(seen[each.name].offered_per_second for each in asking),
            tuple((p, own.latency_ms(p)) for p in _PERCENTILES),
            split.inferences / split.executions,
        )


def unevenness_of(service: ServiceModel, loads: Sequence[LightLoadTimes]) -> Unevenness:
    """What is likeliest by the light loads; that of `service` where there are none.

    Found on a grid: the simulation is neither smooth nor slow.
    """
    if not loads:
        return service.unevenness
    curves = [service.curve(load.model, load.server) for load in loads]
    by_runtime: dict[str, list[tuple[LightLoadTimes, ServiceCurve]]] = {}
    for load, curve in zip(loads, curves, strict=True):
        by_runtime.setdefault(load.model.artifact.runtime, []).append((load, curve))
    tried = (_likeliest_wakes(by_runtime, spread) for spread in _SPREADS)
    return min(tried, key=lambda found: found[0])[1]


def _likeliest_wakes(
    by_runtime: dict[str, list[tuple[LightLoadTimes, ServiceCurve]]], spread: float
) -> tuple[float, Unevenness]:
    """A spread with the wake of each runtime that suits it best; how unlikely they are, first."""
    total, wakes = math.log1p((math.log(spread / SPREAD) / _LOG_SPREAD_SCALE) ** 2), []
    for runtime, pairs in by_runtime.items():
        shortest_ms = min(curve.execution_ms[0] for _, curve in pairs)
        found = [
            (sum(_misfit(load, replace(c, spread=spread, wake_ms=wake)) for load, c in pairs), wake)
            for wake in (share * shortest_ms for share in _WAKES)
        ]
        misfit, wake = min(found)
        total += misfit / _OFF
        wakes.append((runtime, wake))
    return total, Unevenness(spread, tuple(wakes))


def _misfit(load: LightLoadTimes, curve: ServiceCurve) -> float:
    """Mean size of the logarithms of simulated over measured."""
    serving = serving_of(load.model, curve, load.stream)
    found = level(
        serving, load.stream.arrivals, load.per_second, 0, _REQUESTS, percentiles=_PERCENTILES
    )
    pairs = [(found.latency_ms(p), measured) for p, measured in load.latencies_ms]
    pairs.append((found.mean_batch, load.mean_batch))
    return sum(min(_FAR, abs(math.log(a / b))) for a, b in pairs) / len(pairs)
