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
from botocore.exceptions import WaiterError
from botocore.stub import ANY, Stubber
from botocore.validate import validate_parameters

from optimizer.errors import StorageError, UsageError
from optimizer.export.deployment import Deployment
from optimizer.export.platforms import sagemaker_deploy
from optimizer.export.platforms.sagemaker import write_model_archive
from tests.unit.deployments import ON_CPU, ON_GPU, SEVERAL, platform_files
from tests.unit.test_export_kubernetes import documents, kept

VALUES = {
    "Image": "registry.example/triton:1",
    "RoleArn": "arn:aws:iam::111122223333:role/hosting",
    "ModelDataUrl": "s3://models/triton/quickstart/0eb3e36bfb24dcd9/model.tar.gz",
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
    return sagemaker_deploy.calls(kept(platform_files("sagemaker", deployment), folder), VALUES)


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


# Each in place of one of VALUES.
OTHERS = {
    "Image": "registry.example/triton:2",
    "RoleArn": "arn:aws:iam::111122223333:role/other",
    "ModelDataUrl": "s3://models/triton/quickstart/0000000000000000/model.tar.gz",
}


def names(deployment: Deployment, folder: Path, **values: str) -> tuple[str, str]:
    calls = sagemaker_deploy.calls(
        kept(platform_files("sagemaker", deployment), folder), {**VALUES, **values}
    )
    config = calls["create-endpoint-config"]
    assert calls["create-endpoint"]["EndpointConfigName"] == config["EndpointConfigName"]
    [variant] = config["ProductionVariants"]
    assert variant["ModelName"] == calls["create-model"]["ModelName"]
    return variant["ModelName"], config["EndpointConfigName"]


def test_names_are_others_for_whatever_else_is_deployed(tmp_path: Path) -> None:
    price, model = ON_CPU.price, ON_CPU.models[0]
    found = [
        names(ON_CPU, tmp_path),
        *(names(ON_CPU, tmp_path, **{key: value}) for key, value in OTHERS.items()),
        names(replace(ON_CPU, price=replace(price, instance_type="ml.c5.2xlarge")), tmp_path),
        names(replace(ON_CPU, demand=replace(ON_CPU.demand, headroom=0.9)), tmp_path),
        names(replace(ON_CPU, models=(replace(model, name="other"),)), tmp_path),
    ]
    assert len(set(found)) == len(found)
    assert len({name for pair in found for name in pair}) == len(found)
    for pair in found:
        assert all(re.fullmatch(r"quickstart-[0-9a-f]{8}", name) for name in pair)


def test_names_stay_while_the_same_is_deployed(tmp_path: Path) -> None:
    assert names(ON_CPU, tmp_path / "one") == names(ON_CPU, tmp_path / "two")
    # Which changes nothing but the target of autoscaling.
    faster = replace(ON_CPU, capacity_per_second=851.0)
    assert faster.replicas == ON_CPU.replicas
    assert names(faster, tmp_path) == names(ON_CPU, tmp_path)


def test_an_image_with_cuda_13_gets_an_instance_with_its_driver(tmp_path: Path) -> None:
    [variant] = planned(ON_GPU, tmp_path)["create-endpoint-config"]["ProductionVariants"]
    assert variant["InferenceAmiVersion"] == "al2023-ami-sagemaker-inference-gpu-4-1"


def test_the_container_is_told_what_it_serves_and_how(tmp_path: Path) -> None:
    container = planned(ON_GPU, tmp_path)["create-model"]["PrimaryContainer"]
    # What only the `serve` of NVIDIA's images reads would change nothing.
    assert container["Environment"] == {"SAGEMAKER_TRITON_DEFAULT_MODEL_NAME": "bert"}
    serve = (tmp_path / "image/serve").read_text()
    assert all(flag in serve for flag in ON_GPU.flags)
    assert subprocess.run(["sh", "-n", tmp_path / "image/serve"], check=False).returncode == 0


def linted(template: str) -> list[str]:
    # Importing it takes longer than any test here.
    from cfnlint.api import ManualArgs, lint

    regions = ManualArgs(regions=["us-east-1", "eu-west-1"])
    return [str(match) for match in lint(template, config=regions)]


@pytest.mark.parametrize("deployment", [ON_CPU, ON_GPU], ids=lambda d: d.name)
def test_cfn_lint_has_nothing_to_say_of_the_template(deployment: Deployment) -> None:
    template = platform_files("sagemaker", deployment)["template.yaml"]
    # What begins with I is advice for people who write templates by hand.
    assert [text for text in linted(template) if not text.startswith("[I")] == []


def test_cfn_lint_finds_what_is_misspelt() -> None:
    template = platform_files("sagemaker", ON_CPU)["template.yaml"]
    found = linted(template.replace("InitialInstanceCount", "InstanceCount"))
    assert any("'InstanceCount' was unexpected" in text for text in found)


def alarms() -> dict[str, dict[str, Any]]:
    [template] = documents(platform_files("sagemaker", ON_CPU)["template.yaml"])
    return {
        name: resource["Properties"]
        for name, resource in template["Resources"].items()
        if resource["Type"] == "AWS::CloudWatch::Alarm"
    }


def test_alarms_are_set_to_limit_capacity_and_share_of_failures() -> None:
    # 200 ms in microseconds; 850 requests/s by the minute; 1 %, as in the rules of Prometheus.
    assert {name: alarm["Threshold"] for name, alarm in alarms().items()} == {
        "LatencyAlarm": 200_000,
        "CapacityAlarm": 51_000,
        "FailureAlarm": 0.01,
    }
    share, *summed = alarms()["FailureAlarm"]["Metrics"]
    assert share["Expression"] == "failed / requests"
    assert {each["Id"]: each["MetricStat"]["Metric"]["MetricName"] for each in summed} == {
        "failed": "Invocation5XXErrors",
        "requests": "Invocations",
    }
    assert [each["ReturnData"] for each in summed] == [False, False]


def test_alarms_are_sent_to_a_topic_where_there_is_one() -> None:
    [template] = documents(platform_files("sagemaker", ON_CPU)["template.yaml"])
    assert template["Parameters"]["AlarmTopicArn"]["Default"] == ""
    sent = {"Fn::If": ["AlarmsAreSent", [{"Ref": "AlarmTopicArn"}], {"Ref": "AWS::NoValue"}]}
    assert [alarm["AlarmActions"] for alarm in alarms().values()] == [sent] * 3


def test_a_stack_names_no_model_and_keeps_added_instances() -> None:
    resources = documents(platform_files("sagemaker", ON_CPU)["template.yaml"])[0]["Resources"]
    # Names that CloudFormation makes are others whenever what they name is replaced.
    assert "ModelName" not in resources["Model"]["Properties"]
    assert "EndpointConfigName" not in resources["EndpointConfig"]["Properties"]
    assert resources["Endpoint"]["Properties"]["RetainAllVariantProperties"] is True


def test_several_models_are_refused() -> None:
    with pytest.raises(UsageError, match=r"one model, and this server has bert, ranker\.v2, on"):
        platform_files("sagemaker", SEVERAL)


def test_an_instance_type_of_others_is_refused() -> None:
    elsewhere = replace(ON_CPU, price=replace(ON_CPU.price, instance_type="c5.xlarge"))
    with pytest.raises(UsageError, match=r"begin with 'ml\.', the study's is c5\.xlarge"):
        platform_files("sagemaker", elsewhere)


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
        try:
            sagemaker_deploy.deploy(folder, calls, ("models", "key"), self.clients)
        finally:
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
ANY_NAME = {"EndpointName": ANY}
SCALING = "application-autoscaling"
BEFORE = "quickstart-before"


def endpoint(config: str, instances: int = 8) -> dict[str, Any]:
    variant = {"VariantName": "AllTraffic", "DesiredInstanceCount": instances}
    return {**ENDPOINT, "EndpointConfigName": config, "ProductionVariants": [variant]}


def endpoint_config(name: str, instance_type: str = "ml.c5.xlarge") -> dict[str, Any]:
    variant = {"VariantName": "AllTraffic", "InstanceType": instance_type}
    return {
        "EndpointConfigName": name,
        "EndpointConfigArn": ARN,
        "ProductionVariants": [variant],
        "CreationTime": 0,
    }


class Deploying:
    """A deployment of ON_CPU, step by step, to what a test says is there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls, self.services = planned(ON_CPU, folder), Services()
        self.name = self.calls["create-endpoint"]["EndpointConfigName"]

    def answers(self, method: str, asked: Any, answer: Mapping[str, Any]) -> None:
        self.services.answers("sagemaker", method, asked, answer)

    def makes_model_and_config(self) -> None:
        model, config = self.calls["create-model"], self.calls["create-endpoint-config"]
        self.services.lacks("describe_model")
        self.answers("create_model", model, {"ModelArn": ARN})
        self.services.lacks("describe_endpoint_config")
        self.answers("create_endpoint_config", config, {"EndpointConfigArn": ARN})

    def finds_running(self, instance_type: str = "ml.c5.xlarge", instances: int = 8) -> None:
        for _ in range(2):
            self.answers("describe_endpoint", ANY_NAME, endpoint(BEFORE, instances))
        described = endpoint_config(BEFORE, instance_type)
        self.answers("describe_endpoint_config", {"EndpointConfigName": BEFORE}, described)

    def updates(self, *, retaining: bool) -> None:
        asked = {**self.calls["create-endpoint"], "RetainAllVariantProperties": retaining}
        self.answers("update_endpoint", asked, {"EndpointArn": ARN})

    def serves(self, config: str) -> None:
        """To the waiter, then to what asks whether it is the right one."""
        for _ in range(2):
            self.answers("describe_endpoint", ANY_NAME, endpoint(config))

    def scaling(self, method: str, asked: Any, answer: Mapping[str, Any]) -> None:
        self.services.answers(SCALING, method, asked, answer)

    def puts_scaling(self) -> None:
        self.scaling("register_scalable_target", self.calls["register-scalable-target"], {})
        policy = self.calls["put-scaling-policy"]
        self.scaling("put_scaling_policy", policy, {"PolicyARN": ARN, "Alarms": []})

    def takes_scaling_away(self) -> None:
        target = self.calls["register-scalable-target"]
        space = {key: target[key] for key in ("ServiceNamespace", "ScalableDimension")}
        one = {**space, "ResourceId": target["ResourceId"]}
        known = {**one, "MinCapacity": 1, "MaxCapacity": 2, "RoleARN": ARN, "CreationTime": 0}
        self.scaling(
            "describe_scalable_targets",
            {**space, "ResourceIds": [target["ResourceId"]]},
            {"ScalableTargets": [known]},
        )
        policy = {**OLD_POLICY, **one, "PolicyARN": ARN, "CreationTime": 0}
        self.scaling("describe_scaling_policies", one, {"ScalingPolicies": [policy]})
        self.scaling("deregister_scalable_target", one, {})

    def puts_old_scaling_back(self) -> None:
        target = self.calls["register-scalable-target"]
        one = {k: v for k, v in target.items() if not k.endswith("Capacity")}
        known = {**one, "MinCapacity": 1, "MaxCapacity": 2}
        self.scaling("register_scalable_target", known, {})
        answer = {"PolicyARN": ARN, "Alarms": []}
        self.scaling("put_scaling_policy", {**OLD_POLICY, **one}, answer)

    def __call__(self) -> None:
        self.services.deploy(self.folder, self.calls)


OLD_POLICY = {
    "PolicyName": "before",
    "PolicyType": "TargetTrackingScaling",
    "TargetTrackingScalingPolicyConfiguration": {"TargetValue": 60.0},
}


def test_deploy_makes_everything_where_nothing_is(tmp_path: Path) -> None:
    deploying = Deploying(tmp_path)
    deploying.makes_model_and_config()
    deploying.services.lacks("describe_endpoint")
    asked = deploying.calls["create-endpoint"]
    deploying.answers("create_endpoint", asked, {"EndpointArn": ARN})
    deploying.serves(deploying.name)
    deploying.puts_scaling()
    deploying()
    assert deploying.services.uploads == [(str(tmp_path / "model.tar.gz"), "models", "key")]


def test_deploy_leaves_what_is_there_as_it_is(tmp_path: Path) -> None:
    deploying = Deploying(tmp_path)
    model = {"ModelName": "m", "ModelArn": ARN, "CreationTime": 0}
    deploying.answers("describe_model", {"ModelName": deploying.name}, model)
    named = {"EndpointConfigName": deploying.name}
    deploying.answers("describe_endpoint_config", named, endpoint_config("c"))
    for _ in range(4):
        deploying.answers("describe_endpoint", ANY_NAME, endpoint(deploying.name))
    deploying.puts_scaling()
    deploying()


@pytest.mark.parametrize(("instances", "retaining"), [(7, False), (8, False), (9, True)])
def test_instances_that_autoscaling_has_added_outlast_an_update(
    instances: int, retaining: bool, tmp_path: Path
) -> None:
    deploying = Deploying(tmp_path)
    deploying.makes_model_and_config()
    deploying.finds_running(instances=instances)
    # Autoscaling stays: SageMaker minds it for another instance type alone.
    deploying.updates(retaining=retaining)
    deploying.serves(deploying.name)
    deploying.puts_scaling()
    deploying()


def test_another_instance_type_takes_autoscaling_away_for_the_update(tmp_path: Path) -> None:
    deploying = Deploying(tmp_path)
    deploying.makes_model_and_config()
    deploying.finds_running("ml.g5.xlarge", instances=30)
    deploying.takes_scaling_away()
    # So many of one type are no measure for another.
    deploying.updates(retaining=False)
    deploying.serves(deploying.name)
    deploying.puts_scaling()
    deploying()


def test_autoscaling_is_put_back_where_an_update_fails(tmp_path: Path) -> None:
    deploying = Deploying(tmp_path)
    deploying.makes_model_and_config()
    deploying.finds_running("ml.g5.xlarge")
    deploying.takes_scaling_away()
    deploying.updates(retaining=False)
    failed = {**endpoint(BEFORE), "EndpointStatus": "Failed"}
    deploying.answers("describe_endpoint", ANY_NAME, failed)
    deploying.puts_old_scaling_back()
    with pytest.raises(WaiterError, match="terminal failure state"):
        deploying()


def test_an_update_that_went_back_is_no_success(tmp_path: Path) -> None:
    deploying = Deploying(tmp_path)
    deploying.makes_model_and_config()
    deploying.finds_running("ml.g5.xlarge")
    deploying.takes_scaling_away()
    deploying.updates(retaining=False)
    deploying.serves(BEFORE)
    deploying.puts_old_scaling_back()
    message = f"quickstart serves {BEFORE}, not {deploying.name}"
    with pytest.raises(sagemaker_deploy.UpdateRolledBack, match=message):
        deploying()


def test_what_sagemaker_refuses_is_not_taken_for_missing(tmp_path: Path) -> None:
    calls, services = planned(ON_CPU, tmp_path), Services()
    services.stubs["sagemaker"].add_client_error("describe_model", "AccessDeniedException", "no")
    with pytest.raises(client("sagemaker").exceptions.ClientError, match="AccessDenied"):
        services.deploy(tmp_path, calls)


def test_the_script_says_what_it_would_do_and_needs_neither_package_nor_account(
    tmp_path: Path,
) -> None:
    folder = kept(platform_files("sagemaker", ON_CPU), tmp_path)
    (folder / "model.tar.gz").write_bytes(b"archive")
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
    assert done.stdout.endswith("dry run: --apply makes these calls\n")
    said = done.stdout.partition("create-model\n")[2].partition("\ncreate-endpoint-config")[0]
    assert json.loads(said) == planned(ON_CPU, tmp_path)["create-model"]


def test_an_update_that_went_back_ends_with_the_reason_and_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = kept(platform_files("sagemaker", ON_CPU), tmp_path)
    (folder / "model.tar.gz").write_bytes(b"archive")
    monkeypatch.setattr(sagemaker_deploy, "__file__", str(folder / "deploy.py"))

    def goes_back(*_: object) -> None:
        raise sagemaker_deploy.UpdateRolledBack("quickstart serves another")

    monkeypatch.setattr(sagemaker_deploy, "deploy", goes_back)
    arguments = ["--region", "eu-west-1", "--bucket", "models", "--role", VALUES["RoleArn"]]
    code = sagemaker_deploy.main([*arguments, "--image", VALUES["Image"], "--apply"])
    said = capsys.readouterr()
    assert (code, said.out, said.err) == (1, "", "error: quickstart serves another\n")


def test_the_readme_says_which_protocol_was_measured() -> None:
    assert (
        "The study measured over gRPC, and SageMaker accepts only HTTP"
        in platform_files("sagemaker", ON_CPU)["README.md"]
    )
    assert (
        "The study measured over HTTP, as SageMaker"
        in platform_files("sagemaker", ON_GPU)["README.md"]
    )


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
    one, two = tmp_path / "one.tar.gz", tmp_path / "two.tar.gz"
    write_model_archive(repository, ["bert"], one)
    write_model_archive(again, ["bert"], two)
    assert two.read_bytes() == one.read_bytes()
    (again / "bert/1/model.py").write_text("fail\n")
    write_model_archive(again, ["bert"], two)
    assert two.read_bytes() != one.read_bytes()


def test_an_archive_that_cannot_be_written_is_said(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"model\.tar\.gz"):
        write_model_archive(repository, ["bert"], tmp_path / "missing/model.tar.gz")
