"""Damaged files of every kind that is read, and what the program makes of each.

Run as a program, `python -m tests.unit.fuzzing KIND COUNT SEED`, in a process of its own whose
memory is limited: it prints a JSON line for each file that broke its reader, and the last line is
how often each exit code came out.
"""

from __future__ import annotations

import csv
import io
import json
import os
import random
import re
import resource
import signal
import sys
import tempfile
import traceback
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from optuna.samplers import RandomSampler

from optimizer.analysis.study_reading import read_study
from optimizer.analysis.study_status import study_status
from optimizer.configuration.conditions import evaluate
from optimizer.errors import OptimizerError, UsageError
from optimizer.export.bundle.checks import check_files
from optimizer.export.bundle.difference import difference
from optimizer.export.bundle.manifest import LOAD, MANIFEST, read_bundle
from optimizer.files.arrival_trace import read_trace
from optimizer.files.request_payloads import rows_of_file, with_file
from optimizer.files.shipped import shipped
from optimizer.fleet.planning.demand_file import read_demand
from optimizer.fleet.price_list import price_warning, read_prices, usual_prices
from optimizer.load.user_load_file import read_job, read_user_load
from optimizer.search.recorded.table_file import read_table, write_table
from optimizer.space_file.reader import load_space
from optimizer.study.history import History
from optimizer.study.optuna_study import OptunaStudy
from optimizer.study.searched_space import read_searched
from optimizer.triton.counter_intervals import observed_serving
from optimizer.triton.counter_recording import read_recording
from optimizer.workload.data_types import NUMPY_TYPES
from optimizer.workload.streams import Payloads, TensorSpec
from optimizer.workload.text_pattern import draw_texts
from tests.unit.exported import Exportable
from tests.unit.simulated_counters import Server, poisson, recorded, served
from tests.unit.studies import HARDWARE, PRICE, four_points, small_space
from tests.unit.tables import recorded_table

SECONDS_EACH = 10
MEMORY_BYTES = 2**30

Damage = Callable[[str, random.Random], str]

NASTY_JSON: Sequence[Any] = (
    None, True, False, "", "x", "x" * 300, "a\x00b", "\ud800", "../../etc", "/dev/zero",
    "[bold]a[/]", "[link=http://x]y", "{}", "NaN", -1, 0, 1, -0.5,
    1e308, -1e308, 1e-320, 10**18, 10**30, 10**400,
    float("nan"), float("inf"), float("-inf"), [], {}, [[]], [None] * 50, {"a": {}}, ["x"] * 5000,
)  # fmt: skip
NASTY_YAML = (
    "2026-13-45", "0xzz", "0x", "0b2", "0o9", "9" * 5000, "1e999", ".nan", "-.inf", "!!bool maybe",
    "!!python/object:os.system x", "!!binary a", "!!int abc", "&a [*a]", "&a {b: *a}", "*a", "[",
    "]", "{", "\t", "'", '"', '"\\0"', '"' + "x" * 300 + '"', "~", "yes", "-1", "0", "1.5", "1e308",
    "1e-320", "12345678901234567890123", "[1, [2, [3]]]", "{a: 1}", "- - -", "<<: {a: 1}", "!foo x",
    "[" * 200, "[" + "1, " * 5000 + "1]", "2026-01-01T99:99:99Z", "1:99:99", "? a", "| x", "%YAML",
    "../../etc/passwd", "/dev/zero", "[bold]", "none", "max", "[openvino]", "null", "\u2028", "#",
)  # fmt: skip
NASTY_CELLS = (
    "", "nan", "inf", "-inf", "-1", "0", "1e308", "1e999", "1e-320", "9" * 400, "x", '"', "'", ",",
    "\n", "\r", "\x00", "x" * 140_000, "2026-13-45", "0004-01-01", "9999-12-31T23:59:59+00:01",
    "[bold]x[/bold]", "[link=http://x]y", "=1+1", "\ud7ff", "1_000", "0x10", "٣", "seconds",
)  # fmt: skip
NASTY_WORDS = (
    *"()[]{}+-*/%<>=!&|~@^,.:;'\"\\`#$?", "**", "//", "<<", "and", "or", "not", "in", "is", "if",
    "else", "for", "lambda", "None", "True", "0", "1", "64", "1e999", "9" * 60, "'openvino'", "==",
    "cores", "gpus", "batching", "runtime", "max_batch_size", "instance_count", "__class__", "x",
    "cores.to_csv('x')", "await", "yield", ":=", "f'{x}'", "b'x'", "...", "\x00", "\n", "\ud7ff",
)  # fmt: skip


def damaged_bytes(text: str, rng: random.Random) -> str:
    """Some characters changed, moved, left out or repeated."""
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(text) + 1), rng.choice((1, 2, 5, 40))
        part = text[at : at + length]
        new = rng.choice(
            ("", part * 2, part[::-1], chr(rng.randrange(1, 500)), rng.choice('{}[]":,-0'))
        )
        text = text[:at] + new + text[at + length :]
    return text[: rng.randrange(len(text) + 1)] if rng.random() < 0.1 else text


def damaged_json(text: str, rng: random.Random) -> str:
    """One value or key of a document is another, or is gone."""
    if rng.random() < 0.15:
        return damaged_bytes(text, rng)
    document = json.loads(text)
    for _ in range(rng.choice((1, 1, 1, 3))):
        places = list(_places([document]))
        holder, key = rng.choice(places)
        match rng.randrange(6):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[rng.choice(("", "x" * 300, "a.b", "\x00"))] = holder[key]
            case 2:
                holder[key] = [holder[key]]
            case 3:
                other, its = rng.choice(places)
                if isinstance(other, dict) == (its in other) or isinstance(other, list):
                    holder[key] = json.loads(json.dumps(_at(other, its)))
            case _:
                holder[key] = deepcopy(rng.choice(NASTY_JSON))
        if not isinstance(document, dict | list):
            break
    written = json.dumps(document)
    return "[" * 3000 + written if rng.random() < 0.01 else written


def _at(holder: Any, key: Any) -> Any:
    try:
        return holder[key]
    except (KeyError, IndexError):
        return None


def _places(holder: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(holder) if isinstance(holder, dict) else range(len(holder))
    for key in keys:
        yield holder, key
        if isinstance(holder[key], dict | list):
            yield from _places(holder[key])


def damaged_yaml(text: str, rng: random.Random) -> str:
    """One line says something else, stands elsewhere, or is gone."""
    if rng.random() < 0.2:
        return damaged_bytes(text, rng)
    lines = text.splitlines()
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(lines))
        key, colon, _ = lines[at].partition(": ")
        match rng.randrange(6):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, lines[rng.randrange(len(lines))])
            case 2:
                lines[at] = " " * rng.randrange(6) + lines[at].strip()
            case _:
                lines[at] = f"{key}{colon or ' '}{rng.choice(NASTY_YAML)}"
        if not lines:
            break
    return "\n".join(lines) + "\n"


def damaged_csv(text: str, rng: random.Random) -> str:
    """One field is another, or a row has more or fewer of them."""
    if rng.random() < 0.2:
        return damaged_bytes(text, rng)
    head = [line for line in text.splitlines(keepends=True) if line.startswith("#")]
    rows = list(csv.reader(line for line in text.splitlines() if not line.startswith("#")))
    for _ in range(rng.choice((1, 1, 3))):
        row = rng.choice(rows)
        at = rng.randrange(max(1, len(row)))
        match rng.randrange(6):
            case 0:
                row[at : at + 1] = []
            case 1:
                row.insert(at, "x")
            case 2:
                rows.append(row)
            case _:
                row[at : at + 1] = [rng.choice(NASTY_CELLS)]
    written = io.StringIO()
    csv.writer(written, lineterminator="\n", escapechar="\\").writerows(rows)
    return "".join(head) + written.getvalue()


def damaged_table(text: str, rng: random.Random) -> str:
    """The header, or a row."""
    if rng.random() < 0.5:
        return damaged_csv(text, rng)
    lines = text.splitlines(keepends=True)
    at = rng.randrange(sum(line.startswith("#") for line in lines))
    key, _, value = lines[at].partition(": ")
    lines[at] = f"{key}: {damaged_json(value, rng)}\n"
    return "".join(lines)


def damaged_lines(text: str, rng: random.Random) -> str:
    """One line of a file of JSON lines."""
    lines = text.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = damaged_json(lines[at], rng)
    return "\n".join(lines) + "\n"


def damaged_condition(text: str, rng: random.Random) -> str:
    """Words that come and go."""
    words = text.split()
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(len(words) + 1)
        words[at : at + rng.randrange(2)] = [
            rng.choice(NASTY_WORDS) * rng.choice((1, 1, 1, 2, 400))
        ]
    return rng.choice((" ", " ", "")).join(words)


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        files: that may be damaged.
        read: what a command does with them, as far as it reads.
        codes: exit codes that may come out.
    """

    files: Sequence[Path]
    damage: Damage
    read: Callable[[Path], object]
    codes: frozenset[int]


def _of_text(folder: Path, name: str, text: str, damage: Damage, read: Callable[[Path], object],
             *codes: int) -> Kind:  # fmt: skip
    path = folder / name
    path.write_text(text)
    return Kind([path], damage, read, frozenset({0, 2, *codes}))


SPACE = """\
study: fuzzed
models:
  bert:
    source:
      class: BertForSequenceClassification
      config: {hidden_size: 32, vocab_size: 100, max_position_embeddings: 64}
      seed: 0
    inputs:
      input_ids: {shape: [length], minimum: 0, maximum: 99}
    lengths: {weights: {16: 1, 32: 2.5}}
    calibration: {tensors: {input_ids: [[1, 2, 3]]}}
    accuracy: {min_cosine: 0.9}
traffic:
  demand_per_second: 500
  headroom: 0.2
  arrivals: poisson
limit: {latency_ms: 100, percentile: 95}
price: {instance_type: test.large, usd_per_hour: 0.36, as_of: 2026-01-01}
parameters:
  runtime: [openvino, pytorch]
  precision: [fp32, int8]
  batching: [false, true]
  max_batch_size: [4, 8]
  instance_count: [1, 2]
conditions:
  - batching or max_queue_delay_us == 0
measurement: {check_seconds: 10s}
budget: {trials: 60, wall_clock: 8h}
server: {launcher: embedded}
"""


def _read_space(path: Path) -> None:
    space = load_space(path, {PRICE.instance_type: PRICE}, HARDWARE)
    assert space.search_space.config(space.search_space.baseline).models
    json.dumps(space.content, allow_nan=False)


def _space(folder: Path) -> Kind:
    return _of_text(folder, "space.yaml", SPACE, damaged_yaml, _read_space, 3)


def _condition(folder: Path) -> Kind:
    table = small_space().models[0].table()

    def read(path: Path) -> None:
        try:
            evaluate(path.read_text(encoding="utf-8"), table)
        except ValueError as error:
            raise UsageError(str(error.args[0])) from error

    text = "batching or max_batch_size * 2 in ( 8 , 16 ) and not runtime == 'openvino' | 1 < cores"
    return _of_text(folder, "condition", text, damaged_condition, read)


def _trace(folder: Path) -> Kind:
    def read(path: Path) -> None:
        try:
            read_trace(path)
        except ValueError as error:
            raise UsageError(str(error)) from error

    rows = "".join(f"{n},2026-01-01T00:00:{n:02}Z\n" for n in range(20))
    kind = _of_text(folder, "trace.csv", f"seconds,timestamp\n{rows}", damaged_csv, read)
    other = folder / "times.csv"
    other.write_text("timestamp\n" + "".join(f"2026-01-01T00:00:{n:02}Z\n" for n in range(20)))
    return Kind([*kind.files, other], kind.damage, kind.read, kind.codes)


def _counters(folder: Path) -> Kind:
    def read(path: Path) -> None:
        own = observed_serving(read_recording(path), None)
        assert own.serving.instance_count
        assert own.payloads.tensors is not None

    text = recorded(Server(served(poisson(50.0, 4))).readings(4))
    return _of_text(folder, "counters.jsonl", text, damaged_lines, read)


REQUESTS = Payloads(
    (
        TensorSpec("IDS", "INT64", ("length",), from_file=True),
        TensorSpec("BOXES", "FP16", ("boxes", 2), from_file=True),
        TensorSpec("TEXT", "BYTES", (1,), from_file=True),
        TensorSpec("FLAG", "BOOL", (), from_file=True),
    )
)


def _read_requests(path: Path) -> None:
    payloads = with_file(REQUESTS, path)
    rows = rows_of_file(payloads)
    [request] = payloads.sample(1, np.random.default_rng(0), rows=rows)
    assert {name: array.dtype for name, array in request.items()} == {
        spec.name: NUMPY_TYPES[spec.data_type] for spec in REQUESTS.tensors
    }


def _requests(folder: Path) -> Kind:
    """Requests of two shapes as JSON lines."""
    rows = [
        {"IDS": [n] * (n + 1), "BOXES": [[0.5, n]], "TEXT": [f"text {n}"], "FLAG": n == 0}
        for n in range(3)
    ]
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    return _of_text(folder, "requests.jsonl", lines, damaged_lines, _read_requests)


def _perf_analyzer(folder: Path) -> Kind:
    """The same as perf_analyzer describes them, in every form."""
    boxes = np.ones((2, 2), np.float16).tobytes()
    forms: list[dict[str, Any]] = [
        {"IDS": [1, 2], "BOXES": [1, 2], "TEXT": ["a"], "FLAG": [True]},
        {
            "IDS": {"content": [1, 2, 3], "shape": [3]},
            "BOXES": {"content": {"b64": b64encode(boxes).decode()}, "shape": [2, 2]},
            "TEXT": {"b64": b64encode(b"\x01\0\0\0a").decode()},
            "FLAG": {"content": [False], "shape": []},
        },
    ]
    paths = [folder / "list.json", folder / "streams.json"]
    paths[0].write_text(json.dumps({"data": forms}))
    paths[1].write_text(json.dumps({"data": [forms, forms[:1]], "validation_data": []}))
    return Kind(paths, damaged_json, _read_requests, frozenset({0, 2}))


def _pattern(folder: Path) -> Kind:
    def read(path: Path) -> None:
        pattern = path.read_text(encoding="utf-8")
        try:
            [text] = draw_texts(pattern, 1, np.random.default_rng(0))
        except ValueError as error:
            raise UsageError(str(error)) from error
        assert re.fullmatch(pattern, text.decode())

    text = "[A-Z]{3} -[0-9]{4} (a|b c)+ \\d{2,5} [^a-z] ."
    return _of_text(folder, "pattern", text, damaged_condition, read)


def _table(folder: Path) -> Kind:
    path = folder / "table.csv"
    write_table(path, recorded_table(four_points()))

    def read(path: Path) -> None:
        table = read_table(path)
        assert table.best_capacity >= 0

    return Kind([path], damaged_table, read, frozenset({0, 2}))


def _prices(folder: Path) -> Kind:
    lines = shipped("prices.csv").read_text().splitlines(keepends=True)[:8]

    def read(path: Path) -> None:
        for price in usual_prices(read_prices(path)).values():
            price_warning(price, date(2026, 11, 1))

    return _of_text(folder, "prices.csv", "".join(lines), damaged_csv, read)


def _users(folder: Path) -> Kind:
    stairs = {"DurationInSeconds": 1.5, "NumberOfSteps": 3, "UsersPerStep": 4}
    phase = {"InitialNumberOfUsers": 1, "SpawnRate": 2, "DurationInSeconds": 120}
    threshold = {"Percentile": "P95", "ValueInMilliseconds": 500}
    stop = {"MaxInvocations": 30000, "ModelLatencyThresholds": [threshold]}
    loads = [
        {"TrafficPattern": {"TrafficType": "STAIRS", "Stairs": stairs}, "ThinkTimeInSeconds": 1},
        {
            "TrafficPattern": {"TrafficType": "PHASES", "Phases": [phase]},
            "StoppingConditions": stop,
        },
    ]
    paths = [folder / f"{n}.json" for n in range(2)]
    for path, load in zip(paths, loads, strict=True):
        path.write_text(json.dumps(load))

    def read(path: Path) -> None:
        load, _ = read_user_load(path)
        assert load.users().counts.max() <= 10_000
        read_job(path)

    return Kind(paths, damaged_json, read, frozenset({0, 2}))


def _demand(folder: Path) -> Kind:
    rows = "".join(f"{3600 * n},{100 + n}\n" for n in range(24))

    def read(path: Path) -> None:
        assert len(read_demand(path).per_second) <= 31 * 288 + 1

    return _of_text(folder, "demand.csv", f"seconds,requests_per_second\n{rows}", damaged_csv, read)


def _bundle(folder: Path) -> Kind:
    bundle = folder / "bundle"
    whole = Exportable(folder / "study").export(bundle).manifest

    def read(path: Path) -> None:
        found = read_bundle(path.parent)
        check_files(found)
        difference(whole, found.manifest)

    return Kind([bundle / MANIFEST, bundle / LOAD], damaged_json, read, frozenset({0, 2}))


def _study(folder: Path) -> Kind:
    directory = Exportable(folder).directory

    def read(_: Path) -> None:
        study_status(directory.root.parent, directory.name)
        study = read_study(directory.root.parent, directory.name)
        searched = study.searched
        study.decision(searched.price, searched.demand)
        assert study.why_nothing_confirmed
        repr(study.summary)
        History({record.number: record for record in study.trials}).counts()

    files = [directory.space, directory.searched, *sorted(directory.root.glob("[ct]*/*.json"))]
    summary: dict[str, Any] = {
        "best": None, "claims": [], "pace": {"largest_change": 0.1}, "trials": {"ok": 2},
        "ended": "its budget",
    }  # fmt: skip
    directory.summary.write_text(json.dumps(summary))
    return Kind([*files, directory.summary], damaged_json, read, frozenset({0, 2, 4}))


def _journal(folder: Path) -> Kind:
    directory = Exportable(folder).directory
    space = read_searched(directory).search_space
    records = directory.trials.read_all()

    def read(journal: Path) -> None:
        study = OptunaStudy("one", journal, None, space, lambda seed: RandomSampler(seed=seed), 0)
        study.reconcile(records)
        study.enqueue(space.baseline)
        study.ask()

    read(directory.journal)
    return Kind([directory.journal], damaged_lines, read, frozenset({0, 4}))


KINDS: dict[str, Callable[[Path], Kind]] = {
    "space": _space,
    "condition": _condition,
    "trace": _trace,
    "counters": _counters,
    "requests": _requests,
    "perf_analyzer": _perf_analyzer,
    "pattern": _pattern,
    "table": _table,
    "prices": _prices,
    "users": _users,
    "demand": _demand,
    "bundle": _bundle,
    "study": _study,
    "journal": _journal,
}


def damaged(kind: Kind, number: int, seed: int) -> tuple[Path, str]:
    """The file that is damaged in case `number`, and its new content; always the same ones."""
    rng = random.Random(f"{seed}/{number}")
    path = rng.choice(kind.files)
    return path, kind.damage(path.read_text(), rng)


@contextmanager
def _within(seconds: int) -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"not done within {seconds} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def outcome(kind: Kind, path: Path) -> tuple[int, str]:
    """The exit code, and what is wrong with how it came out; empty where nothing is."""
    try:
        with _within(SECONDS_EACH):
            kind.read(path)
    except OptimizerError as error:
        text = str(error)
        if error.exit_code not in kind.codes:
            return error.exit_code, f"exit code {error.exit_code}: {text}"
        if not text or len(text) > 5000:
            return error.exit_code, f"message of {len(text)} characters: {text[:200]}"
        return error.exit_code, ""
    except Exception as error:  # noqa: BLE001, every one of them is what is looked for
        return 1, "".join(traceback.format_exception(error))[-1500:]
    return 0, ""


def main(name: str, count: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        kind = KINDS[name](Path(folder))
        resource.setrlimit(resource.RLIMIT_DATA, (_data_bytes() + MEMORY_BYTES,) * 2)
        codes: Counter[int] = Counter()
        for number in range(count):
            path, content = damaged(kind, number, seed)
            whole = path.read_bytes()
            path.write_bytes(content.encode("utf-8", "surrogatepass"))
            code, wrong = outcome(kind, path)
            path.write_bytes(whole)
            codes[code] += 1
            if wrong:
                _say({"number": number, "file": path.name, "wrong": wrong})
        _say(dict(codes))


def _say(data: object) -> None:
    sys.stdout.write(json.dumps(data) + "\n")


def _data_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
