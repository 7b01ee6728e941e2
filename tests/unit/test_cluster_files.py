"""The files that start a search on Slurm and on Kubernetes.

KubeRay's schema is on no package index, so the RayJob's own keys are held against the fields that
its API reference documents (ray.io/v1), and the pods in it against the schema of Kubernetes.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

import kubernetes_validate
import pytest
from ruamel.yaml import YAML

from tests.docs.blocks import ROOT
from tests.docs.parsing import parse

FOLDER = ROOT / "examples" / "cluster"
SLURM = (FOLDER / "slurm.sh").read_text()
RAY_JOB: Mapping[str, Any] = YAML(typ="safe").load(FOLDER / "rayjob.yaml")
KUBERNETES = "1.31"

JOB_FIELDS = {
    "activeDeadlineSeconds", "backoffLimit", "clusterSelector", "entrypoint", "entrypointNumCpus",
    "entrypointNumGpus", "entrypointResources", "jobId", "metadata", "rayClusterSpec",
    "runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode", "submitterConfig",
    "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished",
}  # fmt: skip
CLUSTER_FIELDS = {
    "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec",
    "headServiceAnnotations", "rayVersion", "suspend", "workerGroupSpecs",
}  # fmt: skip
HEAD_FIELDS = {"enableIngress", "headService", "rayStartParams", "serviceType", "template"}
WORKER_FIELDS = {
    "groupName", "idleTimeoutSeconds", "maxReplicas", "minReplicas", "numOfHosts",
    "rayStartParams", "replicas", "scaleStrategy", "suspend", "template",
}  # fmt: skip

GROUPS = [
    RAY_JOB["spec"]["rayClusterSpec"]["headGroupSpec"],
    *RAY_JOB["spec"]["rayClusterSpec"]["workerGroupSpecs"],
]


def test_the_ray_job_has_documented_fields_alone() -> None:
    assert (RAY_JOB["apiVersion"], RAY_JOB["kind"]) == ("ray.io/v1", "RayJob")
    spec = RAY_JOB["spec"]
    cluster = spec["rayClusterSpec"]
    assert set(spec) <= JOB_FIELDS
    assert set(cluster) <= CLUSTER_FIELDS
    assert set(cluster["headGroupSpec"]) <= HEAD_FIELDS
    assert {key for group in cluster["workerGroupSpecs"] for key in group} <= WORKER_FIELDS


@pytest.mark.parametrize("group", GROUPS, ids=["head", "workers"])
def test_its_pods_are_valid(group: Mapping[str, Any]) -> None:
    template = group["template"]
    metadata = {"name": "pod", **template.get("metadata", {})}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    [container] = template["spec"]["containers"]
    assert container["resources"]["requests"] == container["resources"]["limits"]


@pytest.mark.parametrize("group", GROUPS, ids=["head", "workers"])
def test_ray_starts_with_options_that_it_has(group: Mapping[str, Any]) -> None:
    scripts = pytest.importorskip("ray.scripts.scripts")
    options = {option for each in scripts.start.params for option in each.opts}
    assert {f"--{name}" for name in group["rayStartParams"]} <= options


def test_its_command_is_one_of_the_optimizer() -> None:
    parse(shlex.split(RAY_JOB["spec"]["entrypoint"])[3:])


def test_the_script_of_slurm_is_a_shell_script_with_its_directives_first() -> None:
    bash = shutil.which("bash")
    assert bash is not None
    subprocess.run([bash, "-n", FOLDER / "slurm.sh"], check=True)
    before_the_first_command = SLURM[: SLURM.index("set -euo")]
    assert SLURM.count("\n#SBATCH ") == before_the_first_command.count("\n#SBATCH ") == 6
    assert (FOLDER / "slurm.sh").stat().st_mode & 0o111


def test_the_script_of_slurm_starts_ray_and_the_optimizer_with_options_that_they_have() -> None:
    srun = SLURM[SLURM.index("\nsrun ") :].replace("\\\n", " ")
    ray, run = srun.split(" -- ")
    parse(shlex.split(run)[3:])
    pytest.importorskip("ray.scripts.scripts")
    from ray.scripts.symmetric_run import symmetric_run

    options = {option for each in symmetric_run.params for option in each.opts}
    assert set(re.findall(r" (--[a-z-]+)", ray)) <= options
