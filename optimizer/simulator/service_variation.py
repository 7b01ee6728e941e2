"""Variation of single executions around the mean times of a saturated server.

Triton counts sums, so a saturated level shows neither how much executions of one size differ, nor
how much longer an instance takes that was idle: its threads sleep, its caches are cold. Both show
at a light load, in the latencies and in the batches that form while instances are busy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.level import LoadLevel
from optimizer.simulator.network import Network
from optimizer.simulator.prediction import Loads
from optimizer.simulator.served_network import offered_streams, served_network
from optimizer.simulator.service_curve import SPREAD, ServiceVariation
from optimizer.simulator.service_model import ServiceModel
from optimizer.simulator.service_observation import executing
from optimizer.workload.streams import Workload

_PERCENTILES = (50.0, 95.0)
_SPREADS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0)
_LOG_SPREAD_SCALE = 0.3
"""Scale of the prior, a Cauchy distribution around the expected spread: a few short levels tell
little of a percentile, but where they do show another spread it may be any."""

_SPREAD_OF_STEPS = 0.25
"""Expected spread where requests pass through steps: those of a text take longer for longer texts,
and the simulation of a step does not know the shapes of its requests."""

_WAKES = (0.0, 0.15, 0.3, 0.5, 0.75, 1.0, 1.5)
"""Candidates for the wake-up time, relative to the shortest execution of the runtime."""

_REQUESTS = 4_000
_REQUESTS_OF_NETWORK = 2_000
_OFF = 0.12
"""Mean absolute log error of a level against a simulation of the truth."""

_FAR = 0.7
"""Log ratio at which the error is capped: a level that is further off was disturbed."""


@dataclass(frozen=True)
class LightLoadTimes:
    """Latencies and batches while models were often idle.

    Attributes:
        per_second: requests of all streams.
        latencies_ms: (percentile, latency) pairs of each stream of the workload.
        mean_batches: mean inferences of an execution, by model.
    """

    config: ServingConfig
    workload: Workload
    per_second: float
    latencies_ms: tuple[tuple[tuple[float, float], ...], ...]
    mean_batches: tuple[tuple[str, float], ...]

    @property
    def runtimes(self) -> frozenset[str]:
        """Runtimes of the models that execute requests."""
        return frozenset(model.artifact.runtime for model in executing(self.config))


def light_load(
    config: ServingConfig, level: LoadLevel, workload: Workload
) -> LightLoadTimes | None:
    """Return the light-load times of an open-loop level.

    None where a stream got no reply, and where a response cache answered: its hits tell nothing.
    """
    if any(split.cache_hits for split in level.server):
        return None
    splits = {split.model: split for split in level.server if split.batches}
    names = [model.name for model in executing(config)]
    measured = {each.name: each for each in level.streams}
    own = [measured[stream.name] for stream in workload.streams]
    if not all(name in splits for name in names) or not all(each.latencies for each in own):
        return None
    return LightLoadTimes(
        config,
        workload,
        level.offered_per_second,
        tuple(tuple((p, each.latency_ms(p)) for p in _PERCENTILES) for each in own),
        tuple((name, splits[name].inferences / splits[name].executions) for name in names),
    )


def fit_variation(service: ServiceModel, loads: Sequence[LightLoadTimes]) -> ServiceVariation:
    """Return the likeliest variation by the light loads; that of `service` without any.

    Searches a grid: the simulation is neither smooth nor slow. The wake-up times of runtimes that
    one load shows together are in proportion to their shortest executions.
    """
    if not loads:
        return service.variation
    pairs = [(load, served_network(load.config, service, load.workload)) for load in loads]
    together = frozenset[str]().union(*(x.runtimes for x in loads if len(x.runtimes) > 1))
    groups: dict[frozenset[str], list[_Pair]] = {}
    for load, network in pairs:
        key = together if load.runtimes & together else load.runtimes
        groups.setdefault(key, []).append((load, network))
    listed = list(groups.values())
    # A network takes longer to simulate, so its wake-up times are those of the expected spread.
    shares: tuple[float, ...] = _WAKES
    if not all(network.single for _, network in pairs):
        _, _, best = _likeliest_wakes(listed, _SPREAD_OF_STEPS, _WAKES)
        shares = (best,)
    candidates = (_likeliest_wakes(listed, spread, shares) for spread in _SPREADS)
    return min(candidates, key=lambda candidate: candidate[0])[1]


def _likeliest_wakes(
    groups: Sequence[Sequence[_Pair]], spread: float, shares: Sequence[float]
) -> tuple[float, ServiceVariation, float]:
    """Return the cost of a spread, and it with the best wake-up time of each runtime.

    Args:
        shares: candidates for the wake-up time. The best one of the last group is returned too.
    """
    several = any(not network.single for pairs in groups for _, network in pairs)
    expected = _SPREAD_OF_STEPS if several else SPREAD
    total = math.log1p((math.log(spread / expected) / _LOG_SPREAD_SCALE) ** 2)
    wakes: list[tuple[str, float]] = []
    share = 0.0
    for pairs in groups:
        shortest_ms = _shortest_ms(pairs)
        candidates = []
        for candidate in shares:
            own = {runtime: candidate * ms for runtime, ms in shortest_ms.items()}
            misfits = (_misfit(load, _varied(load, net, spread, own)) for load, net in pairs)
            candidates.append((sum(misfits), candidate))
        misfit, share = min(candidates)
        total += misfit / _OFF
        wakes += [(runtime, share * ms) for runtime, ms in shortest_ms.items()]
    return total, ServiceVariation(spread, tuple(wakes)), share


def _shortest_ms(pairs: Sequence[_Pair]) -> dict[str, float]:
    """Return the shortest execution of each runtime."""
    shortest: dict[str, float] = {}
    for load, network in pairs:
        for model, batcher in zip(executing(load.config), network.batchers, strict=True):
            runtime, ms = model.artifact.runtime, batcher.curve.execution_ms[0]
            shortest[runtime] = min(ms, shortest.get(runtime, math.inf))
    return shortest


def _varied(
    load: LightLoadTimes, network: Network, spread: float, wakes_ms: Mapping[str, float]
) -> Network:
    """Return the network with other variations of its executions."""
    batchers = tuple(
        replace(
            batcher,
            curve=replace(batcher.curve, spread=spread, wake_ms=wakes_ms[model.artifact.runtime]),
        )
        for model, batcher in zip(executing(load.config), network.batchers, strict=True)
    )
    return replace(network, batchers=batchers)


def _misfit(load: LightLoadTimes, network: Network) -> float:
    """Return the mean absolute log ratio of simulated over measured."""
    requests = _REQUESTS if network.single else _REQUESTS_OF_NETWORK
    loads = Loads(network, offered_streams(load.workload), requests, 0, load.per_second)
    levels = loads.levels(load.per_second, _PERCENTILES)
    latencies = [
        (level.latency_ms(p), measured)
        for level, own in zip(levels, load.latencies_ms, strict=True)
        for p, measured in own
    ]
    mean_batches = zip(levels[0].batchers, load.mean_batches, strict=True)
    batches = [(batcher.mean_batch, measured) for batcher, (_, measured) in mean_batches]
    return (2 * _mean_off(latencies) + _mean_off(batches)) / 3


def _mean_off(pairs: Sequence[tuple[float, float]]) -> float:
    return sum(min(_FAR, abs(math.log(a / b))) for a, b in pairs) / len(pairs)


_Pair = tuple[LightLoadTimes, Network]
