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

from optimizer.export.deployment import Deployment
from optimizer.export.monitoring.alerts import alerts
from optimizer.export.monitoring.rules import monitoring_files
from optimizer.export.platforms.kubernetes import kubernetes_files
from tests.unit.deployments import ALL, BERT, ON_CPU, ON_GPU, SEVERAL, UNSEEN
from tests.unit.test_export_kubernetes import documents, kept


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


@pytest.mark.parametrize("deployment", ALL, ids=lambda d: d.name)
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
        ("<= 850)", "<= 0.5)"),
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


def test_what_was_not_seen_is_not_watched() -> None:
    assert {alert.name for alert in alerts(BERT)} - {alert.name for alert in alerts(UNSEEN)} == {
        "TritonQueueDrift",
        "TritonBatchesSmaller",
        "TritonBatchesLarger",
    }


def test_batches_of_one_cannot_become_smaller() -> None:
    names = {alert.name for alert in alerts(replace(BERT, batch_size=1.0))}
    assert "TritonBatchesSmaller" not in names
    assert "TritonBatchesLarger" in names


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
    assert rows[0] == "bert: 850 requests/s an instance within p95 <= 200 ms"
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
    assert steps(ON_CPU, "Requests of each instance") == [None, 680.0, 850.0]
    assert steps(ON_CPU, "p95 inside the server") == [None, 61.5, 200]
    assert steps(ON_CPU, "Mean batch") == [None, 9.5]
    assert any(panel["title"] == "Use of the GPUs" for panel in panels(ON_GPU))


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
    adapter = kubernetes_files(deployment)["prometheus-adapter.yaml"]
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
        "nv_inference_queue_duration_us",
        "nv_inference_request_summary_us",
    }
