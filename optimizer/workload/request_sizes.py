"""Sizes of the free dimensions of requests, drawn or of a file, and what requests are padded to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


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


ONE_LENGTH = LengthDistribution((1,), (1.0,))


def only_length(length: int) -> LengthDistribution:
    """Return lengths that are all the same."""
    return LengthDistribution((length,), (1.0,))


def padded_length(length: int, padding: tuple[int, ...], lengths: LengthDistribution) -> int:
    """Return the length to which a request of `length` tokens is padded.

    Triton batches only requests of equal shape, so fewer distinct lengths make larger batches and
    more padding. A length above every bucket is padded to the workload's longest.
    """
    return next((bucket for bucket in sorted(padding) if bucket >= length), lengths.longest)


@dataclass(frozen=True)
class RequestFile:
    """A file, or a directory of files, with the values of requests.

    Attributes:
        sha256: of the content.
        requests: number of requests of one inference.
        shapes: number of requests of each shape, leaving the length aside.
        binary: whether an element of BYTES is no UTF-8 text.
        unused: keys of the file that have no meaning here.
    """

    path: Path
    sha256: str
    requests: int
    shapes: tuple[int, ...]
    binary: bool = False
    unused: tuple[str, ...] = ()
