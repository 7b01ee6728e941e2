"""What executes at the same time in a network, from a simulation of a measured level.

Requests of one batch move through the steps together, so steps are not busy independently of each
other: while one of them executes, those beside it in the pipeline are busy more often than usual.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.level import LoadLevel
from optimizer.simulator.network import Network
from optimizer.simulator.network_simulation import network_closed_loop, network_open_loop
from optimizer.simulator.served_network import offered_streams, served_network
from optimizer.simulator.service_model import ServiceModel
from optimizer.simulator.service_observation import ServiceObservation
from optimizer.workload.streams import Workload

_REQUESTS = 3_000
_SKIPPED = 0.1
"""Share of the events at either end of a simulation that do not count."""


Overlaps = Mapping[str, Mapping[str, float]]
"""Mean number of instances of each other model that execute while a model executes, by model."""


def with_overlaps(
    observations: tuple[ServiceObservation, ...],
    overlaps: Overlaps,
) -> tuple[ServiceObservation, ...]:
    """Return the observations of a level with what executed at the same time."""
    return tuple(
        replace(
            each,
            others=tuple(replace(other, mean_busy=own[other.name]) for other in each.others),
        )
        if (own := overlaps.get(each.layout.model)) is not None
        else each
        for each in observations
    )


def overlaps_of(
    config: ServingConfig,
    level: LoadLevel,
    service: ServiceModel,
    workload: Workload,
    concurrency: int,
) -> Overlaps:
    """Simulate a measured level; return what executes while each model executes.

    Args:
        concurrency: requests outstanding under saturation.

    Raises:
        KeyError: when a model was never observed.
    """
    network, offered = served_network(config, service, workload), offered_streams(workload)
    rng = np.random.default_rng(0)
    shares = np.array([stream.share for stream in offered])
    sources = rng.choice(len(shares), size=_REQUESTS, p=shares / shares.sum())
    draws = network.draw(sources, rng)
    if level.kind == "saturation":
        simulation = network_closed_loop(network, concurrency, draws)
    else:
        arrive_ms = np.sort(rng.random(_REQUESTS)) * _REQUESTS / level.offered_per_second * 1e3
        simulation = network_open_loop(network, arrive_ms, draws)
    begins = [own.execution_begin_ms for own in simulation.batchers]
    ends = [own.execution_begin_ms + own.execution_ms for own in simulation.batchers]
    return _overlaps(network, begins, ends)


def _overlaps(
    network: Network, begins: list[NDArray[np.float64]], ends: list[NDArray[np.float64]]
) -> Overlaps:
    batchers = network.batchers
    at = np.concatenate([*begins, *ends])
    steps = np.zeros((len(at), len(batchers)))
    row = 0
    for change, times in ((1.0, begins), (-1.0, ends)):
        for k, own in enumerate(times):
            steps[row : row + len(own), k] = change
            row += len(own)
    order = np.argsort(at, kind="stable")
    inner = slice(int(_SKIPPED * len(at)), int((1 - _SKIPPED) * len(at)))
    busy = np.cumsum(steps[order], axis=0)[:-1][inner]
    lasts_ms = np.diff(at[order])[inner]
    names = [batcher.name for batcher in batchers]
    result = {}
    for k, name in enumerate(names):
        weights = busy[:, k] * lasts_ms
        if weights.sum() <= 0:
            continue
        mean_busy = weights @ busy / weights.sum()
        result[name] = dict(zip(names, mean_busy.tolist(), strict=True))
    return result
