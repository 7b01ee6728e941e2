"""The workload: request streams, their tensors and their lengths."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from optimizer.workload.arrivals import ArrivalPattern

Tensors = dict[str, NDArray[np.generic]]
"""Input tensors of one request by name; each has shape [1, *shape]."""

DataType = Literal["INT32", "INT64", "FP32"]
NUMPY_TYPES: dict[DataType, type[np.generic]] = {
    "INT32": np.int32,
    "INT64": np.int64,
    "FP32": np.float32,
}


@dataclass(frozen=True)
class TensorSpec:
    """One input of the model and its values in requests.

    Attributes:
        data_type: Triton's data type.
        shape: dimensions without the batch; None stands for the request's length.
        minimum, maximum: inclusive bounds of the values.
        pad: value of positions beyond the request's length.
    """

    name: str
    data_type: DataType
    shape: tuple[int | None, ...]
    minimum: float
    maximum: float
    pad: float = 0.0


@dataclass(frozen=True)
class OutputTensor:
    """The output of a model that is measured and compared.

    Attributes:
        data_type: Triton's name of the element type.
        shape: dimensions without the batch; -1 stands for any size.
    """

    name: str
    data_type: DataType
    shape: tuple[int, ...]


@dataclass(frozen=True)
class LengthDistribution:
    """Lengths of requests in tokens: `lengths[i]` with probability proportional to `weights[i]`."""

    lengths: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def longest(self) -> int:
        """Largest length in tokens."""
        return max(self.lengths)

    def sample(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw lengths, shape [count]."""
        weights = np.asarray(self.weights, dtype=float)
        return rng.choice(np.asarray(self.lengths), size=count, p=weights / weights.sum())


@dataclass(frozen=True)
class Payloads:
    """The distribution of a stream's requests."""

    tensors: tuple[TensorSpec, ...]
    lengths: LengthDistribution

    def sample(
        self,
        count: int,
        rng: np.random.Generator,
        padding: tuple[int, ...] = (),
        batch_size: int = 1,
    ) -> list[Tensors]:
        """Draw `count` requests of `batch_size` inferences, padded by `ModelServing.padding`.

        Inferences of one request are padded to the same length.
        """
        lengths = self.lengths.sample(count * batch_size, rng).reshape(count, batch_size)
        return [self._batch(own.tolist(), padding, rng) for own in lengths]

    def sent_lengths(self, padding: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Return the lengths that requests are padded to, ascending.

        Inputs without an axis for the length have one shape, which the longest length stands for.
        """
        if not any(None in spec.shape for spec in self.tensors):
            return (self.lengths.longest,)
        lengths = self.lengths
        return tuple(sorted({padded_length(n, padding, lengths) for n in lengths.lengths}))

    def _batch(
        self, lengths: list[int], padding: tuple[int, ...], rng: np.random.Generator
    ) -> Tensors:
        padded = padded_length(max(lengths), padding, self.lengths)
        return stack([self._request(length, padded, rng) for length in lengths])

    def _request(self, length: int, padded: int, rng: np.random.Generator) -> Tensors:
        return {spec.name: _draw(spec, length, padded, rng) for spec in self.tensors}


def _draw(
    spec: TensorSpec, length: int, padded: int, rng: np.random.Generator
) -> NDArray[np.generic]:
    dtype = NUMPY_TYPES[spec.data_type]
    own = [1, *(length if n is None else n for n in spec.shape)]
    values: NDArray[np.generic]
    if np.issubdtype(dtype, np.integer):
        values = rng.integers(int(spec.minimum), int(spec.maximum), size=own, endpoint=True)
    else:
        values = rng.uniform(spec.minimum, spec.maximum, size=own)
    missing = [(0, 0), *((0, padded - length if n is None else 0) for n in spec.shape)]
    return np.pad(values.astype(dtype), missing, constant_values=spec.pad)


def padded_length(length: int, padding: tuple[int, ...], lengths: LengthDistribution) -> int:
    """Return the length to which a request of `length` tokens is padded.

    Triton batches only requests of equal shape, so fewer distinct lengths make larger batches and
    more padding. A length above every bucket is padded to the workload's longest.
    """
    return next((bucket for bucket in sorted(padding) if bucket >= length), lengths.longest)


def stack(requests: list[Tensors]) -> Tensors:
    """Join requests of equal shapes into one batch, shape [len(requests), ...] each."""
    return {name: np.concatenate([r[name] for r in requests]) for name in requests[0]}


@dataclass(frozen=True)
class LatencyLimit:
    """`percentile` (50 to 99.9) of the latency must not exceed `latency_ms`."""

    percentile: float
    latency_ms: float


@dataclass(frozen=True)
class Stream:
    """Requests of one kind to one model.

    Attributes:
        target: name of the model.
        demand_per_second: requests per second to the whole fleet.
        batch_size: inferences per request.
    """

    name: str
    target: str
    arrivals: ArrivalPattern
    payloads: Payloads
    limit: LatencyLimit
    demand_per_second: float
    batch_size: int = 1


@dataclass(frozen=True)
class Transport:
    """How requests are sent to the server.

    Attributes:
        encoding: encoding of tensors; "json" is for comparison and needs HTTP.
        shared_memory: whether inputs are in system shared memory.
    """

    protocol: Literal["grpc", "http"] = "grpc"
    encoding: Literal["binary", "json"] = "binary"
    shared_memory: bool = False


@dataclass(frozen=True)
class SerialisedRequest:
    """A request as bytes, which can be sent many times.

    Attributes:
        body: a ModelInferRequest, or the body of an HTTP request.
        json_bytes: length of the JSON before the binary tensors in the body of an HTTP request;
            None without binary tensors.
    """

    model: str
    body: bytes
    json_bytes: int | None = None


@dataclass(frozen=True)
class Workload:
    """All request streams; load factor 1.0 is the whole demand on one replica."""

    streams: tuple[Stream, ...]
    transport: Transport = Transport()

    @property
    def demand_per_second(self) -> float:
        """Requests per second over all streams."""
        return sum(stream.demand_per_second for stream in self.streams)

    @property
    def shortest_limit_ms(self) -> float:
        """Shortest latency limit of the streams."""
        return min(stream.limit.latency_ms for stream in self.streams)

    def within(self, limit_ms: float) -> Workload:
        """Return the workload with another shortest limit.

        The limits of the other streams keep their proportion to it.
        """
        scale = limit_ms / self.shortest_limit_ms
        limits = [
            LatencyLimit(s.limit.percentile, scale * s.limit.latency_ms) for s in self.streams
        ]
        pairs = zip(self.streams, limits, strict=True)
        return replace(self, streams=tuple(replace(s, limit=limit) for s, limit in pairs))
