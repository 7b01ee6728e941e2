from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from optimizer.export.deployment import Deployment, MeasuredModel
from optimizer.export.monitoring.alerts import alerts
from optimizer.export.monitoring.dashboard import dashboard
from optimizer.export.monitoring.rules import monitoring_files
from optimizer.measurement.cost import Demand
from tests.unit.deployments import (
    ALL,
    BERT,
    ON_CPU,
    ON_GPU,
    PIPELINE,
    RANKER,
    SEVERAL,
    platform_files,
)
from tests.unit.test_export_kubernetes import documents, kept

pytestmark = pytest.mark.tools

STEEP = replace(BERT, latency_ms=179.3, queue_ms=59.9, batch_size=54.8, largest_batch=64)
"""Measured where one request more would have been too much."""

PATIENT = replace(BERT, largest_batch=64, queue_delay_ms=100.0)
"""At little load a request waits ten times as long as at the capacity."""

OF_ONE_MODEL = [
    replace(ON_CPU, name=name, models=(model,))
    for name, model in (
        ("steep", STEEP),
        ("patient", PATIENT),
        ("late", replace(BERT, latency_ms=205.0)),
        ("in-pairs", replace(BERT, batch_size=1.4)),
        ("alone", replace(BERT, batch_size=1.0, largest_batch=1)),
    )
]


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    return found


def said(*command: str | Path, code: int = 0) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    told = done.stdout + done.stderr
    assert done.returncode == code, told
    return told


@pytest.mark.parametrize(
    "deployment",
    [ON_CPU, ON_GPU, *OF_ONE_MODEL, PIPELINE, pytest.param(SEVERAL, marks=pytest.mark.slow)],
    ids=lambda d: d.name,
)
def test_promtool_takes_the_rules_and_runs_their_test(
    deployment: Deployment, tmp_path: Path, promtool: str
) -> None:
    folder = kept(monitoring_files(deployment), tmp_path) / "monitoring"
    assert "rules found" in said(promtool, "check", "rules", folder / "triton-rules.yaml")
    assert "SUCCESS" in said(promtool, "test", "rules", folder / "triton-rules-test.yaml")


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("> 850", "> 8500"),
        ("/ 1000 > 200", "/ 1000 > 2000"),
        ("> 0.01", "> 1"),
        ("nv_inference_exec_count", "nv_inference_count"),
        ("> 765)", "> 0.5)"),
        ("absent(", "count("),
        ("< 8", "< 1"),
        ("max_over_time", "min_over_time"),
        ("== 0)", "> 0)"),
        ("== 0)", ">= 0)"),
        ("/ 1000 > 160", "/ 1000 > 30"),
        ("< 7.125", "< 0.5"),
        ("> 17.25)", "> 1725)"),
        ("> 17.25)", "> 0)"),
        ("> 17.25)", "> 7)"),
    ],
)
def test_the_test_of_the_rules_fails_when_a_rule_is_another(
    was: str, becomes: str, tmp_path: Path, promtool: str
) -> None:
    files = monitoring_files(ON_CPU)
    rules = files["monitoring/triton-rules.yaml"]
    assert was in rules
    files["monitoring/triton-rules.yaml"] = rules.replace(was, becomes)
    folder = kept(files, tmp_path) / "monitoring"
    assert "FAILED" in said(promtool, "test", "rules", folder / "triton-rules-test.yaml", code=1)


def rules(model: MeasuredModel, demand_per_second: float = 5000) -> dict[str, str]:
    """What is watched, by name: with which expression."""
    deployment = replace(ON_CPU, models=(model,), demand=Demand(demand_per_second))
    return {alert.name: alert.expression for alert in alerts(deployment, model)}


def test_what_was_not_seen_is_not_watched() -> None:
    unseen = replace(BERT, queue_ms=None, batch_size=None)
    assert set(rules(BERT)) - set(rules(unseen)) == {
        "TritonQueueDrift",
        "TritonBatchesSmaller",
        "TritonBatchesLarger",
    }


def test_of_a_step_its_queue_and_its_batches_are_watched() -> None:
    _, encoder = PIPELINE.steps
    own = {alert.name: alert.expression for alert in alerts(PIPELINE, encoder)}
    assert set(own) == {"TritonQueueDrift", "TritonBatchesSmaller", "TritonBatchesLarger"}
    # Only where the pipeline is below its capacity, which is the one that was measured.
    assert own["TritonQueueDrift"].endswith('{model="bert"}[5m])) > 765)')
    titles = {panel["title"] for panel in json.loads(dashboard(PIPELINE))["panels"]}
    assert "encoder, a step" in titles
    files = monitoring_files(PIPELINE)["monitoring/triton-rules.yaml"]
    assert "TritonDown" in files
    assert "No server reports metrics of encoder" not in files


def test_batches_of_one_cannot_become_smaller() -> None:
    assert "TritonBatchesSmaller" not in rules(replace(BERT, batch_size=1.0))
    assert "TritonBatchesSmaller" not in rules(replace(BERT, batch_size=1 / 0.75))
    assert "TritonBatchesLarger" in rules(replace(BERT, batch_size=1.0))


def test_batches_that_the_model_cannot_have_are_not_watched() -> None:
    assert "> 11.875" in rules(BERT)["TritonBatchesLarger"]
    assert "TritonBatchesLarger" not in rules(STEEP), "1.25 x 54.8 is above 64"
    assert "TritonBatchesLarger" not in rules(replace(BERT, batch_size=12.8))


@pytest.mark.parametrize(
    ("latency_ms", "near_ms"), [(61.5, 160), (119.9, 160), (150.0, 175), (179.3, 189.65)]
)
def test_near_the_limit_is_above_what_was_measured(latency_ms: float, near_ms: float) -> None:
    near = rules(replace(BERT, latency_ms=latency_ms))["TritonLatencyNearLimit"]
    assert f"> {near_ms:g})" in near


def test_no_warning_comes_where_the_limit_is_next_to_what_was_measured() -> None:
    assert "TritonLatencyNearLimit" in rules(replace(BERT, latency_ms=192.0))
    assert "TritonLatencyNearLimit" not in rules(replace(BERT, latency_ms=192.1))
    assert "TritonLatencyNearLimit" not in rules(replace(BERT, latency_ms=200.0))


def test_a_drift_that_is_over_the_limit_is_left_to_the_limit() -> None:
    assert "TritonLatencyDrift" in rules(STEEP)
    assert "TritonLatencyDrift" not in rules(RANKER), "1.1 x 34 ms is above 35.5 ms"


def test_waiting_for_a_batch_to_fill_is_no_drift() -> None:
    assert "> 110)" in rules(PATIENT)["TritonQueueDrift"]
    # 61.5 ms were measured with a queue of 7.25 ms.
    assert f"> {1.1 * (61.5 + 100 - 7.25):.6g})" in rules(PATIENT)["TritonLatencyDrift"]


def test_one_instance_of_one_is_down_when_it_goes() -> None:
    assert "TritonInstanceGone" in rules(BERT)
    assert set(rules(BERT)) - set(rules(BERT, 500)) == {"TritonInstanceGone"}


def tried(deployment: Deployment) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """Tests that are handed out, by name: what each series of the first model shows."""
    [content] = documents(monitoring_files(deployment)["monitoring/triton-rules-test.yaml"])
    for test in content["tests"]:
        shown: dict[str, list[str]] = {}
        for series in test["input_series"]:
            metric, _, labels = series["series"].partition("{")
            if f'model="{deployment.models[0].name}"' in labels:
                shown.setdefault(metric, []).append(series["values"])
        yield test["name"], shown


def a_minute(values: str) -> float:
    return float(values.partition("+")[2].partition("x")[0])


@pytest.mark.parametrize("deployment", OF_ONE_MODEL, ids=lambda d: d.name)
def test_no_test_has_a_batch_that_the_model_cannot_have(deployment: Deployment) -> None:
    for name, shown in tried(deployment):
        for inferences, executions in zip(
            shown["nv_inference_count"], shown["nv_inference_exec_count"], strict=True
        ):
            if a_minute(executions):
                batch = a_minute(inferences) / a_minute(executions)
                assert 1 <= batch <= deployment.models[0].largest_batch, name


def test_what_was_measured_itself_is_no_cause_for_an_alert() -> None:
    shown = dict(tried(OF_ONE_MODEL[0]))["bert: at the capacity"]
    assert shown["nv_inference_request_summary_us"] == ["179300+0x30"]
    good, executions, queue_us = (
        a_minute(shown[f"nv_inference_{name}"][0])
        for name in ("request_success", "exec_count", "queue_duration_us")
    )
    assert good / 60 == pytest.approx(850, rel=0.02)
    assert good / executions == pytest.approx(54.8)
    assert queue_us / good / 1000 == pytest.approx(59.9)


def is_on(
    alert: str, deployment: Deployment, series: dict[str, str], folder: Path, promtool: str
) -> bool:
    """Whether the alert is on after 70 minutes of these series."""
    rules = kept(monitoring_files(deployment), folder) / "monitoring/triton-rules.yaml"
    test = {
        "interval": "1m",
        "input_series": [{"series": each, "values": values} for each, values in series.items()],
        "alert_rule_test": [{"alertname": alert, "eval_time": "70m", "exp_alerts": []}],
    }
    path = rules.with_name("own.json")
    path.write_text(json.dumps({"rule_files": [rules.name], "tests": [test]}))
    done = subprocess.run(
        [promtool, "test", "rules", path], capture_output=True, text=True, check=False, timeout=60
    )
    told = done.stdout + done.stderr
    assert "SUCCESS" in told or "got:[" in told, told
    return done.returncode == 1


def servers(*values: str) -> dict[str, str]:
    """Replies of as many servers."""
    metric = "nv_inference_request_success"
    return {
        f'{metric}{{model="bert",version="1",instance="{number}"}}': each
        for number, each in enumerate(values)
    }


UP, GONE = "0+60x70", "0+60x50 stale"


@pytest.mark.parametrize(
    ("found", "on"),
    [
        ([UP, UP, UP], False),
        ([UP, UP, GONE], False),
        ([UP, GONE, GONE], True),
        ([UP, GONE, "_x52 0+60x18"], False),
        ([UP], False),
    ],
    ids=["all", "scaled in to the demand", "too few", "replaced", "never more"],
)
def test_an_instance_has_gone_where_fewer_than_the_demand_needs_are_left(
    found: list[str], on: bool, tmp_path: Path, promtool: str
) -> None:
    of_two = replace(ON_CPU, demand=Demand(1600))
    assert of_two.replicas == 2
    assert is_on("TritonInstanceGone", of_two, servers(*found), tmp_path, promtool) is on


@pytest.mark.parametrize(
    ("found", "on"), [([UP, GONE], False), ([GONE], True), ([], True), (["0x70"], False)]
)
def test_no_server_at_all_is_told_of(
    found: list[str], on: bool, tmp_path: Path, promtool: str
) -> None:
    assert is_on("TritonDown", ON_CPU, servers(*found), tmp_path, promtool) is on


@pytest.mark.parametrize(("ranker_a_second", "on"), [(1.0, True), (1.4, False), (3.0, False)])
def test_a_model_is_not_slower_where_another_on_its_server_takes_the_capacity(
    ranker_a_second: float, on: bool, tmp_path: Path, promtool: str
) -> None:
    both = replace(ON_CPU, models=(BERT, RANKER))
    shown = {"version": "1", "instance": "a"}
    series = {}
    for model, per_second in (("bert", 100.0), ("ranker.v2", ranker_a_second)):
        labels = ",".join(f'{k}="{v}"' for k, v in {**shown, "model": model}.items())
        series[f"nv_inference_request_success{{{labels}}}"] = f"0+{60 * per_second}x70"
        series[f"nv_inference_request_failure{{{labels}}}"] = "0x70"
        series[f'nv_inference_request_summary_us{{{labels},quantile="0.95"}}'] = "90000x70"
    assert is_on("TritonLatencyDrift", both, series, tmp_path, promtool) is on


def panels(deployment: Deployment) -> list[dict[str, Any]]:
    content = json.loads(monitoring_files(deployment)["monitoring/grafana-dashboard.json"])
    found: list[dict[str, Any]] = content["panels"]
    return found


def test_the_dashboard_is_one_of_grafana() -> None:
    text = monitoring_files(SEVERAL)["monitoring/grafana-dashboard.json"]
    content = json.loads(text)
    assert content["schemaVersion"] == 39
    assert [v["name"] for v in content["templating"]["list"]] == ["datasource", "instance"]
    assert len({panel["id"] for panel in content["panels"]}) == len(content["panels"])
    for panel in content["panels"]:
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert all(t["datasource"]["uid"] == "${datasource}" for t in panel["targets"])
    rows = [panel["title"] for panel in content["panels"] if panel["type"] == "row"]
    assert rows[0] == "bert: 850 requests/s per instance at p95 <= 200 ms"
    assert [row.partition(":")[0] for row in rows] == ["bert", "ranker.v2", "on"]


def unknown(given: Any, kept: Any, at: str = "") -> Iterator[str]:
    """Places of what was given and is not in what was kept of it."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            yield from unknown(value, kept[key], f"{at}.{key}") if key in kept else [f"{at}.{key}"]
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for number, pair in enumerate(zip(given, kept, strict=True)):
            yield from unknown(*pair, f"{at}[{number}]")
    elif given != kept:
        yield at


def unknown_to_grafana(dashboard: dict[str, Any]) -> list[str]:
    """Keys and values that Grafana's own models drop."""
    register_default_plugins()
    kept = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))
    return list(unknown(dashboard, kept))


@pytest.mark.parametrize("deployment", ALL, ids=lambda each: each.name)
def test_grafana_knows_every_key_of_the_dashboard(deployment: Deployment) -> None:
    content = json.loads(monitoring_files(deployment)["monitoring/grafana-dashboard.json"])
    assert unknown_to_grafana(content) == []
    panel = next(panel for panel in content["panels"] if panel["type"] == "timeseries")
    panel["fieldConfig"]["defaults"]["custom"]["thresholdStyle"] = {"mode": "line"}
    at = f".panels[{content['panels'].index(panel)}]"
    assert unknown_to_grafana(content) == [f"{at}.fieldConfig.defaults.custom.thresholdStyle"]


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in [*panels(SEVERAL), *({"gridPos": {"x": 0, "y": 99, "w": 1, "h": 1}},)]:
        at = panel["gridPos"]
        own = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not own & taken
        assert at["x"] + at["w"] <= 24
        taken |= own


def steps(deployment: Deployment, title: str) -> list[float | None]:
    panel = next(panel for panel in panels(deployment) if panel["title"] == title)
    return [step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]]


def test_capacity_and_limit_are_drawn_in() -> None:
    assert steps(ON_CPU, "Request rate per instance") == [None, 765.0, 850.0]
    assert steps(ON_CPU, "p95 latency inside the server") == [None, 61.5, 200]
    assert steps(ON_CPU, "Mean batch size") == [None, 9.5]
    assert any(panel["title"] == "GPU utilisation" for panel in panels(ON_GPU))


@pytest.mark.parametrize("deployment", ALL, ids=lambda d: d.name)
def test_legends_tell_series_apart_by_labels_that_they_have(deployment: Deployment) -> None:
    """Each panel is of one model, so that its name tells nothing apart."""
    for panel in panels(deployment):
        for target in panel.get("targets", ()):
            [_, outermost] = target["expr"].partition(" by (")[::2]
            labels = set(outermost.partition(")")[0].split(", "))
            named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert named == (labels - {"model"} or {"model"}), panel["title"]


def expressions(deployment: Deployment) -> Iterator[str]:
    for panel in panels(deployment):
        yield from (target["expr"] for target in panel.get("targets", ()))
    adapter = platform_files("kubernetes", deployment)["prometheus-adapter.yaml"]
    [rule] = documents(adapter)[0]["rules"]["custom"]
    yield rule["seriesQuery"]
    query = rule["metricsQuery"].replace("<<.Series>>", "nv_inference_request_success")
    yield query.replace("<<.LabelMatchers>>", 'model="bert"').replace("<<.GroupBy>>", "pod")


@pytest.mark.parametrize("deployment", ALL, ids=lambda d: d.name)
def test_promtool_reads_every_expression(
    deployment: Deployment, tmp_path: Path, promtool: str
) -> None:
    rules = [
        {"record": f"expression:{number}", "expr": expression}
        for number, expression in enumerate(expressions(deployment))
    ]
    path = tmp_path / "rules.json"
    path.write_text(json.dumps({"groups": [{"name": "all", "rules": rules}]}))
    assert f"{len(rules)} rules found" in said(promtool, "check", "rules", path)


def metric_names(deployment: Deployment) -> set[str]:
    text = "".join(monitoring_files(deployment).values())
    return set(re.findall(r"\bnv_\w+", text))


def test_only_these_metrics_are_asked_for() -> None:
    assert metric_names(ON_GPU) - metric_names(ON_CPU) == {
        "nv_gpu_utilization",
        "nv_gpu_memory_used_bytes",
    }
    assert metric_names(ON_CPU) == {
        "nv_inference_request_success",
        "nv_inference_request_failure",
        "nv_inference_count",
        "nv_inference_exec_count",
        "nv_inference_pending_request_count",
        "nv_inference_queue_duration_us",
        "nv_inference_request_summary_us",
    }
