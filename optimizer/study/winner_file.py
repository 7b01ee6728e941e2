"""The files of winner/: what was measured of a study's best configuration beyond its capacity."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError

from optimizer.configuration.serving_config import ServingConfig
from optimizer.errors import DamagedStudyError
from optimizer.files.atomic import write_text
from optimizer.files.untrusted import check_ranges, parse_json, read_bytes
from optimizer.space_file.section import first_mistake
from optimizer.study.record_store import refuse_unsafe_names


class _OfConfiguration(Protocol):
    @property
    def config(self) -> ServingConfig: ...


_Measured = TypeVar("_Measured", bound=_OfConfiguration)


class WinnerFile(Generic[_Measured]):
    """One JSON file, of the configuration that was the best when it was written.

    Args:
        kind: a frozen dataclass with the configuration as its field `config`.
    """

    def __init__(self, path: Path, kind: type[_Measured]) -> None:
        self.path = path
        self._kind = kind

    @cached_property
    def _json(self) -> TypeAdapter[_Measured]:
        return TypeAdapter(self._kind)

    def write(self, measured: _Measured) -> None:
        """Replace the file. Raises StorageError."""
        write_text(self.path, self._json.dump_json(measured, indent=2).decode() + "\n")

    def read(self, config: ServingConfig | None) -> _Measured | None:
        """Return what was measured of a configuration; None where it was not.

        Raises:
            DamagedStudyError: for a file that no run can have written.
        """
        if config is None or not self.path.exists():
            return None
        try:
            measured = self._json.validate_python(parse_json(read_bytes(self.path)))
            check_ranges(measured)
            refuse_unsafe_names(model.name for model in measured.config.models)
        except ValidationError as error:
            raise DamagedStudyError(self.path, first_mistake(error)) from error
        except ValueError as error:
            raise DamagedStudyError(self.path, error) from error
        return measured if measured.config == config else None
