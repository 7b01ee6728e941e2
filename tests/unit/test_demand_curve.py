from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from optimizer.errors import UsageError
from optimizer.fleet.planning.demand_curve import (
    DAY_SECONDS,
    constant_demand,
    curve_from_arrivals,
    curve_from_samples,
    daily_demand,
)
from optimizer.fleet.planning.demand_file import read_demand


def test_a_constant_demand_is_the_same_all_day() -> None:
    curve = constant_demand(500.0)
    assert (curve.peak, curve.rates.mean(), curve.seconds) == (500.0, 500.0, DAY_SECONDS)
    assert curve.at(np.array([0.0, 12_345.6])) == pytest.approx([500.0, 500.0])


def test_a_day_rises_to_its_peak_hour_and_falls() -> None:
    curve = daily_demand(peak=1000.0, trough=200.0, peak_hour=9.0)
    assert curve.peak == pytest.approx(1000.0)
    assert curve.rates.mean() == pytest.approx(600.0)
    busiest = int(np.argmax(curve.rates))
    assert busiest * curve.step_seconds / 3600 == pytest.approx(9.0)
    assert curve.per_second[(busiest + 144) % 288] == pytest.approx(200.0)
    with pytest.raises(ValueError, match="trough must be from 0 to the peak of 5, got 6"):
        daily_demand(5.0, 6.0)


def test_what_comes_after_the_last_step_begins_anew() -> None:
    curve = curve_from_samples("two", np.array([0.0, 300.0]), np.array([10.0, 20.0]))
    assert curve.per_second == pytest.approx((10.0, 20.0))
    assert curve.at(np.array([150.0, 300.0, 450.0, 600.0])) == pytest.approx([10, 15, 20, 15])


def test_samples_of_any_spacing_keep_their_requests() -> None:
    at, rates = np.array([0.0, 100.0, 1000.0, 1100.0]), np.array([5.0, 50.0, 0.0, 7.0])
    curve = curve_from_samples("uneven", at, rates)
    last = at[-1] + np.diff(at).mean()
    requests = (rates * np.diff(np.append(at, last))).sum()
    assert curve.seconds == pytest.approx(last)
    assert curve.rates.mean() * curve.seconds == pytest.approx(requests)


def test_arrivals_are_counted() -> None:
    rng = np.random.default_rng(0)
    at = np.concatenate([rng.uniform(0, 600, 600), rng.uniform(600, 1200, 6000)])
    curve = curve_from_arrivals("counted", at, 1200.0)
    assert curve.per_second == pytest.approx((1.0, 1.0, 10.0, 10.0), rel=0.15)


def written(folder: Path, *lines: str) -> Path:
    path = folder / "demand.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_rates_are_read_by_seconds_or_timestamps(tmp_path: Path) -> None:
    by_seconds = written(tmp_path, "seconds,requests_per_second", "60,10", "360,30")
    assert read_demand(by_seconds).per_second == pytest.approx((10.0, 30.0))
    by_time = written(
        tmp_path,
        "timestamp,requests_per_second",
        "2026-11-01T00:00:00Z,10",
        "2026-11-01T01:05:00+01:00,30",
    )
    curve = read_demand(by_time)
    assert curve.per_second == pytest.approx((10.0, 30.0))
    assert curve.name == "recorded, demand.csv"


def test_arrivals_alone_are_a_demand_too(tmp_path: Path) -> None:
    path = written(tmp_path, "seconds", *(str(0.5 * n) for n in range(1200)))
    curve = read_demand(path)
    assert curve.per_second == pytest.approx((2.0, 2.0))


def test_a_recording_is_scaled_to_a_peak(tmp_path: Path) -> None:
    path = written(tmp_path, "seconds,requests_per_second", "0,10", "300,40")
    curve = read_demand(path, peak=100_000.0)
    assert curve.per_second == pytest.approx((25_000.0, 100_000.0))
    assert curve.name == "recorded, demand.csv, scaled to a peak of 100000/s"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["seconds,requests_per_second", "0,1"], "must contain at least 2 rates, got 1"),
        (["seconds,requests_per_second", "0,1", "1,x"], "line 3: requests_per_second must be"),
        (["seconds,requests_per_second", "0,1", "1,-2"], "line 3: .* from 0 to 1e.07, got '-2'"),
        (["seconds,requests_per_second", "5,1", "5,2"], "line 3: times must ascend"),
        (["seconds,requests_per_second", "0,0", "1,0"], "must be above 0 in at least one row"),
        (
            ["seconds,requests_per_second", "soon,1", "1,2"],
            "line 2: seconds must be a finite number",
        ),
        (["hour,requests_per_second", "0,1", "1,2"], "must have a column seconds or timestamp"),
        (["hour", "0"], "must have a column seconds or timestamp"),
        (
            ["seconds,requests_per_second", "0,1", "31536000,1"],
            "must last at most 31 days, got 365",
        ),
        (["seconds", "0", "31536000"], "must last at most 31 days, got 730"),
        (["seconds,requests_per_second", "0,1", "1,1e9"], "line 3: .* from 0 to 1e.07, got '1e9'"),
        (["seconds,requests_per_second", "0,1", "1,nan"], "line 3: .* got 'nan'"),
        (["seconds,requests_per_second", "0,1", "1e300,1"], "line 3: seconds must be"),
    ],
)
def test_mistakes_name_file_line_rule_and_value(
    tmp_path: Path, lines: list[str], said: str
) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        read_demand(written(tmp_path, *lines))
    assert str(caught.value).startswith(str(tmp_path / "demand.csv"))
    with pytest.raises(UsageError, match=r"none\.csv: must be readable \(No such file"):
        read_demand(tmp_path / "none.csv")
