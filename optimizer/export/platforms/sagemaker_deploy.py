"""Deploys the files beside this one to SageMaker: model, endpoint and autoscaling.

    python deploy.py --region R --bucket B --role ARN --image URI            prints all calls
    python deploy.py --region R --bucket B --role ARN --image URI --apply    makes them

--apply needs boto3. The names of model and endpoint configuration contain a digest of everything
deployed: archive, image, role, environment and instances. What exists under the same name is kept,
so the script can be run again; an endpoint with another configuration is updated without downtime.
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


class UpdateRolledBack(Exception):
    """SageMaker has rolled an update back."""


def calls(folder: Path, values: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the parameters of every call by its name. Raises KeyError for a missing value.

    Args:
        values: Image, RoleArn, and ModelDataUrl, which contains a digest of the archive.
    """
    names = (
        *("create-model", "create-endpoint-config", "create-endpoint"),
        *("register-scalable-target", "put-scaling-policy"),
    )
    raw = {name: json.loads((folder / f"{name}.json").read_text()) for name in names}
    filled = {**values, "Release": _release(raw, values)}
    return {name: _filled(call, filled) for name, call in raw.items()}


def _release(raw: Mapping[str, Any], values: Mapping[str, str]) -> str:
    """Return 8 hex digits of the digest of model and endpoint configuration."""
    unnamed = {**values, "Release": ""}
    deployed = [_filled(raw[name], unnamed) for name in ("create-model", "create-endpoint-config")]
    return hashlib.sha256(json.dumps(deployed, sort_keys=True).encode()).hexdigest()[:8]


def _filled(value: Any, values: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(item, values) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, values) for item in value]
    return string.Template(value).substitute(values) if isinstance(value, str) else value


def deploy(
    folder: Path,
    planned: Mapping[str, Mapping[str, Any]],
    archive: tuple[str, str],
    clients: Mapping[str, Any],
) -> None:
    """Create what does not exist yet, and wait for the endpoint to serve.

    Args:
        planned: parameters of every call, from `calls`.
        archive: bucket and key.
        clients: of boto3, by service: s3, sagemaker, application-autoscaling.

    Raises:
        UpdateRolledBack: when the endpoint still serves its previous configuration.
    """
    sagemaker, scaling = clients["sagemaker"], clients["application-autoscaling"]
    clients["s3"].upload_file(str(folder / _ARCHIVE), *archive)
    model, config = planned["create-model"], planned["create-endpoint-config"]
    if not _exists(sagemaker.describe_model, ModelName=model["ModelName"]):
        sagemaker.create_model(**model)
    name = config["EndpointConfigName"]
    if not _exists(sagemaker.describe_endpoint_config, EndpointConfigName=name):
        sagemaker.create_endpoint_config(**config)
    _put_endpoint(planned, sagemaker, scaling)
    scaling.register_scalable_target(**planned["register-scalable-target"])
    scaling.put_scaling_policy(**planned["put-scaling-policy"])


def _put_endpoint(planned: Mapping[str, Mapping[str, Any]], sagemaker: Any, scaling: Any) -> None:
    """Create or update the endpoint, and wait until it serves."""
    endpoint = planned["create-endpoint"]
    name = endpoint["EndpointName"]
    if not _exists(sagemaker.describe_endpoint, EndpointName=name):
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
    """Update the endpoint; instances that autoscaling has added stay unless their type changes."""
    endpoint, target = planned["create-endpoint"], planned["register-scalable-target"]
    [new] = planned["create-endpoint-config"]["ProductionVariants"]
    config = sagemaker.describe_endpoint_config(EndpointConfigName=running["EndpointConfigName"])
    old = _variant(new["VariantName"], config)
    count = _variant(new["VariantName"], running).get("DesiredInstanceCount", 0)
    same_type = old.get("InstanceType") == new["InstanceType"]
    grown = same_type and count > new["InitialInstanceCount"]
    with nullcontext() if same_type else _without_scaling(target, scaling):
        sagemaker.update_endpoint(**endpoint, RetainAllVariantProperties=grown)
        _wait(endpoint, sagemaker)


def _variant(name: str, description: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a variant by name; empty if there is none."""
    variants = description.get("ProductionVariants", [])
    return next((each for each in variants if each["VariantName"] == name), {})


def _wait(endpoint: Mapping[str, Any], sagemaker: Any) -> None:
    """Wait until the endpoint serves, which it also does after an update that failed."""
    name, expected = endpoint["EndpointName"], endpoint["EndpointConfigName"]
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=name)
    serving = sagemaker.describe_endpoint(EndpointName=name)
    if serving["EndpointConfigName"] != expected:
        reason = serving.get("FailureReason", "see the endpoint's log")
        raise UpdateRolledBack(
            f"{name} serves {serving['EndpointConfigName']}, not {expected}: {reason}"
        )


@contextmanager
def _without_scaling(target: Mapping[str, Any], scaling: Any) -> Iterator[None]:
    """Remove autoscaling, which SageMaker wants for another instance type; restore it on error."""
    variant = {key: target[key] for key in ("ServiceNamespace", "ScalableDimension")}
    resource = target["ResourceId"]
    targets = scaling.describe_scalable_targets(**variant, ResourceIds=[resource])[
        "ScalableTargets"
    ]
    # Policies are deleted with their target.
    policies = scaling.describe_scaling_policies(**variant, ResourceId=resource)["ScalingPolicies"]
    for _ in targets:
        scaling.deregister_scalable_target(**variant, ResourceId=resource)
    try:
        yield
    except BaseException:
        for each in targets:
            scaling.register_scalable_target(
                **variant,
                ResourceId=resource,
                **{key: each[key] for key in ("MinCapacity", "MaxCapacity")},
            )
        for each in policies:
            read_only = ("PolicyARN", "Alarms", "CreationTime")
            scaling.put_scaling_policy(**{k: v for k, v in each.items() if k not in read_only})
        raise


def _exists(describe: Callable[..., object], **name: str) -> bool:
    from botocore.exceptions import ClientError

    try:
        describe(**name)
    except ClientError as error:
        # SageMaker's reply for a name that does not exist.
        if error.response["Error"]["Code"] == "ValidationException":
            return False
        raise
    return True


def main(arguments: Sequence[str]) -> int:
    """Run the script and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--region", required=True)
    parser.add_argument("--bucket", required=True, help=f"of {_ARCHIVE}")
    parser.add_argument("--prefix", default="triton", help="prefix of the key in the bucket")
    parser.add_argument("--role", required=True, help="ARN of SageMaker's execution role")
    parser.add_argument("--image", required=True, help="URI of the image; never reuse it")
    parser.add_argument("--apply", action="store_true", help="make the calls")
    options = parser.parse_args(arguments)
    folder = Path(__file__).parent
    name = json.loads((folder / "create-endpoint.json").read_text())["EndpointName"]
    bucket, key = options.bucket, f"{options.prefix}/{name}/{_digest(folder / _ARCHIVE)}/{_ARCHIVE}"
    values = {
        "Image": options.image,
        "RoleArn": options.role,
        "ModelDataUrl": f"s3://{bucket}/{key}",
    }
    planned = calls(folder, values)
    if not options.apply:
        print(f"upload {_ARCHIVE} to {values['ModelDataUrl']}")
        for name, parameters in planned.items():
            print(f"{name}\n{json.dumps(parameters, indent=2)}")
        print("dry run: --apply makes these calls")
        return 0
    import boto3

    services = ("s3", "sagemaker", "application-autoscaling")
    clients = {name: boto3.client(name, region_name=options.region) for name in services}
    try:
        deploy(folder, planned, (bucket, key), clients)
    except UpdateRolledBack as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{name} is in service, with {planned['create-endpoint']['EndpointConfigName']}")
    return 0


def _digest(archive: Path) -> str:
    """Return 16 hex digits of the SHA-256."""
    digest = hashlib.sha256()
    with archive.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
