"""SageMaker: the parameters of its calls, a CloudFormation template, and the image's program.

What belongs to an account stands as `${Image}`, `${ModelDataUrl}` and `${RoleArn}`, which are the
parameters of the template and what deploy.py fills in, with the names that follow from them
(`${Release}`).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optimizer.configuration.releases import tag_of
from optimizer.errors import UsageError
from optimizer.export.deployment import Deployment, startup_seconds
from optimizer.export.monitoring.alerts import MOST_FAILURES
from optimizer.export.platforms import sagemaker_deploy
from optimizer.export.platforms.server_image import dockerfile, requirements
from optimizer.export.yaml_text import yaml_text

MODEL_ARCHIVE = "model.tar.gz"

_VARIANT = "AllTraffic"
_METRIC = "SageMakerVariantInvocationsPerInstance"
_DIMENSION = "sagemaker:variant:DesiredInstanceCount"
_CONTEXT = "image/"

_CUDA_13 = (25, 8)
"""The first release whose image holds CUDA 13."""

_AMI_FOR_CUDA_13 = "al2023-ami-sagemaker-inference-gpu-4-1"
_FAMILIES_WITH_OLD_DRIVERS = ("ml.g4dn.", "ml.g5.")

_TOPIC, _SENT = "AlarmTopicArn", "AlarmsAreSent"
_ALARM_PERIOD_SECONDS = 60

_DOWNLOAD_SECONDS = 1800
_LONGEST_START_SECONDS = 3600


def sagemaker_files(deployment: Deployment) -> dict[str, str]:
    """All files but the archive, by path.

    Raises:
        UsageError: for several models, or an instance type that is none of SageMaker's.
    """
    names = [model.name for model in deployment.models]
    refuse_what_it_cannot_host(names, deployment.price.instance_type)
    release = f"{deployment.name}-${{Release}}"
    calls = {
        "create-model": _model(deployment, release),
        "create-endpoint-config": _endpoint_config(deployment, release),
        "create-endpoint": {"EndpointName": deployment.name, "EndpointConfigName": release},
        "register-scalable-target": _scalable_target(deployment),
        "put-scaling-policy": _scaling_policy(deployment),
    }
    files = {f"{name}.json": json.dumps(call, indent=2) + "\n" for name, call in calls.items()}
    files["template.yaml"] = _template(deployment)
    files["deploy.py"] = Path(sagemaker_deploy.__file__).read_text()
    return files | _image(deployment)


def refuse_what_it_cannot_host(models: Sequence[str], instance_type: str) -> None:
    """Raises UsageError for several models, or an instance type that is none of SageMaker's."""
    if len(models) != 1:
        raise UsageError(
            "an endpoint of SageMaker passes requests to one model, this server has"
            f" {', '.join(models)}: export to another format"
        )
    if not instance_type.startswith("ml."):
        raise UsageError(
            f"SageMaker's instance types begin with 'ml.', the study's is {instance_type}:"
            " give the study the price of the type that is meant (price.instance_type)"
        )


def _model(deployment: Deployment, release: str) -> dict[str, Any]:
    return {
        "ModelName": release,
        "ExecutionRoleArn": "${RoleArn}",
        "PrimaryContainer": {
            "Image": "${Image}",
            "ModelDataUrl": "${ModelDataUrl}",
            "Environment": _environment(deployment),
        },
    }


def _environment(deployment: Deployment) -> dict[str, str]:
    """Read by tritonserver itself, which passes /invocations to that model.

    The flags are in the image's `serve`, in place of the one that NVIDIA's images have.
    """
    return {"SAGEMAKER_TRITON_DEFAULT_MODEL_NAME": deployment.models[0].name}


def _variant(deployment: Deployment) -> dict[str, Any]:
    variant: dict[str, Any] = {
        "VariantName": _VARIANT,
        "InstanceType": deployment.price.instance_type,
        "InitialInstanceCount": deployment.replicas,
        "InitialVariantWeight": 1.0,
        "ModelDataDownloadTimeoutInSeconds": _DOWNLOAD_SECONDS,
        "ContainerStartupHealthCheckTimeoutInSeconds": min(
            startup_seconds(deployment), _LONGEST_START_SECONDS
        ),
    }
    if _needs_newer_driver(deployment):
        variant["InferenceAmiVersion"] = _AMI_FOR_CUDA_13
    return variant


def _needs_newer_driver(deployment: Deployment) -> bool:
    if not deployment.image.carries_server or not deployment.resources.gpus:
        return False
    year, month = map(int, tag_of(deployment.image.base).split("."))
    of_family = deployment.price.instance_type.startswith(_FAMILIES_WITH_OLD_DRIVERS)
    return of_family and (year, month) >= _CUDA_13


def _endpoint_config(deployment: Deployment, release: str) -> dict[str, Any]:
    return {
        "EndpointConfigName": release,
        "ProductionVariants": [{**_variant(deployment), "ModelName": release}],
    }


def _resource(endpoint: str) -> str:
    return f"endpoint/{endpoint}/variant/{_VARIANT}"


def _scalable_target(deployment: Deployment) -> dict[str, Any]:
    return {
        "ServiceNamespace": "sagemaker",
        "ResourceId": _resource(deployment.name),
        "ScalableDimension": _DIMENSION,
        "MinCapacity": deployment.replicas,
        "MaxCapacity": deployment.most_replicas,
    }


def _scaling_policy(deployment: Deployment) -> dict[str, Any]:
    return {
        "PolicyName": f"{deployment.name}-capacity",
        "ServiceNamespace": "sagemaker",
        "ResourceId": _resource(deployment.name),
        "ScalableDimension": _DIMENSION,
        "PolicyType": "TargetTrackingScaling",
        "TargetTrackingScalingPolicyConfiguration": _tracking(deployment),
    }


def _tracking(deployment: Deployment) -> dict[str, Any]:
    return {
        "TargetValue": invocations_per_minute(deployment),
        "PredefinedMetricSpecification": {"PredefinedMetricType": _METRIC},
        "ScaleOutCooldown": 60,
        "ScaleInCooldown": 300,
    }


def invocations_per_minute(deployment: Deployment) -> float:
    """Of an instance, that autoscaling aims at: the measured capacity less the headroom."""
    return round(60 * deployment.target_per_second, 1)


def _template(deployment: Deployment) -> str:
    content = {
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": f"Triton on SageMaker: {deployment.description}"[:1024],
        "Parameters": {
            "Image": _parameter(
                "The image of image/Dockerfile, by a tag or digest that no other image ever gets"
            ),
            "ModelDataUrl": _parameter(
                f"Where {MODEL_ARCHIVE} lies; another archive needs another address", "s3://.+"
            ),
            "RoleArn": _parameter(
                "The role that SageMaker takes on, which may read both", "arn:.+:role/.+"
            ),
            _TOPIC: {
                **_parameter("SNS topic that alarms are sent to, or nothing", "(arn:.+:sns:.+)?"),
                "Default": "",
            },
        },
        "Conditions": {
            _SENT: {"Fn::Not": [{"Fn::Equals": [{"Ref": _TOPIC}, ""]}]},
        },
        "Resources": {**_hosting(deployment), **_scaling(deployment), **_alarms(deployment)},
        "Outputs": {"EndpointName": {"Value": {"Fn::GetAtt": ["Endpoint", "EndpointName"]}}},
    }
    return yaml_text(deployment.summary, content)


def _parameter(description: str, pattern: str = ".+") -> dict[str, str]:
    return {"Type": "String", "Description": description, "AllowedPattern": pattern}


def _hosting(deployment: Deployment) -> dict[str, Any]:
    container = {
        "Image": {"Ref": "Image"},
        "ModelDataUrl": {"Ref": "ModelDataUrl"},
        "Environment": _environment(deployment),
    }
    variant = {**_variant(deployment), "ModelName": {"Fn::GetAtt": ["Model", "ModelName"]}}
    return {
        "Model": _made(
            "AWS::SageMaker::Model",
            {"ExecutionRoleArn": {"Ref": "RoleArn"}, "PrimaryContainer": container},
        ),
        "EndpointConfig": _made(
            "AWS::SageMaker::EndpointConfig", {"ProductionVariants": [variant]}
        ),
        "Endpoint": _made(
            "AWS::SageMaker::Endpoint",
            {
                "EndpointName": deployment.name,
                "EndpointConfigName": {"Fn::GetAtt": ["EndpointConfig", "EndpointConfigName"]},
                # Instances that autoscaling has added stay amid an update.
                "RetainAllVariantProperties": True,
            },
        ),
    }


def _scaling(deployment: Deployment) -> dict[str, Any]:
    endpoint = {"Fn::GetAtt": ["Endpoint", "EndpointName"]}
    # The role is Application Auto Scaling's own, which AWS makes where it is missing.
    target = {**_scalable_target(deployment), "ResourceId": _joined(endpoint)}
    policy = {
        "PolicyName": f"{deployment.name}-capacity",
        "PolicyType": "TargetTrackingScaling",
        "ScalingTargetId": {"Ref": "ScalableTarget"},
        "TargetTrackingScalingPolicyConfiguration": _tracking(deployment),
    }
    return {
        "ScalableTarget": _made("AWS::ApplicationAutoScaling::ScalableTarget", target),
        "ScalingPolicy": _made("AWS::ApplicationAutoScaling::ScalingPolicy", policy),
    }


def _joined(endpoint: Mapping[str, Any]) -> dict[str, Any]:
    return {"Fn::Join": ["/", ["endpoint", endpoint, "variant", _VARIANT]]}


def _alarms(deployment: Deployment) -> dict[str, Any]:
    """On SageMaker's own metrics: those of Triton do not get out of the container."""
    model = deployment.models[0]
    percentile = f"p{model.limit.percentile:g}"
    return {
        "LatencyAlarm": _alarm(
            f"{percentile} in the container is over the limit of {model.limit.latency_ms:g} ms",
            {
                **_metric("ModelLatency"),
                "ExtendedStatistic": percentile,
                "Period": _ALARM_PERIOD_SECONDS,
            },
            1000 * model.limit.latency_ms,
        ),
        "CapacityAlarm": _alarm(
            f"Instances are asked for more than the {deployment.capacity_per_second:.4g} requests/s"
            " that were measured",
            {
                **_metric("InvocationsPerInstance"),
                "Statistic": "Sum",
                "Period": _ALARM_PERIOD_SECONDS,
            },
            round(_ALARM_PERIOD_SECONDS * deployment.capacity_per_second, 1),
        ),
        "FailureAlarm": _alarm(
            f"More than {MOST_FAILURES:.0%} of the requests fail in the container",
            {
                "Metrics": [
                    {"Id": "share", "Expression": "failed / asked", "Label": "share that fails"},
                    _summed("failed", "Invocation5XXErrors"),
                    _summed("asked", "Invocations"),
                ]
            },
            MOST_FAILURES,
        ),
    }


def _metric(name: str) -> dict[str, Any]:
    dimensions = {
        "EndpointName": {"Fn::GetAtt": ["Endpoint", "EndpointName"]},
        "VariantName": _VARIANT,
    }
    return {
        "Namespace": "AWS/SageMaker",
        "MetricName": name,
        "Dimensions": [{"Name": key, "Value": value} for key, value in dimensions.items()],
    }


def _summed(identity: str, metric: str) -> dict[str, Any]:
    """A metric for an expression, of which the alarm does not go by itself."""
    asked = {"Metric": _metric(metric), "Period": _ALARM_PERIOD_SECONDS, "Stat": "Sum"}
    return {"Id": identity, "MetricStat": asked, "ReturnData": False}


def _alarm(description: str, watched: Mapping[str, Any], threshold: float) -> dict[str, Any]:
    return _made(
        "AWS::CloudWatch::Alarm",
        {
            "AlarmDescription": description,
            **watched,
            "EvaluationPeriods": 5,
            "ComparisonOperator": "GreaterThanThreshold",
            "Threshold": threshold,
            "TreatMissingData": "notBreaching",
            "AlarmActions": {"Fn::If": [_SENT, [{"Ref": _TOPIC}], {"Ref": "AWS::NoValue"}]},
        },
    )


def _made(kind: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"Type": kind, "Properties": dict(properties)}


def _image(deployment: Deployment) -> dict[str, str]:
    """SageMaker starts a container with the one argument `serve`, and puts the models into it."""
    image = deployment.image
    files = {
        f"{_CONTEXT}Dockerfile": dockerfile(
            image,
            "# As root: SageMaker expects that of all containers, and its files are root's.",
            "COPY serve /usr/local/bin/serve",
            "RUN chmod 755 /usr/local/bin/serve",
            command="serve",
        ),
        f"{_CONTEXT}serve": _serve(deployment),
    }
    if image.packages:
        files[f"{_CONTEXT}requirements.txt"] = requirements(image)
    return files


def _serve(deployment: Deployment) -> str:
    flags = [
        "--allow-sagemaker=true",
        *(f"--allow-{what}=false" for what in ("http", "grpc", "metrics")),
        *deployment.flags,
    ]
    lines = [
        "#!/bin/sh",
        "# What SageMaker starts: Triton as it was measured, behind /ping and /invocations alone.",
        "exec tritonserver \\",
        '    --model-repository="${MODEL_REPOSITORY:-/opt/ml/model}" \\',
        '    --sagemaker-port="${SAGEMAKER_BIND_TO_PORT:-8080}" \\',
        *(f"    {shlex.quote(flag)} \\" for flag in flags),
        '    "$@"',
    ]
    return "\n".join(lines) + "\n"
