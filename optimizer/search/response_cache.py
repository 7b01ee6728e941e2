"""The response cache of a configuration under the workload: what it will hold, and filling it.

A cache that has served for hours is in its steady state. It is therefore filled before the first
level with the responses that it would hold then.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from optimizer.configuration.serving_config import ServingConfig
from optimizer.errors import ConfigMismatch
from optimizer.load.request_sequence import IN_ORDER, Popular, Recorded, RequestSequence
from optimizer.measurement.level import ServerSplit
from optimizer.simulator.response_cache import SteadyCache, last_different
from optimizer.workload.arrivals import ArrivalTrace
from optimizer.workload.streams import Stream, Workload

_MOST_DRAWS = 20_000_000
_DRAWS = 100_000


def is_cached(stream: Stream, config: ServingConfig) -> bool:
    """Return whether a cache may answer a stream's requests, or those to steps of its target."""
    return any(model.cache for model in config.part(stream.target).models)


def varies(stream: Stream, config: ServingConfig) -> bool:
    """Return whether requests must be different, or repeat exactly as the traffic says."""
    return stream.population is not None or is_cached(stream, config)


def without_cache(config: ServingConfig) -> ServingConfig:
    """Return a configuration with the response cache off."""
    models = tuple(replace(model, cache=False) for model in config.models)
    return replace(config, models=models, server=replace(config.server, cache_bytes=None))


def without_repeats(workload: Workload) -> Workload:
    """Return the workload with unique requests."""
    streams = []
    for stream in workload.streams:
        arrivals = stream.arrivals
        if isinstance(arrivals, ArrivalTrace):
            arrivals = replace(arrivals, keys=())
        streams.append(replace(stream, arrivals=arrivals, repeats=None))
    return replace(workload, streams=tuple(streams))


def sequence_of(stream: Stream) -> RequestSequence:
    """Return which of a stream's requests are sent."""
    if stream.repeats is not None:
        return Popular(stream.repeats)
    if stream.keys:
        return Recorded(np.array(stream.keys, dtype=np.int64))
    return IN_ORDER


def with_expected_hits(
    split: ServerSplit, config: ServingConfig, cache: SteadyCache
) -> ServerSplit:
    """Return a model's split with the hit rate that is expected of its cache.

    Raises:
        ConfigMismatch: where the server did not ask its cache for the model's requests.
    """
    [model] = [own for own in config.models if own.name == split.model]
    if not model.cache or not split.requests:
        return split
    if split.hit_rate is None:
        raise ConfigMismatch(
            f"{split.model}: response_cache is on, and the server caches no responses of it: this "
            "version of Triton does not cache those of such a model"
        )
    return replace(
        split,
        expected_hit_rate=cache.hit_rates.get(split.model),
        entry_bytes=cache.entry_bytes.get(split.model),
    )


def held_numbers(stream: Stream, entries: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the requests whose responses a cache in steady state holds, the oldest first.

    Unique requests are none of them: their responses answer nothing.
    """
    if stream.repeats is None:
        repeated = np.bincount(stream.keys) > 1 if stream.keys else np.zeros(0, dtype=bool)
        return last_different([key for key in stream.keys if repeated[key]], entries)
    if entries >= stream.repeats.population:
        return np.arange(stream.repeats.population, dtype=np.int64)[::-1]
    probabilities = stream.repeats.probabilities()
    drawn = np.zeros(0, dtype=np.int64)
    while len(np.unique(drawn)) < entries and len(drawn) < _MOST_DRAWS:
        more = rng.choice(len(probabilities), size=max(_DRAWS, len(drawn)), p=probabilities)
        drawn = np.concatenate([more, drawn])
    return last_different(drawn, entries)
