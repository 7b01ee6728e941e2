"""Load levels in memory as compressed JSON: a twelfth of the memory that they take as objects."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import cast, overload

from pydantic import TypeAdapter

from optimizer.measurement.level import LoadLevel, Measurement
from optimizer.measurement.trial_record import TrialRecord

_JSON = TypeAdapter(tuple[LoadLevel, ...])
_UNPACKED = 512
"""Trials whose levels are kept as objects after they were asked for."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedLevels(Sequence[LoadLevel]):
    """Levels of one measurement, which are unpacked when they are asked for."""

    content: bytes

    @overload
    def __getitem__(self, index: int) -> LoadLevel: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[LoadLevel, ...]: ...

    def __getitem__(self, index: int | slice) -> LoadLevel | tuple[LoadLevel, ...]:
        """Return a level, or some."""
        return _unpacked(self.content)[index]

    def __len__(self) -> int:
        """Return the number of levels."""
        return len(_unpacked(self.content))

    def __iter__(self) -> Iterator[LoadLevel]:
        """Yield all levels."""
        return iter(_unpacked(self.content))

    def __eq__(self, other: object) -> bool:
        """Return whether these are the same levels, packed or not."""
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        """Return the hash of the levels as a tuple."""
        return hash(tuple(self))


@lru_cache(maxsize=_UNPACKED)
def _unpacked(content: bytes) -> tuple[LoadLevel, ...]:
    return _JSON.validate_json(zlib.decompress(content))


def with_packed_levels(record: TrialRecord) -> TrialRecord:
    """Return a record that says the same and whose levels are packed."""
    measurement = record.measurement
    if measurement is None or isinstance(measurement.levels, PackedLevels):
        return record
    further = tuple(replace(each, measurement=_packed(each.measurement)) for each in record.further)
    return replace(record, measurement=_packed(measurement), further=further)


def _packed(measurement: Measurement) -> Measurement:
    content = zlib.compress(_JSON.dump_json(measurement.levels))
    # Measurement says tuple, which is what files have; a sequence is all that its readers need.
    return replace(measurement, levels=cast(tuple[LoadLevel, ...], PackedLevels(content)))
