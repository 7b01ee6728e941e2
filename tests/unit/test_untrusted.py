from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.table import Table

from optimizer.cli import main
from optimizer.cli.output import OutputConsole
from optimizer.files.untrusted import (
    UnreadableError,
    check_ranges,
    csv_rows,
    is_one_folder,
    is_safe_name,
    parse_json,
    read_bytes,
    read_text,
)
from optimizer.files.untrusted_yaml import MAX_VALUES, UnreadableYamlError, parse_yaml


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("é\n")
    assert read_text(tmp_path / "file") == "é\n"
    assert read_bytes(tmp_path / "file", most=3) == "é\n".encode()


def _pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


@pytest.mark.parametrize(
    ("made", "rule"),
    [
        (lambda folder: folder / "none", r"must be readable \(No such file"),
        (lambda folder: folder, r"must be readable \(Is a directory"),
        (lambda folder: _pipe(folder / "pipe"), "not a pipe or a device"),
        (lambda _: Path("/dev/zero"), "not a pipe or a device"),
        (lambda folder: folder / ("x" * 300), r"must be readable \(File name too long"),
        (lambda folder: folder / "a\0b", "without NUL"),
    ],
)
def test_what_is_no_file_is_refused_and_never_waited_for(
    tmp_path: Path, made: Callable[[Path], Path], rule: str
) -> None:
    with pytest.raises(UnreadableError, match=rule):
        read_bytes(made(tmp_path))


def test_a_file_that_is_too_long_or_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\xff" * 5)
    with pytest.raises(UnreadableError, match="at most"):
        read_bytes(tmp_path / "file", most=4)
    with pytest.raises(UnreadableError, match="UTF-8"):
        read_text(tmp_path / "file")


def test_reading_takes_the_memory_of_the_file_and_not_of_the_largest_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"small")
    tracemalloc.start()
    try:
        assert read_bytes(tmp_path / "file") == b"small"
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("{", "must be JSON, line 1"),
        ("[NaN]", "must be finite, got NaN"),
        ("[-Infinity]", "must be finite, got -Infinity"),
        ("[1e999]", "must be finite, got 1e999"),
        ("[9223372036854775808]", "must fit in 64 bits"),
        ("[-9223372036854775809]", "must fit in 64 bits"),
        (f"[{'9' * 5000}]", "must fit in 64 bits, got 99999"),
        ("[" * 100_000, "nested at most"),
        ("[" * 60 + "]" * 60, "nested at most 50 deep"),
        (r'["\ud800"]', "lone surrogates"),
    ],
)
def test_json_that_is_refused(text: str, rule: str) -> None:
    with pytest.raises(UnreadableError, match=rule):
        parse_json(text)


def test_json_that_is_read() -> None:
    data = {"a": [1, -0.5, None, True, "é", 2**63 - 1], "b": {}}
    assert parse_json(json.dumps(data).encode()) == data


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("a\n" + "x" * 140_000, "line 2: must be CSV"),
        ('a\n"b', "must be CSV"),
    ],
)
def test_csv_that_is_refused(text: str, rule: str) -> None:
    with pytest.raises(UnreadableError, match=rule):
        list(csv_rows(text).rows)


def test_csv_of_too_many_rows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimizer.files.untrusted.MAX_ROWS", 3)
    assert len(list(csv_rows("a\n" + "1\n" * 3).rows)) == 3
    with pytest.raises(UnreadableError, match="at most 3 rows"):
        list(csv_rows("a\n" + "1\n" * 4).rows)


def test_short_rows_of_csv_are_filled_and_empty_ones_passed_over() -> None:
    table = csv_rows('a,b\n1,2\n\n"3"\n4,5,6\n')
    assert table.names == ("a", "b")
    assert list(table.rows) == [
        (2, {"a": "1", "b": "2"}),
        (4, {"a": "3", "b": ""}),
        (5, {"a": "4", "b": "5"}),
    ]


@pytest.mark.parametrize(
    ("text", "rule", "line"),
    [
        ("a: 1\nb: 2026-13-45", "'2026-13-45' cannot be read as timestamp", 2),
        (f"a: {'9' * 5000}", "cannot be read as int", 1),
        ("a: !!bool maybe", "'maybe' cannot be read as bool", 1),
        ("a: !!python/object:os.system x", "tags such as .* are not used", 1),
        ("a: !!binary x", "tags such as .* are not used", 1),
        ("&a [*a]", "nested at most 50 deep", None),
        ("a: 12345678901234567890", "must fit in 64 bits", None),
        ("[" * 300, "nested at most 50 deep", None),
        ("a: \t- b\n\t", "cannot start any token|mapping values|found", None),
        ("a: [" + "1," * 3 * MAX_VALUES + "]", "at most 20,000 values", None),
        ("a: '" + "x" * 300_000 + "'", "at most 256 KiB", None),
        (
            "a: &a [1,2,3,4,5,6,7,8,9,0]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
            "c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\n"
            "e: [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\n",
            "an alias counts as what it repeats",
            None,
        ),
    ],
)
def test_yaml_that_is_refused(text: str, rule: str, line: int | None) -> None:
    with pytest.raises(UnreadableYamlError, match=rule) as refused:
        parse_yaml(text)
    assert line is None or refused.value.line == line


def test_yaml_that_is_read() -> None:
    text = "a: &x {b: [1, 0x10, 1.5, true, null, text]}\nc: *x\nd: {<<: *x}\n"
    inner = {"b": [1, 16, 1.5, True, None, "text"]}
    assert parse_yaml(text) == {"a": inner, "c": inner, "d": inner}


@dataclass(frozen=True)
class Load:
    queue_ms: float
    batch_size: int
    excess: float


@dataclass(frozen=True)
class Loads:
    of: tuple[Load, ...]


def test_numbers_are_held_to_their_units() -> None:
    check_ranges(Loads((Load(0.0, 1, -0.5),)))
    with pytest.raises(UnreadableError, match=r"^of\.1\.queue_ms must be at least 0, got -1$"):
        check_ranges(Loads((Load(0.0, 1, 0.0), Load(-1.0, 1, 0.0))))
    with pytest.raises(UnreadableError, match=r"^of\.0\.batch_size must be above 0, got 0$"):
        check_ranges(Loads((Load(0.0, 0, 0.0),)))


def test_names_that_could_lead_out_of_a_folder_are_not_safe() -> None:
    assert all(map(is_safe_name, ("bert", "my-model_2", "v1.5")))
    assert not any(map(is_safe_name, ("", ".", "..", "../x", "/x", ".x", "a/b", "a\0", "x" * 200)))
    assert all(map(is_one_folder, ("my model-1.2", ".x", "é\n", "a..b", "-a", "x" * 200)))
    assert not any(map(is_one_folder, ("", ".", "..", "../x", "/x", "a/b", "a\0")))


def test_what_looks_like_markup_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("[bold]type[/]")
    table.add_row("[link=http://x]a[/nothing]")
    console = OutputConsole()
    console.print("[red]:smile:[/nothing]")
    console.print(table)
    said = capsys.readouterr().out
    for text in ("[red]:smile:[/nothing]", "[bold]type[/]", "[link=http://x]a[/nothing]"):
        assert text in said


def test_a_message_that_quotes_a_file_obeys_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["measure", str(tmp_path / "\x1b[31mred\x07")])
    assert ended.value.code == 2
    # click removes colours, but no other control characters, where no terminal is written to.
    assert not {"\x1b", "\x07"} & {*capsys.readouterr().err}


@pytest.mark.parametrize("number", [-(2**63), 2**63 - 1])
def test_the_largest_numbers_of_64_bits_are_read(number: int) -> None:
    assert parse_json(str(number)) == number
    assert parse_yaml(str(number)) == number
