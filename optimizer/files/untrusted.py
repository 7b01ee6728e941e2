"""Bounded readers of untrusted files: bytes, text, JSON, CSV.

Size, depth and ranges are checked here, the meaning by the caller. A file that cannot be used
raises `UnreadableError` with the rule that it breaks; the caller adds the name of the file.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, TextIO

MAX_BYTES = 64 * 2**20
MAX_ROWS = 2_000_000
MAX_DEPTH = 50
_BEGINS_FORMULA = ("=", "+", "-", "@", "'", "\t")
_MOST_DIGITS = len(str(-(2**63)))
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


UNREADABLE_NPZ = (
    OSError,
    ValueError,
    EOFError,
    NotImplementedError,  # a compression that Python does not have
    RuntimeError,  # encrypted
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy and zipfile raise for a damaged .npz file."""


class UnreadableError(ValueError):
    """A file, or a part of it, cannot be used; the message is the rule that it breaks."""


def read_bytes(path: Path, most: int = MAX_BYTES) -> bytes:
    """Return the content of a regular file; a pipe or a device is refused without blocking."""
    try:
        with open(path, "rb", opener=_open_without_blocking) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableError("must be a regular file, not a pipe or a device")
            # Python allocates as much as it is asked to read.
            content = file.read(min(status.st_size, most) + 1)
    except OSError as error:
        raise UnreadableError(f"must be readable ({error.strerror})") from error
    except ValueError as error:
        if isinstance(error, UnreadableError):
            raise
        raise UnreadableError(f"must have a name without NUL ({error})") from error
    if len(content) > most:
        raise UnreadableError(f"must be at most {most / 2**20:g} MiB")
    return content


def _open_without_blocking(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def read_text(path: Path, most: int = MAX_BYTES) -> str:
    """Return the text of a regular file."""
    try:
        return read_bytes(path, most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableError("must be UTF-8 text") from error


def is_there(path: Path) -> bool:
    """Return whether a path exists; False for a path that is no valid file name."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def is_safe_name(name: str) -> bool:
    """Return whether a name can be that of a folder: no path, and not hidden."""
    return _NAME.fullmatch(name) is not None


def is_one_folder(name: str) -> bool:
    """Return whether a name, of any characters, is that of a folder and no path to another."""
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


def printable(text: str) -> str:
    r"""Return a text whose control and format characters are escaped, but for line ends.

    A terminal obeys what is in a name as well: it could hide lines, or write the clipboard.

    >>> printable("bert\x1b[2J")
    'bert\\x1b[2J'
    """
    return "".join(
        each
        if each.isprintable() or each == "\n" or unicodedata.category(each) == "Zs"
        else each.encode("unicode_escape").decode()
        for each in text
    )


def parse_json(content: bytes | str, make_object: Callable[[Any], Any] | None = None) -> Any:
    """Return the values of JSON text, whose numbers must be finite and fit in 64 bits.

    Args:
        make_object: returns the value of an object for its (key, value) pairs.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        data = json.loads(
            text,
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=_refuse_constant,
            object_pairs_hook=make_object,
        )
    except UnicodeDecodeError as error:
        raise UnreadableError("must be UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise UnreadableError(f"must be JSON, line {error.lineno}: {error.msg}") from error
    except RecursionError as error:
        raise _too_deep() from error
    _check_depth(data)
    # UTF-8 has no lone surrogates; an escape can stand for one.
    if text is content or "\\u" in text:
        try:
            json.dumps(data, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise UnreadableError("texts must be Unicode without lone surrogates") from error
    return data


_NOT_NEGATIVE = re.compile(
    r"(\w+_)?(cores|count|errors|completed|executions|factor|gib|headroom|hour|mib|million|months"
    r"|ms|number|percent|rejected|replicas|requests|samples|second|seconds|sent|size|threads|us|years)"
    r"|load_factor_(low|high)|within_limit"
)
_ABOVE_ZERO = re.compile(
    r"batch_size|cores|count|demand_per_second|inferences_per_request|latency_ms|limit_ms"
    r"|max_batch_size|requests_per_second|usd_per_hour"
)


_NUMBERS, _CONTAINERS = (int, float), (dict, list)
"""Made once: a union of types is made anew whenever it is evaluated."""


def check_ranges(value: object, path: str = "") -> None:
    """Raise UnreadableError where a number of a dataclass is out of the range of its unit.

    Field names end with their unit: durations, rates, counts, sizes and prices are never negative,
    and divisors are above 0.
    """
    if isinstance(value, tuple):
        for index, item in enumerate(value):
            check_ranges(item, f"{path}.{index}")
    if not is_dataclass(value):
        return
    for name, above_zero, not_negative in _ranges_of(value.__class__):
        content = getattr(value, name)
        if isinstance(content, _NUMBERS):
            if above_zero and not content > 0:
                raise UnreadableError(f"{_joined(path, name)} must be above 0, got {content:g}")
            if not_negative and content < 0:
                raise UnreadableError(f"{_joined(path, name)} must be at least 0, got {content:g}")
        elif content is not None and not isinstance(content, str):
            check_ranges(content, _joined(path, name))


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


@cache
def _ranges_of(kind: type) -> tuple[tuple[str, bool, bool], ...]:
    """Return name, whether it must be above 0, and at least 0, of each field of a dataclass."""
    return tuple((field.name, *range_of(field.name)) for field in fields(kind))


def range_of(name: str) -> tuple[bool, bool]:
    """Return whether a number of this name must be above 0, and whether it must be at least 0."""
    return _ABOVE_ZERO.fullmatch(name) is not None, _NOT_NEGATIVE.fullmatch(name) is not None


def fits_in_64_bits(number: int) -> bool:
    """Return whether a whole number is one of 64 bits with a sign."""
    return -(2**63) <= number < 2**63


def _integer(text: str) -> int:
    if len(text) > _MOST_DIGITS or not fits_in_64_bits(int(text)):
        raise UnreadableError(f"whole numbers must fit in 64 bits, got {_short(text)}")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise UnreadableError(f"numbers must be finite, got {_short(text)}")
    return number


def _refuse_constant(text: str) -> NoReturn:
    raise UnreadableError(f"numbers must be finite, got {text}")


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."


def _too_deep() -> UnreadableError:
    return UnreadableError(f"must be nested at most {MAX_DEPTH} deep")


def _check_depth(data: object) -> None:
    level = [data]
    for _ in range(MAX_DEPTH + 1):
        level = [
            part
            for container in level
            if isinstance(container, _CONTAINERS)
            for part in (container.values() if isinstance(container, dict) else container)
            if isinstance(part, _CONTAINERS)
        ]
        if not level:
            return
    raise _too_deep()


@dataclass(frozen=True)
class CsvRows:
    """The rows of a CSV file with a header.

    Attributes:
        names: of the columns.
        rows: (line, value by column); missing values of a short row are empty. Iteration may raise
            `UnreadableError`.
    """

    names: tuple[str, ...]
    rows: Iterator[tuple[int, Mapping[str, str]]]


def csv_rows(text: str) -> CsvRows:
    """Return the rows of CSV text, which are parsed one by one."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        names = tuple(next((row for row in reader if row), ()))
    except csv.Error as error:
        raise _csv_error(reader.line_num, error) from error
    return CsvRows(names, _rows(reader, names))


def write_csv(lines: TextIO, names: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write a header and rows that `csv_rows` reads.

    A text that a spreadsheet would compute as a formula is written after an apostrophe.
    """
    writer = csv.DictWriter(lines, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _as_text(value) for name, value in row.items()} for row in rows)


def _as_text(value: object) -> object:
    if not isinstance(value, str):
        return value
    value = value.replace("\r", " ")  # it would begin a row, and is not quoted
    if not value.startswith(_BEGINS_FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def _from_text(value: str) -> str:
    return value[1:] if value[:1] == "'" and value[1:].startswith(_BEGINS_FORMULA) else value


def _rows(reader: Any, names: tuple[str, ...]) -> Iterator[tuple[int, Mapping[str, str]]]:
    try:
        for count, values in enumerate((row for row in reader if row), 1):
            if count > MAX_ROWS:
                raise UnreadableError(f"must have at most {MAX_ROWS:,} rows")
            filled = [*values, *[""] * (len(names) - len(values))]
            yield reader.line_num, dict(zip(names, map(_from_text, filled), strict=False))
    except csv.Error as error:
        raise _csv_error(reader.line_num, error) from error


def _csv_error(line: int, error: csv.Error) -> UnreadableError:
    return UnreadableError(f"line {line}: must be CSV ({error})")
