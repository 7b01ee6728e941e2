"""Puts what lies beside this file on SageMaker: model, endpoint and autoscaling.

    python deploy.py --region R --bucket B --role ARN --image URI            says what it would do
    python deploy.py --region R --bucket B --role ARN --image URI --apply    does it

Needs boto3 for --apply. Model and endpoint configuration are named after all that is deployed:
archive, image, role, environment and instances. What is there already under the same name is left
as it is, so that this can be started again; an endpoint that runs with another is updated, without
a gap.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import string
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

_ARCHIVE = "model.tar.gz"


class WentBack(Exception):
    """SageMaker ended an update by going back to what ran before."""


def calls(folder: Path, values: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The parameters of every call by its name, filled in. Raises KeyError for a missing value.

    Args:
        values: Image, RoleArn, and ModelDataUrl, which names the content of the archive.
    """
    names = (
        *("create-model", "create-endpoint-config", "create-endpoint"),
        *("register-scalable-target", "put-scaling-policy"),
    )
    raw = {name: json.loads((folder / f"{name}.json").read_text()) for name in names}
    filled = {**values, "Release": _release(raw, values)}
    return {name: _filled(call, filled) for name, call in raw.items()}


def _release(raw: Mapping[str, Any], values: Mapping[str, str]) -> str:
    """8 hex digits of everything that an instance of the endpoint is made from."""
    unnamed = {**values, "Release": ""}
    made = [_filled(raw[name], unnamed) for name in ("create-model", "create-endpoint-config")]
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:8]


def _filled(value: Any, values: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(item, values) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, values) for item in value]
    return string.Template(value).substitute(values) if isinstance(value, str) else value


def deploy(
    folder: Path,
    planned: Mapping[str, Mapping[str, Any]],
    place: tuple[str, str],
    clients: Mapping[str, Any],
) -> None:
    """Make everything that is not there yet, and wait for the endpoint to serve.

    Args:
        planned: see `calls`.
        place: bucket and key of the archive.
        clients: of boto3, by service: s3, sagemaker, application-autoscaling.

    Raises:
        WentBack: when the endpoint serves what it served before.
    """
    sagemaker, scaling = clients["sagemaker"], clients["application-autoscaling"]
    clients["s3"].upload_file(str(folder / _ARCHIVE), *place)
    model, config = planned["create-model"], planned["create-endpoint-config"]
    if not _is_there(sagemaker.describe_model, ModelName=model["ModelName"]):
        sagemaker.create_model(**model)
    name = config["EndpointConfigName"]
    if not _is_there(sagemaker.describe_endpoint_config, EndpointConfigName=name):
        sagemaker.create_endpoint_config(**config)
    _put_endpoint(planned, sagemaker, scaling)
    scaling.register_scalable_target(**planned["register-scalable-target"])
    scaling.put_scaling_policy(**planned["put-scaling-policy"])


def _put_endpoint(planned: Mapping[str, Mapping[str, Any]], sagemaker: Any, scaling: Any) -> None:
    """Create the endpoint, or update the one that runs; wait until it serves."""
    endpoint = planned["create-endpoint"]
    name = endpoint["EndpointName"]
    if not _is_there(sagemaker.describe_endpoint, EndpointName=name):
        sagemaker.create_endpoint(**endpoint)
    else:
        running = sagemaker.describe_endpoint(EndpointName=name)
        if running["EndpointConfigName"] != endpoint["EndpointConfigName"]:
            _update(planned, running, sagemaker, scaling)
            return
    _wait(endpoint, sagemaker)


def _update(
    planned: Mapping[str, Mapping[str, Any]],
    running: Mapping[str, Any],
    sagemaker: Any,
    scaling: Any,
) -> None:
    """Instances that autoscaling has added are kept, unless they become others by their type."""
    endpoint, target = planned["create-endpoint"], planned["register-scalable-target"]
    [new] = planned["create-endpoint-config"]["ProductionVariants"]
    config = sagemaker.describe_endpoint_config(EndpointConfigName=running["EndpointConfigName"])
    old = _of_variant(new["VariantName"], config)
    counted = _of_variant(new["VariantName"], running).get("DesiredInstanceCount", 0)
    same_type = old.get("InstanceType") == new["InstanceType"]
    grown = same_type and counted > new["InitialInstanceCount"]
    with nullcontext() if same_type else _without_scaling(target, scaling):
        sagemaker.update_endpoint(**endpoint, RetainAllVariantProperties=grown)
        _wait(endpoint, sagemaker)


def _of_variant(name: str, described: Mapping[str, Any]) -> Mapping[str, Any]:
    """Empty where there is none of this name."""
    variants = described.get("ProductionVariants", [])
    return next((each for each in variants if each["VariantName"] == name), {})


def _wait(endpoint: Mapping[str, Any], sagemaker: Any) -> None:
    """Until it serves what was asked for: an update that fails ends in service too."""
    name, wanted = endpoint["EndpointName"], endpoint["EndpointConfigName"]
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=name)
    serving = sagemaker.describe_endpoint(EndpointName=name)
    if serving["EndpointConfigName"] != wanted:
        reason = serving.get("FailureReason", "see the endpoint's log")
        raise WentBack(f"{name} serves {serving['EndpointConfigName']}, not {wanted}: {reason}")


@contextmanager
def _without_scaling(target: Mapping[str, Any], scaling: Any) -> Iterator[None]:
    """SageMaker refuses another instance type while a variant scales; a failure puts that back."""
    where = {key: target[key] for key in ("ServiceNamespace", "ScalableDimension")}
    resource = target["ResourceId"]
    targets = scaling.describe_scalable_targets(**where, ResourceIds=[resource])["ScalableTargets"]
    # Which end with their target.
    policies = scaling.describe_scaling_policies(**where, ResourceId=resource)["ScalingPolicies"]
    for _ in targets:
        scaling.deregister_scalable_target(**where, ResourceId=resource)
    try:
        yield
    except BaseException:
        for each in targets:
            scaling.register_scalable_target(
                **where,
                ResourceId=resource,
                **{key: each[key] for key in ("MinCapacity", "MaxCapacity")},
            )
        for each in policies:
            told = ("PolicyARN", "Alarms", "CreationTime")
            scaling.put_scaling_policy(**{k: v for k, v in each.items() if k not in told})
        raise


def _is_there(describe: Callable[..., object], **name: str) -> bool:
    from botocore.exceptions import ClientError

    try:
        describe(**name)
    except ClientError as error:
        # SageMaker's answer for what it does not know.
        if error.response["Error"]["Code"] == "ValidationException":
            return False
        raise
    return True


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--region", required=True)
    parser.add_argument("--bucket", required=True, help=f"for {_ARCHIVE}")
    parser.add_argument("--prefix", default="triton", help="of the key in the bucket")
    parser.add_argument("--role", required=True, help="ARN of the role that SageMaker takes on")
    parser.add_argument("--image", required=True, help="URI of the image, which no other ever gets")
    parser.add_argument("--apply", action="store_true", help="do it")
    given = parser.parse_args(arguments)
    folder = Path(__file__).parent
    name = json.loads((folder / "create-endpoint.json").read_text())["EndpointName"]
    bucket, key = given.bucket, f"{given.prefix}/{name}/{_digest(folder / _ARCHIVE)}/{_ARCHIVE}"
    values = {
        "Image": given.image,
        "RoleArn": given.role,
        "ModelDataUrl": f"s3://{bucket}/{key}",
    }
    planned = calls(folder, values)
    if not given.apply:
        print(f"upload {_ARCHIVE} to {values['ModelDataUrl']}")
        for name, parameters in planned.items():
            print(f"{name}\n{json.dumps(parameters, indent=2)}")
        print("nothing was done: --apply does it")
        return 0
    import boto3

    services = ("s3", "sagemaker", "application-autoscaling")
    clients = {name: boto3.client(name, region_name=given.region) for name in services}
    try:
        deploy(folder, planned, (bucket, key), clients)
    except WentBack as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{name} is in service, with {planned['create-endpoint']['EndpointConfigName']}")
    return 0


def _digest(archive: Path) -> str:
    """16 hex digits of its SHA-256."""
    found = hashlib.sha256()
    with archive.open("rb") as file:
        while block := file.read(2**20):
            found.update(block)
    return found.hexdigest()[:16]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
