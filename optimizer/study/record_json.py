"""Trial records in JSON, written by pydantic and read back in one pass that checks every number."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import SchemaValidator

from optimizer.files.untrusted import range_of
from optimizer.measurement.trial_record import TrialRecord


def record_to_json(record: TrialRecord) -> str:
    """Return a record as one line of JSON."""
    # Indented, it would be twice as long.
    return _adapter().dump_json(record).decode()


def record_from_json(content: bytes) -> TrialRecord:
    """Return the record in JSON, whose numbers are in the ranges of `check_ranges`.

    Raises:
        ValidationError: for anything else.
    """
    record: TrialRecord = _validator().validate_json(content)
    return record


@cache
def _adapter() -> TypeAdapter[TrialRecord]:
    return TypeAdapter(TrialRecord)


@cache
def _validator() -> SchemaValidator:
    # `check_ranges` would go through the hundreds of values of each record once more, in Python.
    return SchemaValidator(_with_ranges(_adapter().core_schema, ""))


def _with_ranges(schema: Any, name: str) -> Any:
    """Return a schema of pydantic's core whose numbers are held to the ranges of their fields.

    Args:
        name: of the field that it is of.
    """
    if isinstance(schema, list):
        return [_with_ranges(part, name) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kind = schema.get("type")
    own = schema["name"] if kind == "dataclass-field" else name
    held = {key: _with_ranges(part, own) for key, part in schema.items()}
    if (kind, own) == ("default", "schema_version"):
        return held["schema"]  # every record that was written has it
    if kind == "float":
        return held | _bounds(own) | {"allow_inf_nan": False}
    return held | {"ge": -(2**63), "le": 2**63 - 1} | _bounds(own) if kind == "int" else held


def _bounds(name: str) -> dict[str, int]:
    above_zero, not_negative = range_of(name)
    if above_zero:
        return {"gt": 0}
    return {"ge": 0} if not_negative else {}
