"""Load levels that stay in the file of their record until they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast, overload

from optimizer.measurement.level import LoadLevel, Measurement
from optimizer.measurement.trial_record import TrialRecord


@dataclass(frozen=True, slots=True, eq=False)
class StoredLevels(Sequence[LoadLevel]):
    """Levels of one measurement of a record.

    Attributes:
        read: returns the record of a number with its levels.
        part: position of the measurement among those of the record, see `measurements`.
    """

    read: Callable[[int], TrialRecord]
    number: int
    part: int

    @overload
    def __getitem__(self, index: int) -> LoadLevel: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[LoadLevel, ...]: ...

    def __getitem__(self, index: int | slice) -> LoadLevel | tuple[LoadLevel, ...]:
        """Return a level, or some."""
        return self._levels[index]

    def __len__(self) -> int:
        """Return the number of levels."""
        return len(self._levels)

    def __iter__(self) -> Iterator[LoadLevel]:
        """Yield all levels."""
        return iter(self._levels)

    def __eq__(self, other: object) -> bool:
        """Return whether these are the same levels, stored or not."""
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        """Return the hash of the levels as a tuple."""
        return hash(self._levels)

    @property
    def _levels(self) -> tuple[LoadLevel, ...]:
        return measurements(self.read(self.number))[self.part].levels


def measurements(record: TrialRecord) -> list[Measurement]:
    """Return the measurements of a record: its own, then those within extra limits."""
    own = [] if record.measurement is None else [record.measurement]
    return own + [each.measurement for each in record.further]


def with_stored_levels(record: TrialRecord, read: Callable[[int], TrialRecord]) -> TrialRecord:
    """Return a record that says the same and whose levels are read when they are asked for.

    Args:
        read: see `StoredLevels`.
    """
    if record.measurement is None:
        return record

    def stored(part: int, measurement: Measurement) -> Measurement:
        # Measurement says tuple, which is what files have; a sequence is all that its readers need.
        levels = StoredLevels(read, record.number, part)
        return replace(measurement, levels=cast(tuple[LoadLevel, ...], levels))

    further = tuple(
        replace(each, measurement=stored(part, each.measurement))
        for part, each in enumerate(record.further, 1)
    )
    return replace(record, measurement=stored(0, record.measurement), further=further)
