"""What requests must be like, so that they repeat as the traffic says and no more often."""

from __future__ import annotations

from collections.abc import Iterator

from optimizer.configuration.search_space import SearchSpace
from optimizer.errors import Mistake
from optimizer.workload.streams import Stream, Workload
from optimizer.workload.variations import ENOUGH, least_different

_LEAST_ENTRY_BYTES = 64
"""Of the response cache; see `optimizer.simulator.response_cache`."""


def repetition_mistakes(workload: Workload, space: SearchSpace) -> Iterator[Mistake]:
    """Yield mistakes of streams whose requests repeat, or must not because a cache is searched."""
    varied = [each for each in workload.streams if must_vary(each, space)]
    transport = workload.transport
    because = "with response_cache, traffic.repeats or keys, where each request has its own bytes"
    if varied and transport.encoding == "json":
        yield Mistake("traffic.transport.encoding", f"must be binary {because}", "json")
    if varied and transport.shared_memory:
        yield Mistake("traffic.transport.shared_memory", f"must be false {because}", "true")
    for stream in varied:
        yield from _too_few_requests(stream, space)


def must_vary(stream: Stream, space: SearchSpace) -> bool:
    """Return whether a stream's requests must be different, or repeat as the traffic says."""
    return stream.population is not None or space.cache_bytes(stream.target) > 0


def _too_few_requests(stream: Stream, space: SearchSpace) -> Iterator[Mistake]:
    different = least_different(stream.payloads, stream.batch_size)
    if stream.population is not None:
        if different < stream.population:
            rule = (
                f"must be at most {different:,}, the number of different requests to "
                f"{stream.target}"
            )
            yield Mistake("traffic.repeats.population", rule, str(stream.population))
    elif different < min(ENOUGH, space.cache_bytes(stream.target) // _LEAST_ENTRY_BYTES):
        rule = (
            f"must be given with response_cache: {stream.target} has only {different:,} different "
            "requests, which the cache could answer although the traffic is said not to repeat"
        )
        yield Mistake("traffic.repeats", rule)
