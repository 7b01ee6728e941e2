"""A recorded table as one CSV file.

Lines that begin with "#" describe what was recorded and where, as "# key: JSON"; of a pipeline,
`search_space` has its graph, and `workload` the models that requests go to. Then comes one row for
each measurement, with the point's parameters as STEP.PARAMETER where they vary.

A row has the saturated level ("saturation:...") and, where it is a "point", a light one beside it
("light:..."). Of each, there are the requests/s, the seconds and `network_ms`, and of every model,
pipelines and their steps alike:

- `MODEL:requests`, which the server counted, warm-up included: those of a step divided by those of
  the pipeline are its calls for each request;
- `MODEL:queue_ms`, `compute_input_ms`, `compute_infer_ms` and `compute_output_ms`: means of its
  requests. Those of a BLS model contain the time of its steps;
- `MODEL:request_ms`: mean time from arrival to reply. Of an ensemble, its difference to the longest
  path through the steps is the scheduling between them. Empty in tables of earlier versions;
- `MODEL:batches`: the service curve, such as "1x20@4.51 16x300@22.3": batch size, executions, and
  their mean compute_infer in ms.

With the rates, these tell how long each instance is occupied: what calibrates a simulator.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from optimizer.configuration.model_graph import ModelGraph
from optimizer.configuration.named_parameters import Parameter
from optimizer.configuration.parameter_definition import label
from optimizer.configuration.search_space import SearchSpace
from optimizer.errors import UsageError
from optimizer.files.atomic import write_text
from optimizer.files.untrusted import (
    UnreadableError,
    check_ranges,
    csv_rows,
    parse_json,
    read_text,
    write_csv,
)
from optimizer.measurement.level import BatchPoint, LoadLevel, StreamLevel
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.level_runner import with_roles
from optimizer.search.recorded.recording import disturbed
from optimizer.search.recorded.table import (
    Kind,
    Latency,
    RecordedLevel,
    RecordedRow,
    RecordedSpace,
    RecordedTable,
    StreamLatency,
)
from optimizer.space_file.section import first_mistake
from optimizer.study.directory import RecordingDirectory
from optimizer.study.searched_space import checked

_SPACE = TypeAdapter(RecordedSpace)
_ROW = TypeAdapter(RecordedRow)
_PLAIN = (
    "outcome",
    "capacity_per_second",
    "capacity_low_per_second",
    "capacity_high_per_second",
    "excess",
    "saturation_high_per_second",
    "measuring_seconds",
    "serving_seconds",
    "disturbed",
    "reason",
)
"""Fields of a row that are columns of the same name."""

_LEVELS = ("saturation", "light")
"""Levels of a row, which prefix the names of their columns."""

_OF_LEVEL = ("per_second", "seconds", "network_ms")
_OF_STREAM = ("p50_ms", "p95_ms")
_PARTS = ("queue_ms", "compute_input_ms", "compute_infer_ms", "compute_output_ms")
_OPTIONAL_PARTS = ("request_ms",)
_DIGITS = 6


def recorded(space: RecordedSpace, directory: RecordingDirectory) -> RecordedTable:
    """Return the table of a recording's directory. Raises StorageError."""
    stores: Mapping[Kind, Mapping[int, TrialRecord]] = {
        "point": directory.trials.read_all(),
        "latencies": directory.latencies.read_all(),
        "repeat": directory.repeats.read_all(),
    }
    rows = [_row(kind, record, space) for kind in stores for record in stores[kind].values()]
    return RecordedTable(space, tuple(rows))


def _row(kind: Kind, record: TrialRecord, space: RecordedSpace) -> RecordedRow:
    position = space.search_space.position_of(record.config)
    assert position is not None, "only points of this space are recorded"
    row: dict[str, Any] = {
        "kind": kind,
        "position": position,
        "outcome": record.outcome,
        "reason": record.reason,
        "measuring_seconds": record.seconds.measuring,
        "serving_seconds": record.seconds.serving,
        "disturbed": disturbed(record),
    }
    if (measurement := record.measurement) is not None:
        first, last = measurement.levels[0], measurement.levels[-1]
        row |= {
            "saturation": _recorded(first, first.achieved_per_second, (), space),
            "saturation_high_per_second": first.rate[2],
            "capacity_per_second": measurement.capacity_per_second,
            "capacity_low_per_second": measurement.capacity_low_per_second,
            "capacity_high_per_second": measurement.capacity_high_per_second,
            "excess": record.constraints[0][1] if record.constraints else None,
        }
        if kind == "point":
            row["light"] = light = _recorded(last, last.offered_per_second, last.streams, space)
            row["measuring_seconds"] -= light.seconds
        if kind == "latencies" and record.outcome == "ok":
            row["latencies"] = tuple(map(_latency, measurement.levels[-2:]))
    return RecordedRow(**row)


def _recorded(
    level: LoadLevel, per_second: float, streams: Sequence[StreamLevel], space: RecordedSpace
) -> RecordedLevel:
    machine = level.machine
    return RecordedLevel(
        per_second,
        machine.seconds if machine is not None else space.warmup_seconds + level.seconds,
        level.network_ms,
        tuple(StreamLatency(s.name, s.latency_ms(50), s.latency_ms(95)) for s in streams),
        level.server,
    )


def _latency(level: LoadLevel) -> Latency:
    return Latency(level.offered_per_second, level.latency_ms(95))


def write_table(path: Path, table: RecordedTable) -> None:
    """Write a table atomically. Raises StorageError."""
    parameters = table.space.search_space.parameters
    rows = [_columns(row, parameters) for row in table.rows]
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    for key, value in _SPACE.dump_python(table.space, mode="json").items():
        text.write(f"# {key}: {json.dumps(value)}\n")
    write_csv(text, names, rows)
    write_text(path, text.getvalue())


def _columns(row: RecordedRow, parameters: Sequence[Parameter]) -> dict[str, object]:
    columns: dict[str, object] = {"measured": row.kind}
    for parameter, at in zip(parameters, row.position, strict=True):
        if len(parameter.values) > 1:
            columns[parameter.key] = label(parameter.values[at])
    columns |= {name: _short(getattr(row, name)) for name in _PLAIN}
    columns["latencies"] = " ".join(
        f"{_short(x.p95_ms)}@{_short(x.per_second)}" for x in row.latencies
    )
    for name in _LEVELS:
        if (level := getattr(row, name)) is not None:
            columns |= {f"{name}:{key}": value for key, value in _level_columns(level).items()}
    return columns


def _level_columns(level: RecordedLevel) -> dict[str, object]:
    columns = {name: _short(getattr(level, name)) for name in _OF_LEVEL}
    for latency in level.latencies:
        columns |= {f"{latency.stream}:{p}": _short(getattr(latency, p)) for p in _OF_STREAM}
    for split in level.servers:
        of = {part: _short(getattr(split, part)) for part in (*_PARTS, *_OPTIONAL_PARTS)}
        of |= {"requests": split.requests, "batches": _batches_text(split.batches)}
        columns |= {f"{split.model}:{name}": value for name, value in of.items()}
    return columns


def _short(value: object) -> object:
    """Return a figure with its significant digits; None is an empty field."""
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


def _batches_text(batches: Sequence[BatchPoint]) -> str:
    """Return such as "1x20@4.51 16x300@22.3": batch size, executions and their mean ms."""
    return " ".join(f"{b.batch_size}x{b.executions}@{_short(b.compute_ms)}" for b in batches)


def read_table(path: Path) -> RecordedTable:
    """Read a table. Raises UsageError, naming the mistake in the file."""
    not_a_table = f"{path} is not a table written by `optimizer record`"
    try:
        head, content = _head_and_content(read_text(path))
        space = checked(_SPACE.validate_python(head))
        rows = tuple(
            _parsed(line, columns, space.search_space) for line, columns in csv_rows(content).rows
        )
    except ValidationError as error:
        raise UsageError(f"{not_a_table}: {first_mistake(error)}") from error
    except UnreadableError as error:
        raise UsageError(f"{path}: {error}") from error
    except ValueError as error:
        raise UsageError(f"{not_a_table}: {error}") from error
    if not rows:
        raise UsageError(f"{path} contains no measurement")
    return RecordedTable(space, rows)


def _head_and_content(text: str) -> tuple[dict[str, Any], str]:
    """Return the "#" lines as a dict, and the rest with its line numbers unchanged.

    Raises ValueError.
    """
    head, content = {}, []
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if not line.startswith("#"):
            content.append(line)
            continue
        content.append("\n")
        key, colon, value = line.removeprefix("# ").partition(": ")
        if not colon:
            raise ValueError(f"line {number} must be like `# key: JSON`")
        head[key] = parse_json(value)
    return head, "".join(content)


def _parsed(line: int, columns: Mapping[str, str], space: SearchSpace) -> RecordedRow:
    """Return the row on a line. Raises ValueError."""
    try:
        row = _with_roles(_row_of(columns, space.parameters), space.graph)
        check_ranges(row)
    except KeyError as error:
        raise ValueError(f"line {line} has no column {error}") from error
    except ValidationError as error:
        raise ValueError(f"line {line}: {first_mistake(error)}") from error
    except ValueError as error:
        raise ValueError(f"line {line}: {error}") from error
    if row.position not in space.row_of:
        raise ValueError(f"line {line} is not a point of the space")
    return row


def _row_of(columns: Mapping[str, str], parameters: Sequence[Parameter]) -> RecordedRow:
    position = tuple(
        [str(label(v)) for v in p.values].index(columns[p.key]) if len(p.values) > 1 else 0
        for p in parameters
    )
    row: dict[str, Any] = {name: columns[name] for name in _PLAIN if columns[name]}
    row |= {"kind": columns["measured"], "position": position, "reason": columns["reason"]}
    row["latencies"] = [
        dict(zip(("p95_ms", "per_second"), text.split("@"), strict=True))
        for text in columns["latencies"].split()
    ]
    for name in _LEVELS:
        prefix = f"{name}:"
        own = {k.removeprefix(prefix): v for k, v in columns.items() if k.startswith(prefix) and v}
        row[name] = _level(own) if own else None
    return _ROW.validate_python(row)


def _with_roles(row: RecordedRow, graph: ModelGraph | None) -> RecordedRow:
    """Return a row whose statistics say which models are pipelines and steps."""
    levels = {name: getattr(row, name) for name in _LEVELS}
    return replace(
        row,
        **{
            name: replace(level, servers=with_roles(level.servers, graph))
            for name, level in levels.items()
            if level is not None
        },
    )


def _level(columns: Mapping[str, str]) -> dict[str, object]:
    streams, models = _names_with(columns, ":p50_ms"), _names_with(columns, ":batches")
    return {
        **{name: columns.get(name) for name in _OF_LEVEL},
        "latencies": [
            {"stream": stream, **{p: columns[f"{stream}:{p}"] for p in _OF_STREAM}}
            for stream in streams
        ],
        "servers": [_split(columns, model) for model in models],
    }


def _names_with(columns: Mapping[str, str], ending: str) -> list[str]:
    """Return the names of models or streams that have a column with this ending."""
    return [name.removesuffix(ending) for name in columns if name.endswith(ending)]


def _split(columns: Mapping[str, str], model: str) -> dict[str, object]:
    batches = []
    for text in columns[f"{model}:batches"].split():
        size, _, rest = text.partition("x")
        executions, _, compute_ms = rest.partition("@")
        batches.append({"batch_size": size, "executions": executions, "compute_ms": compute_ms})
    own = {part: columns[f"{model}:{part}"] for part in (*_PARTS, "requests")}
    own |= {part: columns[key] for part in _OPTIONAL_PARTS if (key := f"{model}:{part}") in columns}
    return {"model": model, **own, "batches": batches}
