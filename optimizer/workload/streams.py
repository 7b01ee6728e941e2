"""The workload: request streams, their tensors and their lengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from optimizer.workload.arrivals import ArrivalPattern
from optimizer.workload.data_types import FLOATING, NUMPY_TYPES, DataType

Tensors = dict[str, NDArray[np.generic]]
"""Tensors of one request by name, each of shape [inferences, ...]; [...] without a batch axis."""

LENGTH = "length"
"""The free dimension that requests are padded along, by `ModelServing.padding`."""


@dataclass(frozen=True)
class TensorSpec:
    """One input of the model and its values in requests.

    Attributes:
        data_type: Triton's data type.
        shape: dimensions without the batch: sizes, and names of free dimensions.
        minimum, maximum: inclusive bounds of the values, where `choices` is empty.
        pad: value of positions beyond the request's length.
        choices: values of which each element is one; texts for BYTES.
    """

    name: str
    data_type: DataType
    shape: tuple[int | str | None, ...]
    minimum: float = 0.0
    maximum: float = 0.0
    pad: float = 0.0
    choices: tuple[bool | int | float | str, ...] = ()

    def __post_init__(self) -> None:
        # The length had no name in studies of earlier versions.
        named = tuple(LENGTH if size is None else size for size in self.shape)
        object.__setattr__(self, "shape", named)

    @property
    def free(self) -> tuple[str, ...]:
        """Names of its free dimensions, in order."""
        return tuple(size for size in self.shape if isinstance(size, str))

    @property
    def example(self) -> bool | int | float | str:
        """A valid value for its elements."""
        return self.choices[0] if self.choices else self.minimum

    def sized(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape without the batch, given the sizes of the free dimensions."""
        return tuple(sizes[n] if isinstance(n, str) else n for n in self.shape if n is not None)


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
class Dimension:
    """A free dimension of input tensors besides the length.

    Attributes:
        sizes: distribution of its size; None where it follows from another dimension.
        of, times, plus: where it does, the size is `times` x size of dimension `of` + `plus`.
    """

    name: str
    sizes: LengthDistribution | None
    of: str = ""
    times: int = 1
    plus: int = 0


_ONE = LengthDistribution((1,), (1.0,))


@dataclass(frozen=True)
class Payloads:
    """The distribution of a stream's requests.

    Attributes:
        lengths: of the dimension `LENGTH`; without such a dimension it has no effect.
        dimensions: the other free dimensions; one that follows from another comes after it.
        batched: whether tensors have a batch axis in front; without, the model's max_batch_size
            is 0 and each request is one inference.
    """

    tensors: tuple[TensorSpec, ...]
    lengths: LengthDistribution = _ONE
    dimensions: tuple[Dimension, ...] = ()
    batched: bool = True

    def sample(
        self,
        count: int,
        rng: np.random.Generator,
        padding: tuple[int, ...] = (),
        batch_size: int = 1,
    ) -> list[Tensors]:
        """Draw `count` requests of `batch_size` inferences, padded by `ModelServing.padding`.

        All inferences of one request have the same shapes.
        """
        lengths = self.lengths.sample(count * batch_size, rng).reshape(count, batch_size)
        return [self._request(own.tolist(), padding, rng) for own in lengths]

    def sent_lengths(self, padding: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Return the lengths that requests are padded to, ascending.

        Inputs without an axis for the length have one shape, which the longest length stands for.
        """
        if not any(LENGTH in spec.shape for spec in self.tensors):
            return (self.lengths.longest,)
        lengths = self.lengths
        return tuple(sorted({padded_length(n, padding, lengths) for n in lengths.lengths}))

    def largest_sizes(self, length: int | None = None) -> dict[str, int]:
        """Return the largest size of each free dimension, the length's as given or the longest."""
        return self._sizes(length or self.lengths.longest, lambda own: own.longest)

    def smallest_sizes(self) -> dict[str, int]:
        """Return the smallest size of each free dimension."""
        return self._sizes(min(self.lengths.lengths), lambda own: min(own.lengths))

    def largest(self) -> Payloads:
        """Return the same requests, each of the largest size in every dimension."""
        dimensions = tuple(
            each if each.sizes is None else replace(each, sizes=_only(each.sizes.longest))
            for each in self.dimensions
        )
        return replace(self, lengths=_only(self.lengths.longest), dimensions=dimensions)

    def _sizes(self, length: int, size: Callable[[LengthDistribution], int]) -> dict[str, int]:
        sizes = {LENGTH: length}
        for each in self.dimensions:
            follows = each.times * sizes.get(each.of, 0) + each.plus
            sizes[each.name] = follows if each.sizes is None else size(each.sizes)
        return sizes

    def _request(
        self, lengths: list[int], padding: tuple[int, ...], rng: np.random.Generator
    ) -> Tensors:
        padded = padded_length(max(lengths), padding, self.lengths)
        sizes = self._sizes(padded, lambda own: int(own.sample(1, rng)[0]))
        inferences = [self._inference(length, sizes, rng) for length in lengths]
        return stack(inferences) if self.batched else inferences[0]

    def _inference(self, length: int, sizes: dict[str, int], rng: np.random.Generator) -> Tensors:
        batch = (1,) if self.batched else ()
        return {spec.name: _draw(spec, length, sizes, batch, rng) for spec in self.tensors}


def _only(length: int) -> LengthDistribution:
    return LengthDistribution((length,), (1.0,))


def _draw(
    spec: TensorSpec,
    length: int,
    sizes: Mapping[str, int],
    batch: tuple[int, ...],
    rng: np.random.Generator,
) -> NDArray[np.generic]:
    shape = (*batch, *spec.sized({**sizes, LENGTH: length}))
    values = _values(spec, shape, rng)
    if LENGTH not in spec.shape:
        return values
    missing = [(0, sizes[LENGTH] - length if n == LENGTH else 0) for n in spec.shape]
    pad: Any = spec.pad if spec.data_type != "BYTES" else b""
    return np.pad(values, [(0, 0)] * len(batch) + missing, constant_values=pad)


def _values(
    spec: TensorSpec, shape: tuple[int, ...], rng: np.random.Generator
) -> NDArray[np.generic]:
    dtype = NUMPY_TYPES[spec.data_type]
    if spec.choices:
        listed = np.empty(len(spec.choices), dtype=dtype)
        listed[:] = [c.encode() if isinstance(c, str) else c for c in spec.choices]
        return np.asarray(listed[rng.integers(len(listed), size=shape)], dtype=dtype)
    if spec.data_type in FLOATING:
        return np.asarray(rng.uniform(spec.minimum, spec.maximum, size=shape)).astype(dtype)
    kind = np.uint64 if spec.data_type == "UINT64" else np.int64
    low, high = int(spec.minimum), int(spec.maximum)
    drawn = rng.integers(low, high, size=shape, endpoint=True, dtype=kind)
    return np.asarray(drawn).astype(dtype)


def padded_length(length: int, padding: tuple[int, ...], lengths: LengthDistribution) -> int:
    """Return the length to which a request of `length` tokens is padded.

    Triton batches only requests of equal shape, so fewer distinct lengths make larger batches and
    more padding. A length above every bucket is padded to the workload's longest.
    """
    return next((bucket for bucket in sorted(padding) if bucket >= length), lengths.longest)


def stack(requests: list[Tensors]) -> Tensors:
    """Join requests of equal shapes into one batch, shape [len(requests), ...] each.

    One request is returned as it is, so it need not have a batch axis.
    """
    if len(requests) == 1:
        return requests[0]
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
        version: of the model that requests name; empty for the newest that is served.
    """

    name: str
    target: str
    arrivals: ArrivalPattern
    payloads: Payloads
    limit: LatencyLimit
    demand_per_second: float
    batch_size: int = 1
    version: str = ""


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
        version: of the model; empty for the newest that is served.
    """

    model: str
    body: bytes
    json_bytes: int | None = None
    version: str = ""


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
