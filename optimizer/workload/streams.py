"""The workload: request streams, their tensors and their lengths."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.workload.arrivals import ArrivalPattern, ArrivalTrace, Bursts
from optimizer.workload.data_types import FLOATING, NUMPY_TYPES, DataType
from optimizer.workload.repeats import ZipfRepeats
from optimizer.workload.request_sizes import (
    ONE_LENGTH,
    Dimension,
    LengthDistribution,
    RequestFile,
    only_length,
    padded_length,
)
from optimizer.workload.text_pattern import draw_texts
from optimizer.workload.transport import Transport

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
        minimum, maximum: inclusive bounds of the values, where nothing below is given.
        pad: value of positions beyond the request's length.
        choices: values of which each element is one; texts for BYTES.
        pattern: regular expression of the texts of BYTES; see `text_pattern`.
        from_file: whether requests take the values from `Payloads.file`. Where it is not at hand,
            they are the smallest, or empty texts.
    """

    name: str
    data_type: DataType
    shape: tuple[int | str | None, ...]
    minimum: float = 0.0
    maximum: float = 0.0
    pad: float = 0.0
    choices: tuple[bool | int | float | str, ...] = ()
    pattern: str = ""
    from_file: bool = False

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
        if self.choices:
            return self.choices[0]
        if self.data_type == "BYTES":
            return draw_texts(self.pattern, 1, np.random.default_rng(0))[0].decode()
        return self.minimum

    @property
    def drawn(self) -> bool:
        """Whether its values differ at random between requests."""
        several = len(self.choices) > 1 or bool(self.pattern) or self.minimum < self.maximum
        return several and not self.from_file

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
class Payloads:
    """The distribution of a stream's requests.

    Attributes:
        lengths: of the dimension `LENGTH`; without such a dimension it has no effect.
        dimensions: the other free dimensions; one that follows from another comes after it.
        batched: whether tensors have a batch axis in front; without, the model's max_batch_size
            is 0 and each request is one inference.
        one_at_a_time: whether max_batch_size is 0 although tensors have a batch axis.
        file: has the values of the tensors that are `from_file`; None without such a tensor.
    """

    tensors: tuple[TensorSpec, ...]
    lengths: LengthDistribution = ONE_LENGTH
    dimensions: tuple[Dimension, ...] = ()
    batched: bool = True
    file: RequestFile | None = None
    one_at_a_time: bool = False

    def sample(
        self,
        count: int,
        rng: np.random.Generator,
        padding: tuple[int, ...] = (),
        batch_size: int = 1,
        rows: Sequence[Tensors] = (),
    ) -> list[Tensors]:
        """Draw `count` requests of `batch_size` inferences, padded by `ModelServing.padding`.

        All inferences of one request have the same shapes.

        Args:
            rows: tensors of the file's requests, without a batch axis, which are taken in turn.
        """
        lengths = self.lengths.sample(count * batch_size, rng).reshape(count, batch_size)
        taken: list[Sequence[Tensors]] = [
            [rows[(n * batch_size + k) % len(rows)] if rows else {} for k in range(batch_size)]
            for n in range(count)
        ]
        return [
            self._request(own.tolist(), of_file, padding, rng)
            for own, of_file in zip(lengths, taken, strict=True)
        ]

    @property
    def recorded(self) -> bool:
        """Whether requests are as the file has them: no value is drawn."""
        return self.file is not None and not any(spec.drawn for spec in self.tensors)

    @property
    def dimensions_of_file(self) -> frozenset[str]:
        """Names of the free dimensions whose sizes are those of the file's values."""
        return frozenset(name for spec in self.tensors if spec.from_file for name in spec.free)

    def sizes_of(self, row: Tensors) -> dict[str, int]:
        """Return the sizes of the free dimensions in a row of the file."""
        return {
            axis: size
            for spec in self.tensors
            if spec.name in row
            for axis, size in zip(spec.shape, row[spec.name].shape, strict=True)
            if isinstance(axis, str)
        }

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

    def as_served(self) -> Payloads:
        """Return tensors as the server takes them: a batch of 1 is an axis of their shape there."""
        if not self.one_at_a_time:
            return self
        tensors = tuple(replace(each, shape=(1, *each.shape)) for each in self.tensors)
        return replace(self, tensors=tensors, batched=False, one_at_a_time=False)

    def largest(self) -> Payloads:
        """Return the same requests, each of the largest size in every dimension."""
        return self._of_sizes(lambda own: own.longest)

    def smallest(self) -> Payloads:
        """Return the same requests, each of the smallest size in every dimension."""
        return self._of_sizes(lambda own: min(own.lengths))

    def _of_sizes(self, size: Callable[[LengthDistribution], int]) -> Payloads:
        dimensions = tuple(
            each if each.sizes is None else replace(each, sizes=only_length(size(each.sizes)))
            for each in self.dimensions
        )
        return replace(self, lengths=only_length(size(self.lengths)), dimensions=dimensions)

    def _sizes(
        self,
        length: int,
        size: Callable[[LengthDistribution], int],
        of_file: Mapping[str, int] | None = None,
    ) -> dict[str, int]:
        sizes = {LENGTH: length}
        for each in self.dimensions:
            if of_file and each.name in of_file:
                sizes[each.name] = of_file[each.name]
                continue
            follows = each.times * sizes.get(each.of, 0) + each.plus
            sizes[each.name] = follows if each.sizes is None else size(each.sizes)
        return sizes

    def _request(
        self,
        drawn_lengths: list[int],
        rows: Sequence[Tensors],
        padding: tuple[int, ...],
        rng: np.random.Generator,
    ) -> Tensors:
        of_file = [self.sizes_of(row) for row in rows]
        pairs = zip(of_file, drawn_lengths, strict=True)
        lengths = [sizes.get(LENGTH, drawn) for sizes, drawn in pairs]
        padded = padded_length(max(lengths), padding, self.lengths)
        sizes = self._sizes(padded, lambda own: int(own.sample(1, rng)[0]), of_file[0])
        inferences = [
            self._inference(length, sizes, row, rng)
            for length, row in zip(lengths, rows, strict=True)
        ]
        return stack(inferences) if self.batched else inferences[0]

    def _inference(
        self, length: int, sizes: Mapping[str, int], row: Tensors, rng: np.random.Generator
    ) -> Tensors:
        tensors: Tensors = {}
        for spec in self.tensors:
            values = row.get(spec.name)
            if values is None:
                values = _values(spec, spec.sized({**sizes, LENGTH: length}), rng)
            padded = _padded(spec, values, sizes[LENGTH] - length)
            tensors[spec.name] = padded[None] if self.batched else padded
        return tensors


def _padded(spec: TensorSpec, values: NDArray[Any], missing: int) -> NDArray[Any]:
    """Return values with `missing` positions added at the end of each axis of the length."""
    if LENGTH not in spec.shape:
        return values
    pad: Any = spec.pad if spec.data_type != "BYTES" else b""
    widths = [(0, missing if axis == LENGTH else 0) for axis in spec.shape]
    return np.pad(values, widths, constant_values=pad)


def _values(
    spec: TensorSpec, shape: tuple[int, ...], rng: np.random.Generator
) -> NDArray[np.generic]:
    dtype = NUMPY_TYPES[spec.data_type]
    if spec.data_type == "BYTES" and not spec.choices:
        texts = np.empty(math.prod(shape), dtype=dtype)
        texts[:] = draw_texts(spec.pattern, len(texts), rng)
        return texts.reshape(shape)
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


def stack(requests: list[Tensors]) -> Tensors:
    """Join requests of equal shapes into one batch, shape [len(requests), ...] each.

    One request is returned as it is, so it need not have a batch axis.
    """
    if len(requests) == 1:
        return requests[0]
    return {name: np.concatenate([r[name] for r in requests]) for name in requests[0]}


def with_batch_axis(tensors: Tensors) -> Tensors:
    """Return the tensors of one inference with a batch axis of size 1 in front."""
    return {name: values[None] for name, values in tensors.items()}


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
        repeats: how popular each of a population of requests is; None where requests are unique, or
            repeat as in a recording whose arrivals have keys.
    """

    name: str
    target: str
    arrivals: ArrivalPattern
    payloads: Payloads
    limit: LatencyLimit
    demand_per_second: float
    batch_size: int = 1
    version: str = ""
    repeats: ZipfRepeats | None = None

    @property
    def keys(self) -> tuple[int, ...]:
        """The contents of a recording's requests; empty where nothing tells them."""
        return self.arrivals.keys if isinstance(self.arrivals, ArrivalTrace) else ()

    @property
    def bursts(self) -> Bursts | None:
        """The alternating rate of the arrivals; None where the rate is steady or recorded."""
        return self.arrivals if isinstance(self.arrivals, Bursts) else None

    @property
    def population(self) -> int | None:
        """Number of different requests that repeat; None where every request is unique."""
        if self.repeats is not None:
            return self.repeats.population
        return 1 + max(self.keys) if self.keys else None


_USUAL_TRANSPORT = Transport()


@dataclass(frozen=True)
class Workload:
    """All request streams; load factor 1.0 is the whole demand on one replica."""

    streams: tuple[Stream, ...]
    transport: Transport = _USUAL_TRANSPORT

    @property
    def demand_per_second(self) -> float:
        """Requests per second over all streams."""
        return sum(stream.demand_per_second for stream in self.streams)

    @property
    def bursts(self) -> Bursts | None:
        """The alternating rate of all streams, whose bursts come together; None without one."""
        return next((each.bursts for each in self.streams if each.bursts is not None), None)

    @property
    def shortest_limit_ms(self) -> float:
        """Shortest latency limit of the streams."""
        return min(stream.limit.latency_ms for stream in self.streams)

    def to(self, models: Collection[str]) -> Workload:
        """Return the workload of the streams that are sent to some of the models."""
        streams = tuple(stream for stream in self.streams if stream.target in models)
        return self if streams == self.streams else replace(self, streams=streams)

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
