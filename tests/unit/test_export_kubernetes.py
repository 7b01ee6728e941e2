from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from ruamel.yaml import YAML

from optimizer.export.deployment import Deployment
from optimizer.measurement.cost import Demand, Price
from tests.unit.deployments import (
    ALL,
    BERT,
    ON_CPU,
    ON_GPU,
    RANKER,
    SEVERAL,
    UNSEEN,
    platform_files,
)

pytestmark = pytest.mark.tools

KSERVE = json.loads((Path(__file__).parents[1] / "golden/kserve_0.21_models.json").read_text())
SCHEMAS = ("1.29", "1.37")


def documents(text: str) -> list[dict[str, Any]]:
    """Read by YAML 1.1, as Kubernetes does."""
    yaml = YAML(typ="safe", pure=True)
    yaml.version = (1, 1)
    return list(yaml.load_all(text))


def kept(files: Mapping[str, str], folder: Path) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def kustomized(folder: Path) -> list[dict[str, Any]]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl, which holds kustomize, is not installed")
    done = subprocess.run(
        [kubectl, "kustomize", folder], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return documents(done.stdout)


@pytest.mark.parametrize("deployment", ALL, ids=lambda d: d.name)
@pytest.mark.parametrize("version", SCHEMAS)
def test_manifests_fit_the_schemas_of_kubernetes(deployment: Deployment, version: str) -> None:
    files = platform_files("kubernetes", deployment)
    manifests = [
        each
        for name, text in files.items()
        if name.startswith("base/") and "kustomization" not in name
        for each in documents(text)
    ]
    assert {manifest["kind"] for manifest in manifests} == {
        "Deployment",
        "Service",
        "HorizontalPodAutoscaler",
        "PodDisruptionBudget",
    }
    for manifest in manifests:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_schemas_refuse_what_is_misspelt() -> None:
    text = platform_files("kubernetes", ON_CPU)["base/autoscaler.yaml"].replace(
        "minReplicas", "leastReplicas"
    )
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(documents(text)[0], SCHEMAS[0], strict=True)


@pytest.mark.parametrize("deployment", ALL, ids=lambda d: d.name)
def test_the_overlay_is_built_by_kustomize(deployment: Deployment, tmp_path: Path) -> None:
    kept(platform_files("kubernetes", deployment), tmp_path)
    built = {each["kind"]: each for each in kustomized(tmp_path / "overlays/production")}
    for manifest in built.values():
        kubernetes_validate.validate(manifest, SCHEMAS[-1], strict=True)
    container = built["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == f"{deployment.name}:1"
    scaled = built["HorizontalPodAutoscaler"]["spec"]
    assert (scaled["minReplicas"], scaled["maxReplicas"]) == (
        deployment.replicas,
        2 * deployment.replicas,
    )


def container_of(deployment: Deployment) -> dict[str, Any]:
    pod = documents(platform_files("kubernetes", deployment)["base/deployment.yaml"])[0]["spec"][
        "template"
    ]
    container: dict[str, Any] = pod["spec"]["containers"][0]
    return container


def test_the_server_is_started_as_it_was_measured() -> None:
    args = container_of(ON_GPU)["args"]
    assert args[0] == "tritonserver"
    assert set(ON_GPU.flags) < set(args)
    assert "--allow-gpu-metrics=false" not in args
    assert "--allow-gpu-metrics=false" in container_of(ON_CPU)["args"]
    assert "--metrics-config=summary_quantiles=0.5:0.05,0.95:0.005" in args


def test_the_server_is_started_by_the_user_of_its_image() -> None:
    context = container_of(ON_CPU)["securityContext"]
    assert context["runAsNonRoot"] is True
    user = f"{context['runAsUser']}:{context['runAsGroup']}"
    for deployment in (ON_CPU, ON_GPU):
        lines = platform_files("kubernetes", deployment)["Dockerfile"].splitlines()
        assert [line for line in lines if line.startswith("USER ")] == [f"USER {user}"]
        # Files that were written under a strict umask are readable for it too.
        assert f"COPY --chown={user} repository /models" in lines


LABEL = "node.kubernetes.io/instance-type"
CUSTOM = replace(ON_CPU, price=Price("rack-7", 0.5, "our contract", "2026-01-01"))


def built_from(deployment: Deployment, folder: Path) -> dict[str, dict[str, Any]]:
    kept(platform_files("kubernetes", deployment), folder)
    return {each["kind"]: each for each in kustomized(folder / "overlays/production")}


def test_pods_are_kept_to_nodes_of_the_type_whose_price_was_counted(tmp_path: Path) -> None:
    pod = built_from(ON_CPU, tmp_path)["Deployment"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {LABEL: "c5.xlarge"}
    assert "nodeSelector" not in platform_files("kubernetes", ON_CPU)["base/deployment.yaml"]
    service = {
        each["kind"]: each for each in kustomized(kept(platform_files("kserve", ON_CPU), tmp_path))
    }["InferenceService"]
    assert service["spec"]["predictor"]["nodeSelector"] == {LABEL: "c5.xlarge"}
    assert service["spec"]["predictor"]["minReplicas"] == ON_CPU.replicas
    fits(service, "V1beta1InferenceService")


def test_no_type_of_nodes_is_made_up(tmp_path: Path) -> None:
    pod = built_from(CUSTOM, tmp_path)["Deployment"]["spec"]["template"]["spec"]
    assert "nodeSelector" not in pod
    assert "patches" not in documents(platform_files("kserve", CUSTOM)["kustomization.yaml"])[0]
    assert "rack-7 is not an instance type of EC2" in platform_files("kserve", CUSTOM)["README.md"]
    assert (
        "(c5.xlarge,\nby the label `node.kubernetes.io"
        in platform_files("kubernetes", ON_CPU)["README.md"]
    )


def test_resources_are_those_that_were_used() -> None:
    # 1.52 cores; 411 MiB, half as much again, and 1024 MiB of shared memory.
    assert container_of(ON_CPU)["resources"] == {
        "requests": {"cpu": "1600m", "memory": "1664Mi"},
        "limits": {"memory": "1664Mi"},
    }
    assert container_of(ON_GPU)["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container_of(SEVERAL)["resources"] == {}


def test_a_start_may_take_longer_than_it_took() -> None:
    for deployment, seconds in ((ON_CPU, 60), (SEVERAL, 300)):
        probe = container_of(deployment)["startupProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] == seconds


def test_autoscaling_aims_at_the_measured_capacity_less_the_headroom() -> None:
    scaled = documents(platform_files("kubernetes", SEVERAL)["base/autoscaler.yaml"])[0]["spec"]
    targets = {
        each["pods"]["metric"]["selector"]["matchLabels"]["model"]: each["pods"]["target"]
        for each in scaled["metrics"]
    }
    assert targets == {
        "bert": {"type": "AverageValue", "averageValue": str(math.floor(850 / 1.2))},
        "ranker.v2": {"type": "AverageValue", "averageValue": "1250m"},
        "on": {"type": "AverageValue", "averageValue": "1250m"},
    }
    assert [model.name for model in (BERT, RANKER, UNSEEN)] == list(targets)
    assert scaled["minReplicas"] == math.ceil(5000 * 1.2 / 850)


def test_what_the_controller_lets_pass_above_the_target_is_still_within_the_capacity() -> None:
    without_headroom = replace(ON_CPU, demand=Demand(5000))
    scaled = documents(platform_files("kubernetes", without_headroom)["base/autoscaler.yaml"])[0][
        "spec"
    ]
    [metric] = scaled["metrics"]
    target = float(metric["pods"]["target"]["averageValue"])
    assert 1.1 * target <= ON_CPU.capacity_per_second < 1.11 * target


def fits(value: Any, kind: str) -> None:
    """Hold a value against KServe's own models; what is Kubernetes' is left to its schemas."""
    if kind.startswith("list["):
        for item in value:
            fits(item, kind[5:-1])
    elif kind in KSERVE:
        unknown = set(value) - set(KSERVE[kind])
        assert not unknown, f"{kind} has no {unknown}"
        for key, item in value.items():
            fits(item, KSERVE[kind][key])
    else:
        expected = {"str": str, "int": int, "bool": bool, "dict(str, str)": dict}
        assert isinstance(value, expected.get(kind, object)), f"{value!r} is no {kind}"


@pytest.mark.parametrize("deployment", ALL, ids=lambda d: d.name)
def test_kserve_resources_fit_its_models(deployment: Deployment) -> None:
    files = platform_files("kserve", deployment)
    runtime = documents(files["serving-runtime.yaml"])[0]
    service = documents(files["inference-service.yaml"])[0]
    fits(runtime, "V1alpha1ServingRuntime")
    fits(service, "V1beta1InferenceService")
    for name in ("autoscaler.yaml", "disruption-budget.yaml"):
        kubernetes_validate.validate(documents(files[name])[0], SCHEMAS[-1], strict=True)
    # What KServe makes a pod of is a pod.
    spec = {key: runtime["spec"][key] for key in ("containers", "volumes", "affinity")}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}
    kubernetes_validate.validate(pod, SCHEMAS[-1], strict=True)


def test_kserve_models_refuse_what_is_misspelt() -> None:
    service = documents(platform_files("kserve", ON_CPU)["inference-service.yaml"])[0]
    service["spec"]["predictor"]["leastReplicas"] = 1
    with pytest.raises(AssertionError, match=r"V1beta1PredictorSpec has no \{'leastReplicas'\}"):
        fits(service, "V1beta1InferenceService")


def test_kserve_passes_requests_to_the_port_that_was_measured() -> None:
    for deployment, port in ((ON_CPU, "h2c"), (ON_GPU, "http1")):
        runtime = documents(platform_files("kserve", deployment)["serving-runtime.yaml"])[0]
        assert runtime["spec"]["containers"][0]["ports"][0]["name"] == port


def test_kserve_is_built_by_kustomize(tmp_path: Path) -> None:
    built = {
        each["kind"]: each for each in kustomized(kept(platform_files("kserve", ON_CPU), tmp_path))
    }
    assert built["ServingRuntime"]["spec"]["containers"][0]["image"] == "quickstart:1"
    scaled = built["HorizontalPodAutoscaler"]["spec"]
    assert scaled["scaleTargetRef"]["name"] == "quickstart-predictor"
    selected = built["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]
    assert selected == {"serving.kserve.io/inferenceservice": "quickstart"}
    assert built["InferenceService"]["metadata"]["name"] == "quickstart"


def test_a_version_is_rolled_back_with_its_autoscaler() -> None:
    said = (
        platform_files("kubernetes", ON_CPU)["README.md"]
        .partition("## Roll back")[2]
        .partition("##")[0]
    )
    assert "`kubectl apply -k` the previous overlay" in said
