from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from pydantic import TypeAdapter

from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.trial_record import SCHEMA_VERSION, Seconds, TrialRecord
from tests.unit.strategies import trial_records

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
