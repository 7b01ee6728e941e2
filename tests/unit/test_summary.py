from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optimizer.analysis.run_summary import LoadRuns, summarise
from optimizer.analysis.summary import read_summary, write_summary
from optimizer.artifacts.accuracy import Accuracy
from optimizer.configuration.serving_config import ServingConfig
from optimizer.errors import DamagedStudyError, StorageError
from optimizer.files.atomic import write_json
from optimizer.measurement.cost import Candidate
from optimizer.search.confirm import Confirmed
from optimizer.search.prepared import Prepared
from optimizer.space_file.reader import Space, load_space
from optimizer.study.confidence import CapacityClaim
from optimizer.study.decision import merged
from optimizer.study.directory import StudyDirectory
from optimizer.study.gated_artifact import GatedArtifact, _accuracy_from_json, accuracy_to_json
from optimizer.study.history import History, scored
from optimizer.study.search_status import SearchEnd
from tests.unit.studies import (
    DEMAND,
    HARDWARE,
    PRICE,
    bounded,
    failed,
    four_points,
    history_of,
    infeasible,
    level,
    measured,
    ok,
    record_of,
)

SPACE = four_points()
A, B, C, D = (SPACE.config(SPACE.at(row)) for row in range(4))
ENDED = SearchEnd("the budget of 5 trials is used up", regret_bound=0.04)
FILE = """\
study: quick
models:
  bert:
    source: {class: BertForSequenceClassification, config: {}}
    inputs: {input_ids: {minimum: 0, maximum: 99}}
    lengths: {fixed: 32}
price: {instance_type: test.large}
parameters: {}
"""

# As the issue asks for them, and their types.
NUMBER = (int, float)
ENTRY = {
    "config": dict,
    "capacity_per_second": NUMBER,
    "latency_ms": {"p50": NUMBER, "p95": NUMBER, "p99": NUMBER},
    "usd_per_million_at_capacity": NUMBER,
    "usd_per_million_at_demand": NUMBER,
    "replicas": int,
    "fleet_usd_per_hour": NUMBER,
}
SUMMARY = {
    "study": str,
    "outcome": str,
    "trials": {"ok": int, "infeasible": int, "bounded": int, "failed": int},
    "baseline": ENTRY,
    "best": ENTRY,
    "claims": list,
    "pace": {"reference": str, "saturation_per_second": list},
    "measuring_seconds": NUMBER,
    "building_seconds": NUMBER,
}


def assert_shape(data: Any, shape: Any) -> None:
    if not isinstance(shape, Mapping):
        assert isinstance(data, shape)
        return
    for key, inner in shape.items():
        assert key in data, f"{key} is missing"
        assert_shape(data[key], inner)


@pytest.fixture
def space(tmp_path: Path) -> Space:
    path = tmp_path / "space.yaml"
    path.write_text(FILE)
    return load_space(path, {PRICE.instance_type: PRICE}, HARDWARE)


def confirmed_at(config: ServingConfig, *capacities: float) -> Candidate:
    together = merged([measured(c, p95_ms=40 + n) for n, c in enumerate(capacities)])
    cost = scored(together, PRICE, DEMAND)
    assert cost is not None
    return Candidate(config, together, cost, p95_ms_at_demand=30.0)


HISTORY = history_of(
    (A, ok(50)), (B, ok(130)), (C, infeasible(80)), (D, failed("it broke")), (D, bounded(40))
)
CONFIRMED = Confirmed(
    confirmed_at(A, 50, 50),
    (confirmed_at(B, 125, 125), confirmed_at(C, 130)),
    claims=(
        CapacityClaim(C, ratio=0.96, low=0.9, high=1.03, confidence=0.12),
        CapacityClaim(A, ratio=2.5, low=2.31, high=2.68, confidence=0.99996),
    ),
)
ACCURACY = Accuracy(1.0, 0.999, 0.99, 0.01, 64)
PREPARED = Prepared(
    SPACE,
    {},
    (
        GatedArtifact(A.models[0].artifact, "ab", 2.0, ACCURACY, 100.0, None),
        GatedArtifact(C.models[0].artifact, None, 0.0, None, None, "build failed: no operator"),
    ),
    building_seconds=7.5,
)


NOTHING_BESIDE = LoadRuns()


def summary_of(
    space: Space,
    *,
    history: History = HISTORY,
    confirmed: Confirmed = CONFIRMED,
    runs: LoadRuns = NOTHING_BESIDE,
    prepared: Prepared = PREPARED,
) -> dict[str, Any]:
    summary = summarise(space, ENDED, history, confirmed, runs, prepared)
    again: dict[str, Any] = json.loads(json.dumps(summary.to_json(), allow_nan=False))
    return again


def test_every_promised_key_is_there_with_its_type(space: Space) -> None:
    assert_shape(summary_of(space), SUMMARY)


def test_what_came_of_the_search(space: Space) -> None:
    summary = summary_of(space)
    assert summary["study"] == "quick"
    assert summary["outcome"] == "found"
    assert (summary["ended"], summary["space_exhausted"]) == (ENDED.reason, False)
    assert summary["remaining_gap"] == 0.04
    assert summary["trials"] == {"ok": 2, "infeasible": 1, "bounded": 1, "failed": 1}


def test_the_best_is_what_was_confirmed(space: Space) -> None:
    best = summary_of(space)["best"]
    assert best["description"] == "openvino fp32, no batching, 2 x 1 thread"
    assert best["config"]["models"][0]["artifact"]["precision"] == "fp32"
    assert best["capacity_per_second"] == pytest.approx(125)
    assert best["latency_ms"] == pytest.approx({"p50": 20.5, "p95": 41, "p99": 49.2})
    assert best["latency_ms_at_demand_p95"] == 30.0
    assert best["replicas"] == 4
    assert best["fleet_usd_per_hour"] == pytest.approx(4 * 0.36)
    assert best["usd_per_million_at_capacity"] == pytest.approx(0.8)
    assert best["usd_per_million_at_demand"] == pytest.approx(4 * 0.36 / 1.8)


def test_latency_at_capacity_is_the_worst_of_the_rounds_at_that_load(space: Space) -> None:
    together = merged([measured(100, p95_ms=60), measured(90, p95_ms=40)])
    more = replace(together, levels=(*together.levels, level(90 / 500, p95_ms=50)))
    cost = scored(more, PRICE, DEMAND)
    assert cost is not None
    confirmed = Confirmed(None, (Candidate(B, more, cost, 10.0),))
    assert summary_of(space, confirmed=confirmed)["best"]["latency_ms"]["p95"] == 50


def test_the_equal_cost_set_begins_with_the_best(space: Space) -> None:
    summary = summary_of(space)
    assert summary["equal_cost"][0] == summary["best"]
    assert [e["capacity_per_second"] for e in summary["equal_cost"]] == pytest.approx([125, 130])


def test_where_nothing_was_confirmed_there_is_null(space: Space) -> None:
    summary = summary_of(space, confirmed=Confirmed(None, ()))
    assert summary["outcome"] == "nothing met the limits"
    assert (summary["best"], summary["baseline"], summary["equal_cost"]) == (None, None, [])


def test_seconds_are_those_of_the_search_and_the_confirmation(space: Space) -> None:
    confirmations = tuple(record_of(n, B, ok(125)) for n in range(2))
    summary = summary_of(space, runs=LoadRuns(confirmations=confirmations))
    # 2 s each; the failed trial measured nothing.
    assert summary["measuring_seconds"] == pytest.approx(4 * 2 + 2 * 2)
    assert summary["building_seconds"] == 7.5
    assert summary["overhead_seconds_per_trial_median"] == pytest.approx(2.0)


def test_what_was_carried_over_took_no_time_here(space: Space) -> None:
    history = History({r.number: replace(r, origin="another") for r in HISTORY.records})
    summary = summary_of(space, history=history)
    assert summary["measuring_seconds"] == 0
    assert summary["overhead_seconds_per_trial_median"] == 0.0
    assert summary["trials"]["ok"] == 2


def test_price_demand_and_evidence_are_said(space: Space) -> None:
    summary = summary_of(space)
    assert summary["price"] == {
        "instance_type": "test.large",
        "usd_per_hour": 0.36,
        "source": "the tests",
        "as_of": "2026-01-01",
        "region": "",
        "rate": "on-demand",
    }
    assert (summary["demand_per_second"], summary["headroom"]) == (500.0, 0.0)
    assert summary["accuracy_evidence"] == "synthetic"


def test_every_artefact_is_there_with_why_it_left(space: Space) -> None:
    first, second = summary_of(space)["artifacts"]
    assert (first["artifact"], first["dropped"]) == ("bert/openvino/fp32", None)
    assert first["accuracy"]["mean_cosine"] == 0.999
    assert second == {
        "artifact": "bert/openvino/int8",
        "accuracy": None,
        "dropped": "build failed: no operator",
        "failing_batch": None,
        "timings": [],
    }


def test_an_infinite_error_is_null(space: Space) -> None:
    broken = replace(ACCURACY, max_abs_error=math.inf)
    gated = replace(PREPARED.gated[0], accuracy=broken, dropped="accuracy: outputs not finite")
    summary = summary_of(space, prepared=replace(PREPARED, gated=(gated,)))
    assert summary["artifacts"][0]["accuracy"]["max_abs_error"] is None


@pytest.mark.parametrize("error", [0.01, 0.0, math.inf])
def test_an_accuracy_that_was_kept_is_read_back_whole(error: float) -> None:
    """A resumed study judges by it; INT8 that gives no finite output must not end the run."""
    accuracy = replace(ACCURACY, max_abs_error=error)
    text = json.dumps(accuracy_to_json(accuracy), allow_nan=False)
    assert _accuracy_from_json(json.loads(text)) == accuracy


def test_claims_are_ratios_of_capacities_with_their_intervals(space: Space) -> None:
    claim = CapacityClaim(A, ratio=1.25, low=1.1, high=1.4, confidence=0.998)
    summary = summary_of(space, confirmed=replace(CONFIRMED, claims=(claim,)))
    assert summary["claims"] == [
        {
            "rival": "openvino fp32, no batching, 1 x 1 thread",
            "capacity_ratio": 1.25,
            "capacity_ratio_low": 1.1,
            "capacity_ratio_high": 1.4,
            "confidence": 0.998,
            "apart": True,
        }
    ]


def test_the_pace_is_that_of_the_baseline_from_beginning_to_end(space: Space) -> None:
    baseline = SPACE.config(SPACE.baseline)
    summary = summary_of(
        space,
        history=history_of((baseline, ok(100)), (B, ok(300))),
        runs=LoadRuns(
            calibration=(record_of(0, baseline, bounded(105)), record_of(1, B, bounded(300))),
            drift_runs=(record_of(0, baseline, bounded(84)),),
            confirmations=(record_of(0, B, ok(300)), record_of(1, baseline, ok(98))),
        ),
    )
    assert summary["pace"]["reference"] == "openvino fp32, no batching, 1 x 1 thread"
    rates = summary["pace"]["saturation_per_second"]
    assert rates == pytest.approx([105, 105, 84, 102.9], rel=0.02)
    assert summary["pace"]["largest_change"] == pytest.approx(-0.2, abs=0.01)


def test_without_a_measured_baseline_there_is_no_pace(space: Space) -> None:
    summary = summary_of(space, history=history_of((B, ok(300))))
    assert summary["pace"]["saturation_per_second"] == []
    assert summary["pace"]["largest_change"] is None


def test_what_was_written_is_read_back(space: Space, tmp_path: Path) -> None:
    directory = StudyDirectory(tmp_path / "quick")
    assert read_summary(directory) is None
    summary = summarise(space, ENDED, HISTORY, CONFIRMED, NOTHING_BESIDE, PREPARED)
    write_summary(directory, summary)
    again = read_summary(directory)
    assert again is not None
    one, two = (json.loads(json.dumps(each.to_json())) for each in (again, summary))
    assert one == two


def test_a_summary_of_an_earlier_version_is_read(space: Space, tmp_path: Path) -> None:
    directory = StudyDirectory(tmp_path / "quick")
    content = summary_of(space)
    later = ("schema_version", "nothing_found", "settled", "remaining_gap", "pace")
    for row in content["artifacts"]:
        del row["failing_batch"], row["timings"]
    write_json(directory.summary, {k: v for k, v in content.items() if k not in later})
    summary = read_summary(directory)
    assert summary is not None
    assert summary.best is not None
    assert summary.best.capacity_per_second == pytest.approx(125)
    assert (summary.settled, summary.remaining_gap) == (False, None)


def test_a_summary_of_a_newer_version_is_refused_with_what_to_do(
    space: Space, tmp_path: Path
) -> None:
    directory = StudyDirectory(tmp_path / "quick")
    write_json(directory.summary, {**summary_of(space), "schema_version": 2})
    with pytest.raises(StorageError, match=r"must be at most 1, got 2.*upgrade, or delete"):
        read_summary(directory)
    write_json(directory.summary, {**summary_of(space), "best": {"description": "a"}})
    with pytest.raises(DamagedStudyError, match="best"):
        read_summary(directory)
