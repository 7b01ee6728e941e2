from __future__ import annotations

from dataclasses import replace

import pytest

from optimizer.measurement.trial_record import TrialRecord
from optimizer.report.page import COLOURS
from optimizer.report.study_figures import (
    cost_latency_figure,
    costs_and_latencies,
    history_figure,
    history_of,
    levels_by_configuration,
    load_curves,
    load_latency_figure,
)
from tests.unit.studies import bounded, failed, four_points, infeasible, level, ok, record_of

SPACE = four_points()
FP32, FP32_TWICE, INT8, INT8_TWICE = (SPACE.config(SPACE.at(row)) for row in range(4))


@pytest.fixture
def records() -> list[TrialRecord]:
    return [
        record_of(0, FP32, ok(100, 40.0)),
        record_of(1, INT8, infeasible(80)),
        record_of(2, FP32_TWICE, ok(50, 60.0)),
        record_of(3, INT8_TWICE, ok(200, 80.0)),
        record_of(4, INT8, bounded(40)),
        record_of(5, INT8, failed("it broke")),
    ]


def test_the_course_of_a_study_is_its_costs_and_the_least_so_far(
    records: list[TrialRecord],
) -> None:
    points = history_of(list(reversed(records)))
    assert [point.number for point in points] == [0, 1, 2, 3, 4, 5]
    costs = [point.usd_per_million for point in points]
    assert costs == [pytest.approx(1.0), None, pytest.approx(2.0), pytest.approx(0.5), None, None]
    assert [point.best_usd_per_million for point in points] == pytest.approx(
        [1.0, 1.0, 1.0, 0.5, 0.5, 0.5]
    )
    assert history_of(records[1:2])[0].best_usd_per_million is None


def test_trials_without_a_cost_are_drawn_apart_and_by_another_marker(
    records: list[TrialRecord],
) -> None:
    traces = history_figure(records).to_dict()["data"]
    assert [trace["name"] for trace in traces] == [
        "lowest so far", "ok", "infeasible", "pruned", "failed",
    ]  # fmt: skip
    markers = [trace["marker"] for trace in traces[1:]]
    assert len({marker["symbol"] for marker in markers}) == 4
    assert len({marker["color"] for marker in markers}) == 4
    assert traces[1]["yaxis"] == "y"
    assert {trace["yaxis"] for trace in traces[2:]} == {"y2"}
    assert list(traces[1]["x"]) == pytest.approx([2.0, 6.0, 8.0]), "seconds of load tests"
    assert list(traces[1]["y"]) == pytest.approx([1.0, 2.0, 0.5])


def test_where_every_trial_has_a_cost_there_is_one_chart(records: list[TrialRecord]) -> None:
    figure = history_figure([records[0], records[2]])
    assert figure.layout.xaxis.title.text == "seconds of load tests"
    assert "yaxis2" not in figure.to_dict()["layout"]
    assert history_figure([]).layout.title.text == "Course of the study"


def test_cost_stands_beside_the_latency_at_the_limits_percentile(
    records: list[TrialRecord],
) -> None:
    points = costs_and_latencies(records)
    assert [(p.number, p.latency_ms, p.limit_ms) for p in points] == [
        (0, 40.0, 100.0), (2, 60.0, 100.0), (3, 80.0, 100.0),
    ]  # fmt: skip
    figure = cost_latency_figure(records, best=INT8_TWICE)
    fp32, int8, best = figure.to_dict()["data"]
    assert (fp32["name"], int8["name"]) == ("openvino fp32", "openvino int8")
    assert list(fp32["x"]) == [40.0, 60.0]
    assert fp32["marker"]["symbol"] != int8["marker"]["symbol"]
    assert {fp32["marker"]["color"], int8["marker"]["color"]} <= set(COLOURS)
    assert (list(best["x"]), best["marker"]["symbol"]) == ([80.0], "circle-open")
    assert figure.layout.xaxis.title.text == "p95 at capacity, ms"
    assert [shape.x0 for shape in figure.layout.shapes] == [100.0]
    assert len(cost_latency_figure(records).data) == 2


def test_curves_ascend_in_load_and_leave_out_void_and_saturated_levels() -> None:
    late = level(0.3, 500.0)
    void = replace(late, client=replace(late.client, lag_ms=50.0, longest_lag_ms=1.0))
    levels = [level(1.0, kind="saturation"), level(0.8, 70.0), level(0.2, 20.0), void]
    [curve] = load_curves({"mine": levels})
    assert (curve.name, curve.stream, curve.percentile, curve.limit_ms) == (
        "mine", "bert", 95.0, 100.0,
    )  # fmt: skip
    assert curve.offered_per_second == pytest.approx((100.0, 400.0))
    assert curve.latency_ms == (20.0, 70.0)
    assert load_curves({"saturated alone": levels[:1]}) == ()


def test_curves_are_told_apart_without_colour() -> None:
    names = [f"configuration {n}" for n in range(7)]
    figure = load_latency_figure(
        {name: [level(0.2, 20.0), level(0.8, 70.0 + n)] for n, name in enumerate(names)}
    )
    styles = {(trace.line.dash, trace.marker.symbol) for trace in figure.data}
    assert len(styles) == len(names) == len(figure.data)
    assert [trace.name for trace in figure.data] == names
    assert figure.layout.yaxis.title.text == "p95, ms"
    assert [shape.y0 for shape in figure.layout.shapes] == [100.0]


def test_a_percentile_of_too_few_requests_has_no_bar_upwards() -> None:
    one = level(0.5, 50.0)
    [stream] = one.streams
    open_above = tuple(replace(p, low_ms=40.0, high_ms=None) for p in stream.latencies)
    figure = load_latency_figure(
        {"few": [replace(one, streams=(replace(stream, latencies=open_above),))]}
    )
    [trace] = figure.data
    assert list(trace.error_y.array) == [0.0]
    assert list(trace.error_y.arrayminus) == pytest.approx([10.0])


def test_those_that_a_reader_wants_come_first_and_then_the_cheapest(
    records: list[TrialRecord],
) -> None:
    again = record_of(9, FP32, ok(90, 30.0))
    found = levels_by_configuration([*records, again], [FP32, INT8], most=1)
    assert list(found) == [
        "openvino fp32, no batching, 1 x 1 thread",
        "openvino int8, no batching, 1 x 1 thread",
        "openvino int8, no batching, 2 x 1 thread",
    ]
    assert len(found["openvino fp32, no batching, 1 x 1 thread"]) == 4, "of both records"
