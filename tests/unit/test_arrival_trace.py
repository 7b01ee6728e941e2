"""Recorded arrivals out of CSV files."""

import re
from pathlib import Path

import pytest

from optimizer.files.arrival_trace import read_trace


def written(folder: Path, text: str) -> Path:
    path = folder / "trace.csv"
    path.write_text(text)
    return path


def test_seconds_in_any_order_and_from_any_origin(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, "path,seconds\n/a,103\n/b, 101\n/c,102.5\n"))
    assert trace.at_seconds == (0.0, 1.5, 2.0)
    assert trace.seconds == 3.0, "one mean gap after the last arrival"
    assert len(trace.sha256) == 64


def test_timestamps_of_any_zone(tmp_path: Path) -> None:
    lines = ("timestamp", "2026-11-24T10:00:00Z", "2026-11-24T11:00:02.500+01:00",
             "2026-11-24 10:00:01")  # fmt: skip
    trace = read_trace(written(tmp_path, "\n".join(lines)))
    assert trace.at_seconds == pytest.approx((0.0, 1.0, 2.5))


def test_another_recording_has_another_digest(tmp_path: Path) -> None:
    one = read_trace(written(tmp_path, "seconds\n1\n2\n"))
    assert read_trace(written(tmp_path, "seconds\n1\n3\n")).sha256 != one.sha256


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must have a column seconds or timestamp in its first line, got []"),
        ("time\n1\n2\n", "must have a column seconds or timestamp in its first line, got ['time']"),
        ("seconds\n1\nsoon\n", "line 3: seconds must be a finite number, got 'soon'"),
        ("seconds\n1\ninf\n", "line 3: seconds must be a finite number, got 'inf'"),
        ("a,seconds\n1,2\n1\n", "line 3: seconds must be a finite number, got ''"),
        ("timestamp\nten\n", "line 2: timestamp must be an ISO 8601 time, got 'ten'"),
        ("seconds\n1\n", "must contain at least 2 arrivals, got 1"),
        ("seconds\n5\n5\n", "must contain arrivals at different times, all 2 are at 5"),
    ],
)  # fmt: skip
def test_what_is_no_recording_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        read_trace(written(tmp_path, text))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be readable \(No such file"):
        read_trace(tmp_path / "nowhere.csv")
