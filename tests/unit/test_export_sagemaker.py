from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import ANY, Stubber
from botocore.validate import validate_parameters
from cfnlint.api import ManualArgs, lint

from optimizer.errors import StorageError, UsageError
from optimizer.export.deployment import Deployment
from optimizer.export.platforms import sagemaker_deploy
from optimizer.export.platforms.model_archive import write_model_archive
from optimizer.export.platforms.sagemaker import sagemaker_files
from tests.unit.deployments import ON_CPU, ON_GPU, SEVERAL
from tests.unit.test_export_kubernetes import documents, kept

DIGEST = "0123abcd" * 8
VALUES = {
    "Image": "registry.example/triton:1",
    "RoleArn": "arn:aws:iam::111122223333:role/hosting",
    "ModelDataUrl": "s3://models/triton/quickstart-0123abcd/model.tar.gz",
}
OPERATIONS = {
    "create-model": ("sagemaker", "CreateModel"),
    "create-endpoint-config": ("sagemaker", "CreateEndpointConfig"),
    "create-endpoint": ("sagemaker", "CreateEndpoint"),
    "register-scalable-target": ("application-autoscaling", "RegisterScalableTarget"),
    "put-scaling-policy": ("application-autoscaling", "PutScalingPolicy"),
}


def client(service: str) -> Any:
    return boto3.client(
        service, region_name="eu-west-1", aws_access_key_id="x", aws_secret_access_key="x"
    )


def planned(deployment: Deployment, folder: Path) -> Mapping[str, dict[str, Any]]:
    return sagemaker_deploy.calls(kept(sagemaker_files(deployment, DIGEST), folder), VALUES)


def refuse_values_outside_enums(value: Any, shape: Any, place: str) -> None:
    """What botocore's own validation leaves to the service."""
    if shape.type_name == "structure":
        for name, item in value.items():
            refuse_values_outside_enums(item, shape.members[name], f"{place}.{name}")
    elif shape.type_name == "list":
        for item in value:
            refuse_values_outside_enums(item, shape.member, place)
    elif getattr(shape, "enum", None):
        assert value in shape.enum, f"{place}: {value}"
    elif shape.type_name == "string" and (pattern := shape.metadata.get("pattern")):
        if "\\u" in pattern or "\\p" in pattern:
            return  # Java's, which says no more than that letters are letters
        assert re.fullmatch(pattern, value), f"{place}: {value} is not like {pattern}"
    elif shape.type_name == "integer":
        least, most = shape.metadata.get("min", value), shape.metadata.get("max", value)
        assert least <= value <= most, f"{place}: {value}"


@pytest.mark.parametrize("deployment", [ON_CPU, ON_GPU], ids=lambda d: d.name)
def test_calls_fit_botocores_model_of_the_services(deployment: Deployment, tmp_path: Path) -> None:
    calls = planned(deployment, tmp_path)
    assert set(calls) == set(OPERATIONS)
    for name, parameters in calls.items():
        service, operation = OPERATIONS[name]
        shape = client(service).meta.service_model.operation_model(operation).input_shape
        validate_parameters(parameters, shape)
        refuse_values_outside_enums(parameters, shape, name)


def test_a_value_that_the_service_does_not_know_is_found(tmp_path: Path) -> None:
    calls = planned(replace(ON_CPU, price=replace(ON_CPU.price, instance_type="ml.x")), tmp_path)
    shape = client("sagemaker").meta.service_model.operation_model("CreateEndpointConfig")
    with pytest.raises(AssertionError, match=r"InstanceType: ml\.x"):
        refuse_values_outside_enums(calls["create-endpoint-config"], shape.input_shape, "")


def test_the_fleet_is_the_one_that_was_recommended(tmp_path: Path) -> None:
    calls = planned(ON_CPU, tmp_path)
    [variant] = calls["create-endpoint-config"]["ProductionVariants"]
    assert variant["InstanceType"] == "ml.c5.xlarge"
    assert variant["InitialInstanceCount"] == 8
    assert "InferenceAmiVersion" not in variant
    target = calls["register-scalable-target"]
    assert (target["MinCapacity"], target["MaxCapacity"]) == (8, 16)
    tracking = calls["put-scaling-policy"]["TargetTrackingScalingPolicyConfiguration"]
    # 850 requests/s less a headroom of 20 %, by the minute.
    assert tracking["TargetValue"] == 42500.0


def test_an_image_with_cuda_13_gets_an_instance_with_its_driver(tmp_path: Path) -> None:
    [variant] = planned(ON_GPU, tmp_path)["create-endpoint-config"]["ProductionVariants"]
    assert variant["InferenceAmiVersion"] == "al2023-ami-sagemaker-inference-gpu-4-1"


def test_the_container_is_told_what_it_serves_and_how(tmp_path: Path) -> None:
    container = planned(ON_GPU, tmp_path)["create-model"]["PrimaryContainer"]
    assert container["Environment"] == {
        "SAGEMAKER_TRITON_DEFAULT_MODEL_NAME": "bert",
        "SAGEMAKER_TRITON_LOG_VERBOSE": "false",
        "SAGEMAKER_TRITON_ADDITIONAL_ARGS": (
            "--disable-auto-complete-config --backend-config=tensorrt,execution-policy=BLOCKING"
        ),
    }
    serve = (tmp_path / "image/serve").read_text()
    assert all(flag in serve for flag in ON_GPU.flags)
    assert subprocess.run(["sh", "-n", tmp_path / "image/serve"], check=False).returncode == 0


def linted(template: str) -> list[str]:
    regions = ManualArgs(regions=["us-east-1", "eu-west-1"])
    return [str(match) for match in lint(template, config=regions)]


@pytest.mark.parametrize("deployment", [ON_CPU, ON_GPU], ids=lambda d: d.name)
def test_cfn_lint_has_nothing_to_say_of_the_template(deployment: Deployment) -> None:
    template = sagemaker_files(deployment, DIGEST)["template.yaml"]
    # What begins with I is advice for people who write templates by hand.
    assert [text for text in linted(template) if not text.startswith("[I")] == []


def test_cfn_lint_finds_what_is_misspelt() -> None:
    template = sagemaker_files(ON_CPU, DIGEST)["template.yaml"]
    found = linted(template.replace("InitialInstanceCount", "InstanceCount"))
    assert any("'InstanceCount' was unexpected" in text for text in found)


def test_alarms_are_set_to_limit_and_capacity() -> None:
    [template] = documents(sagemaker_files(ON_CPU, DIGEST)["template.yaml"])
    alarms = {
        name: resource["Properties"]["Threshold"]
        for name, resource in template["Resources"].items()
        if resource["Type"] == "AWS::CloudWatch::Alarm"
    }
    # 200 ms in microseconds; 850 requests/s by the minute.
    assert alarms == {"LatencyAlarm": 200_000, "CapacityAlarm": 51_000, "FailureAlarm": 0}


def test_several_models_are_refused() -> None:
    with pytest.raises(UsageError, match=r"one model, this server has bert, ranker\.v2, on"):
        sagemaker_files(SEVERAL, DIGEST)


def test_an_instance_type_of_others_is_refused() -> None:
    elsewhere = replace(ON_CPU, price=replace(ON_CPU.price, instance_type="c5.xlarge"))
    with pytest.raises(UsageError, match=r"begin with 'ml\.', the study's is c5\.xlarge"):
        sagemaker_files(elsewhere, DIGEST)


class Services:
    """Clients that answer what a test expects them to be asked, in that order."""

    def __init__(self) -> None:
        self.uploads: list[tuple[str, str, str]] = []
        self.clients = {"s3": self, **{s: client(s) for s, _ in OPERATIONS.values()}}
        self.stubs = {
            name: Stubber(each) for name, each in self.clients.items() if each is not self
        }

    def upload_file(self, *where: str) -> None:
        self.uploads.append((where[0], where[1], where[2]))

    def answers(self, service: str, method: str, asked: Any, answer: Mapping[str, Any]) -> None:
        self.stubs[service].add_response(method, dict(answer), asked)

    def lacks(self, method: str) -> None:
        self.stubs["sagemaker"].add_client_error(method, "ValidationException", "Could not find")

    def deploy(self, folder: Path, calls: Mapping[str, Mapping[str, Any]]) -> None:
        for stub in self.stubs.values():
            stub.activate()
        sagemaker_deploy.deploy(folder, calls, ("models", "key"), self.clients)
        for stub in self.stubs.values():
            stub.assert_no_pending_responses()


ENDPOINT = {
    "EndpointName": "quickstart",
    "EndpointArn": "arn:aws:sagemaker:eu-west-1:111122223333:endpoint/quickstart",
    "EndpointStatus": "InService",
    "CreationTime": 0,
    "LastModifiedTime": 0,
}
ARN = "arn:aws:sagemaker:eu-west-1:111122223333:x/quickstart"


def test_deploy_makes_everything_where_nothing_is(tmp_path: Path) -> None:
    calls, services = planned(ON_CPU, tmp_path), Services()
    services.lacks("describe_model")
    services.answers("sagemaker", "create_model", calls["create-model"], {"ModelArn": ARN})
    services.lacks("describe_endpoint_config")
    services.answers(
        "sagemaker",
        "create_endpoint_config",
        calls["create-endpoint-config"],
        {"EndpointConfigArn": ARN},
    )
    services.lacks("describe_endpoint")
    services.answers("sagemaker", "create_endpoint", calls["create-endpoint"], {"EndpointArn": ARN})
    running = {**ENDPOINT, "EndpointConfigName": "quickstart-0123abcd"}
    services.answers("sagemaker", "describe_endpoint", ANY_NAME, running)
    expect_scaling(services, calls)
    services.deploy(tmp_path, calls)
    assert services.uploads == [(str(tmp_path / "model.tar.gz"), "models", "key")]


ANY_NAME = {"EndpointName": ANY}


def expect_scaling(services: Services, calls: Mapping[str, Mapping[str, Any]]) -> None:
    scaling = "application-autoscaling"
    target, policy = calls["register-scalable-target"], calls["put-scaling-policy"]
    services.answers(scaling, "register_scalable_target", target, {})
    services.answers(scaling, "put_scaling_policy", policy, {"PolicyARN": ARN, "Alarms": []})


def test_deploy_updates_an_endpoint_that_runs(tmp_path: Path) -> None:
    calls, services = planned(ON_CPU, tmp_path), Services()
    old = {**ENDPOINT, "EndpointConfigName": "quickstart-before"}
    services.answers(
        "sagemaker",
        "describe_model",
        {"ModelName": "quickstart-0123abcd"},
        {"ModelName": "m", "ModelArn": ARN, "CreationTime": 0},
    )
    services.answers(
        "sagemaker",
        "describe_endpoint_config",
        {"EndpointConfigName": "quickstart-0123abcd"},
        {
            "EndpointConfigName": "c",
            "EndpointConfigArn": ARN,
            "ProductionVariants": [{"VariantName": "AllTraffic"}],
            "CreationTime": 0,
        },
    )
    for _ in range(2):
        services.answers("sagemaker", "describe_endpoint", ANY_NAME, old)
    services.answers("sagemaker", "update_endpoint", calls["create-endpoint"], {"EndpointArn": ARN})
    services.answers("sagemaker", "describe_endpoint", ANY_NAME, old)
    scaling, target = "application-autoscaling", calls["register-scalable-target"]
    known = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": target["ResourceId"],
        "ScalableDimension": target["ScalableDimension"],
        "MinCapacity": 1,
        "MaxCapacity": 2,
        "RoleARN": ARN,
        "CreationTime": 0,
    }
    services.answers(
        scaling, "describe_scalable_targets", ANY_TARGETS, {"ScalableTargets": [known]}
    )
    same = {key: target[key] for key in ("ServiceNamespace", "ResourceId", "ScalableDimension")}
    services.answers(scaling, "deregister_scalable_target", same, {})
    expect_scaling(services, calls)
    services.deploy(tmp_path, calls)


ANY_TARGETS = {"ServiceNamespace": "sagemaker", "ResourceIds": ANY}


def test_what_sagemaker_refuses_is_not_taken_for_missing(tmp_path: Path) -> None:
    calls, services = planned(ON_CPU, tmp_path), Services()
    services.stubs["sagemaker"].add_client_error("describe_model", "AccessDeniedException", "no")
    with pytest.raises(client("sagemaker").exceptions.ClientError, match="AccessDenied"):
        services.deploy(tmp_path, calls)


def test_the_script_says_what_it_would_do_and_needs_neither_package_nor_account(
    tmp_path: Path,
) -> None:
    folder = kept(sagemaker_files(ON_CPU, DIGEST), tmp_path)
    done = subprocess.run(
        [
            *(sys.executable, "-I", "-S", folder / "deploy.py", "--region", "eu-west-1"),
            *("--bucket", "models", "--role", VALUES["RoleArn"], "--image", VALUES["Image"]),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert f"upload model.tar.gz to {VALUES['ModelDataUrl']}" in done.stdout
    assert "${" not in done.stdout
    assert done.stdout.endswith("nothing was done: --apply does it\n")
    said = done.stdout.partition("create-model\n")[2].partition("\ncreate-endpoint-config")[0]
    assert json.loads(said)["ExecutionRoleArn"] == VALUES["RoleArn"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    version = tmp_path / "repository/bert/1"
    version.mkdir(parents=True)
    (version / "model.py").write_text("pass\n")
    (version.parent / "config.pbtxt").write_text('name: "bert"\n')
    (tmp_path / "repository/README.md").write_text("# For people\n")
    return tmp_path / "repository"


def test_the_archive_has_the_layout_of_sagemaker(repository: Path, tmp_path: Path) -> None:
    write_model_archive(repository, ["bert"], tmp_path / "model.tar.gz")
    with tarfile.open(tmp_path / "model.tar.gz") as archive:
        assert archive.getnames() == ["bert", "bert/1", "bert/1/model.py", "bert/config.pbtxt"]
        for entry in archive:
            assert (entry.uid, entry.gid, entry.uname, entry.gname, entry.mtime) == (
                0,
                0,
                "",
                "",
                0,
            )


def test_the_same_files_make_the_same_archive(repository: Path, tmp_path: Path) -> None:
    again = tmp_path / "elsewhere"
    shutil.copytree(repository, again)
    os.utime(again / "bert/config.pbtxt", (1, 1))
    (again / "bert/1/model.py").chmod(0o755)
    first = write_model_archive(repository, ["bert"], tmp_path / "one.tar.gz")
    assert write_model_archive(again, ["bert"], tmp_path / "two.tar.gz") == first
    (again / "bert/1/model.py").write_text("fail\n")
    assert write_model_archive(again, ["bert"], tmp_path / "two.tar.gz") != first


def test_an_archive_that_cannot_be_written_is_said(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"model\.tar\.gz"):
        write_model_archive(repository, ["bert"], tmp_path / "missing/model.tar.gz")
