"""disturbance.json: how much trials that run at the same time slow each other down."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from optimizer.errors import DamagedStudyError
from optimizer.files.atomic import write_text
from optimizer.files.untrusted import check_ranges, parse_json, read_bytes
from optimizer.measurement.disturbance import DisturbanceCheck
from optimizer.space_file.section import first_mistake


@cache
def _json() -> TypeAdapter[tuple[DisturbanceCheck, ...]]:
    return TypeAdapter(tuple[DisturbanceCheck, ...])


class DisturbanceFile:
    """The checks of all runs of a study, in the order of time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[DisturbanceCheck, ...]:
        """Return the checks; none where trials ran one at a time.

        Raises:
            DamagedStudyError: for a file that no run can have written.
        """
        if not self.path.exists():
            return ()
        try:
            checks = _json().validate_python(parse_json(read_bytes(self.path)))
            for check in checks:
                check_ranges(check)
                if not check.together or check.alone.per_second <= 0:
                    raise ValueError("a check must have a rate alone and rates together")
        except ValidationError as error:
            raise DamagedStudyError(self.path, first_mistake(error)) from error
        except ValueError as error:
            raise DamagedStudyError(self.path, error) from error
        return checks

    def add(self, check: DisturbanceCheck) -> None:
        """Append a check. Raises StorageError."""
        text = _json().dump_json((*self.read(), check), indent=2).decode()
        write_text(self.path, text + "\n")
