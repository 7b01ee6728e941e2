from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from pydantic import TypeAdapter, ValidationError

from optimizer.configuration.serving_config import ServingConfig
from optimizer.errors import DamagedStudyError
from optimizer.files.untrusted import check_ranges
from optimizer.measurement.trial_record import SCHEMA_VERSION, Seconds, TrialRecord
from optimizer.study.record_json import record_from_json, record_to_json
from optimizer.study.record_store import RecordStore
from tests.unit.strategies import trial_records
from tests.unit.studies import ok, record_of, small_space

RECORDS = TypeAdapter(TrialRecord)
SMALLEST = TrialRecord(0, (), ServingConfig(models=()), "ok", reason="", machine="m")


@settings(max_examples=50)
@given(trial_records)
def test_json_round_trip(record: TrialRecord) -> None:
    text = RECORDS.dump_json(record)
    assert RECORDS.validate_json(text) == record
    json.loads(text, parse_constant=pytest.fail)  # no Infinity or NaN: any JSON reader takes it


def test_parameters_keep_their_type() -> None:
    values: tuple[int | float | str, ...] = (1, 1.0, "1", "true", -3, "")
    params = tuple((str(place), value) for place, value in enumerate(values))
    record = TrialRecord(0, params, ServingConfig(models=()), "ok", reason="", machine="m")
    again = RECORDS.validate_json(RECORDS.dump_json(record))
    assert [(type(v), v) for _, v in again.params] == [(type(v), v) for v in values]


def test_the_schema_version_is_written() -> None:
    assert json.loads(RECORDS.dump_json(SMALLEST))["schema_version"] == SCHEMA_VERSION


@pytest.mark.parametrize(
    ("key", "value"), [("outcome", "fine"), ("number", "first"), ("config", None)]
)
def test_a_damaged_record_is_refused_by_its_key(key: str, value: object) -> None:
    data = json.loads(RECORDS.dump_json(SMALLEST))
    with pytest.raises(ValueError, match=key):
        RECORDS.validate_json(json.dumps({**data, key: value}))


def test_overhead_is_all_but_building_and_load() -> None:
    assert Seconds(building=20, measuring=8, serving=2.5, total=31).overhead == 3


def _refused(check: Callable[[], object]) -> bool:
    try:
        check()
    except ValueError:
        return True
    return False


def _places(part: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of every number in JSON data."""
    for key, value in list(part.items() if isinstance(part, dict) else enumerate(part)):
        if isinstance(value, dict | list):
            yield from _places(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield part, key


def test_each_number_of_a_record_is_read_within_the_range_of_its_unit() -> None:
    """Also that `check_ranges`, which goes through records once more, finds nothing else."""
    space = small_space()
    data = json.loads(record_to_json(record_of(0, space.config(space.baseline), ok(100.0))))
    refused = 0
    for container, key in _places(data):
        before = container[key]
        for number in (-1, 0):
            container[key] = number
            content = json.dumps(data).encode()
            plain = _refused(lambda: check_ranges(RECORDS.validate_json(content)))  # noqa: B023
            assert _refused(lambda: record_from_json(content)) == plain, (key, number)  # noqa: B023
            refused += plain
        container[key] = before
    assert refused > 50


@pytest.mark.parametrize("number", ["1e999", "NaN", "-Infinity"])
def test_a_number_of_a_record_is_finite(number: str) -> None:
    text = record_to_json(SMALLEST).replace('"total":0.0', f'"total":{number}')
    with pytest.raises(ValidationError, match=r"seconds\.total"):
        record_from_json(text.encode())


def test_a_whole_number_of_a_record_has_64_bits() -> None:
    text = record_to_json(SMALLEST).replace('"attempt":1', f'"attempt":{2**63}')
    with pytest.raises(ValidationError, match="attempt"):
        record_from_json(text.encode())


def test_a_number_out_of_its_range_is_named_with_its_key_and_its_value(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    text = record_to_json(SMALLEST)
    (tmp_path / "00000.json").write_text(text.replace('"attempt":1', f'"attempt":{2**63}'))
    with pytest.raises(DamagedStudyError, match=f"attempt: .* equal to {2**63 - 1}, got {2**63}"):
        store.read_all()


def test_a_record_without_its_schema_version_is_refused(tmp_path: Path) -> None:
    text = record_to_json(SMALLEST)
    (tmp_path / "00000.json").write_text(
        text.replace(f'"schema_version":{SCHEMA_VERSION}', '"x":1')
    )
    with pytest.raises(DamagedStudyError, match="schema_version: Field required"):
        RecordStore(tmp_path).read_all()
