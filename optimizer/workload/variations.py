"""Different requests made of one, by its number: what a client changes in a serialised request.

A load client cannot draw a request for each transmission, and cannot hold as many as it sends. It
holds a few and replaces some of their elements by the digits of a number, each by a value that the
stream's requests may have there. Other numbers give other requests, and the same number always
gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.workload.data_types import FLOATING, NUMPY_TYPES
from optimizer.workload.streams import LENGTH, Payloads, Tensors, TensorSpec
from optimizer.workload.text_pattern import DrawnText
from optimizer.workload.transport import Digit

ENOUGH = 2**48
"""Different requests made of one; no server is sent so many."""

_MOST_VALUES = {1: 2**20, 2: 2**20, 3: 2**16}
"""Values that an element takes, by the number of elements of a tensor."""

_USUAL_VALUES = 2**12

_TEXTS = 100
"""Texts that are drawn to see how many others are made of each."""

Variations = dict[str, tuple[Digit, ...]]
"""By tensor, digits at their offsets within the tensor's encoded content."""


def variations_of(payloads: Payloads, request: Tensors) -> Variations:
    """Return what may be changed in a request: no more than is needed for `ENOUGH` others."""
    variations: Variations = {}
    made = 1
    for spec in payloads.tensors:
        chosen = []
        for digit in _digits(spec, payloads, request[spec.name]) if spec.drawn else ():
            if made >= ENOUGH:
                break
            chosen.append(digit)
            made *= digit.base
        variations[spec.name] = tuple(chosen)
    return variations


def least_different(payloads: Payloads, batch_size: int = 1) -> int:
    """Return how many different requests are made of one at least, up to `ENOUGH`.

    Texts differ in how much of them may be replaced: of several, the one of the fewest counts.
    """
    if payloads.recorded and payloads.file is not None:
        return max(1, payloads.file.requests // batch_size)
    count = _TEXTS if any(spec.pattern for spec in payloads.tensors) else 1
    rng = np.random.default_rng(0)
    requests = payloads.smallest().sample(count, rng, batch_size=batch_size)
    return min(_different(variations_of(payloads, request)) for request in requests)


def _different(variations: Variations) -> int:
    digits = (digit for own in variations.values() for digit in own)
    return min(ENOUGH, math.prod(digit.base for digit in digits))


def _digits(spec: TensorSpec, payloads: Payloads, array: NDArray[np.generic]) -> Iterator[Digit]:
    """Yield a digit for each element, or character, that may have several values."""
    elements = _varying_elements(spec, payloads, array)
    if spec.data_type == "BYTES":
        yield from _digits_of_texts(array, {int(element) for element in elements})
        return
    width = NUMPY_TYPES[spec.data_type].itemsize
    values = _encoded_values(spec, _MOST_VALUES.get(len(elements), _USUAL_VALUES))
    if len(values) > width:
        for element in elements:
            yield Digit(int(element) * width, width, values)


def _varying_elements(
    spec: TensorSpec, payloads: Payloads, array: NDArray[np.generic]
) -> NDArray[np.int64]:
    """Return the positions, in row-major order, of the elements that are never padding."""
    positions = np.arange(array.size).reshape(array.shape)
    if LENGTH in spec.shape:
        axis = spec.shape.index(LENGTH) - len(spec.shape)
        positions = positions.take(range(payloads.smallest_sizes()[LENGTH]), axis=axis)
    return positions.ravel()


@lru_cache(maxsize=256)
def _encoded_values(spec: TensorSpec, most: int) -> bytes:
    # Digits share one object, which is sent to client processes once.
    return _values(spec, most).tobytes()


def _values(spec: TensorSpec, most: int) -> NDArray[np.generic]:
    """Return different values that an element may have, at most `most` of them."""
    dtype = NUMPY_TYPES[spec.data_type]
    values: NDArray[Any]
    low, high = spec.minimum, spec.maximum
    if spec.choices:
        values = np.array(spec.choices[:most])
    elif spec.data_type in FLOATING:
        values = np.linspace(low, high, most).astype(dtype)
    else:
        kind = np.uint64 if spec.data_type == "UINT64" else np.int64
        count = min(most, int(high) - int(low) + 1)
        step = max(1, count - 1)
        values = np.array(
            [int(low) + n * (int(high) - int(low)) // step for n in range(count)], kind
        )
    unique: NDArray[np.generic] = np.unique(values.astype(dtype))
    return unique


def _digits_of_texts(array: NDArray[np.generic], elements: set[int]) -> Iterator[Digit]:
    offset = 0
    for position, text in enumerate(array.ravel().tolist()):
        offset += 4  # the length of the text
        if position in elements and isinstance(text, DrawnText):
            for begin, width, values in text.choices:
                yield Digit(offset + begin, width, values)
        offset += len(text)


def shifted(digits: tuple[Digit, ...], by: int) -> tuple[Digit, ...]:
    """Return digits in a content that begins `by` bytes later."""
    return tuple(replace(digit, offset=digit.offset + by) for digit in digits)
