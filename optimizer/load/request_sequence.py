"""Which of a stream's requests are sent one after the other, by their numbers.

A number stands for one content: the request of the pool at `number % len(pool)`, with the digits of
`number // len(pool)`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from optimizer.workload.repeats import ZipfRepeats

_BLOCK = 512
"""Numbers that are drawn at once, which takes less than 0.1 ms."""


class RequestSequence(Protocol):
    """The numbers of a stream's requests; a plain value that crosses a pipe."""

    def after(self, sent: int, rng: np.random.Generator) -> RequestSequence:
        """Return the sequence of the next level, given how many requests were sent before it."""
        ...

    def share(self, n: int, processes: int) -> RequestSequence:
        """Return the part of client process n of several."""
        ...

    def numbers(self) -> Iterator[int]:
        """Return the numbers; a level ends where there are no more.

        What takes time is done before the first one is asked for, while no request is due.
        """
        ...


@dataclass(frozen=True)
class InOrder:
    """Numbers that ascend and never repeat; without digits, the pool is sent in turn."""

    first: int = 0
    step: int = 1

    def after(self, sent: int, rng: np.random.Generator) -> InOrder:
        """Go on where the level before ended."""
        return replace(self, first=self.first + sent)

    def share(self, n: int, processes: int) -> InOrder:
        """Take every number whose position belongs to the process."""
        return InOrder(self.first + n * self.step, self.step * processes)

    def numbers(self) -> Iterator[int]:
        """Return numbers without end."""
        return itertools.count(self.first, self.step)


IN_ORDER = InOrder()


@dataclass(frozen=True)
class Popular:
    """Independent draws from a population."""

    repeats: ZipfRepeats
    seed: int = 0

    def after(self, sent: int, rng: np.random.Generator) -> Popular:
        """Draw anew."""
        return replace(self, seed=int(rng.integers(2**62)))

    def share(self, n: int, processes: int) -> Popular:
        """Draw independently of the other processes."""
        return replace(self, seed=self.seed + n)

    def numbers(self) -> Iterator[int]:
        """Return draws without end."""
        return _draws(self.repeats.probabilities().cumsum(), np.random.default_rng(self.seed))


def _draws(bounds: NDArray[np.float64], rng: np.random.Generator) -> Iterator[int]:
    while True:
        drawn = np.searchsorted(bounds, rng.random(_BLOCK) * bounds[-1], side="right")
        yield from drawn.tolist()


@dataclass(frozen=True)
class Recorded:
    """The keys of a recording in their order, over and over.

    A key that the recording has once never repeats: it gets a new number in every round.

    Attributes:
        keys: number of each request's content, from 0 up; shape [n].
        first, step: as in `InOrder`, positions in the recording.
    """

    keys: NDArray[np.int64]
    first: int = 0
    step: int = 1

    def after(self, sent: int, rng: np.random.Generator) -> Recorded:
        """Go on where the level before ended."""
        return replace(self, first=self.first + sent)

    def share(self, n: int, processes: int) -> Recorded:
        """Take every position that belongs to the process."""
        return Recorded(self.keys, self.first + n * self.step, self.step * processes)

    def numbers(self) -> Iterator[int]:
        """Return numbers without end."""
        counts = np.bincount(self.keys)
        keys, repeats, different = self.keys.tolist(), (counts > 1).tolist(), len(counts)
        positions = itertools.count(self.first, self.step)
        return (
            key if repeats[key := keys[position % len(keys)]] else different + position
            for position in positions
        )


@dataclass(frozen=True)
class Once:
    """Given numbers, each sent once; shape [n]."""

    listed: NDArray[np.int64]

    def after(self, sent: int, rng: np.random.Generator) -> Once:
        """Send the same again."""
        return self

    def share(self, n: int, processes: int) -> Once:
        """Take every number whose position belongs to the process."""
        return Once(self.listed[n::processes])

    def numbers(self) -> Iterator[int]:
        """Return each number."""
        return iter(self.listed.tolist())
