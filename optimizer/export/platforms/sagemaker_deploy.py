"""Puts what lies beside this file on SageMaker: model, endpoint and autoscaling.

    python deploy.py --region R --bucket B --role ARN --image URI            says what it would do
    python deploy.py --region R --bucket B --role ARN --image URI --apply    does it

Needs boto3 for --apply. What is there already under the same name is left as it is, so that it can
be started again; an endpoint that runs is updated, without a gap.
"""

from __future__ import annotations

import argparse
import json
import string
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

_ARCHIVE = "model.tar.gz"


def calls(folder: Path, values: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The parameters of every call by its name, filled in. Raises KeyError for a missing value."""
    names = (
        *("create-model", "create-endpoint-config", "create-endpoint"),
        *("register-scalable-target", "put-scaling-policy"),
    )
    return {
        name: _filled(json.loads((folder / f"{name}.json").read_text()), values) for name in names
    }


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
    """
    sagemaker, scaling = clients["sagemaker"], clients["application-autoscaling"]
    clients["s3"].upload_file(str(folder / _ARCHIVE), *place)
    model, config = planned["create-model"], planned["create-endpoint-config"]
    if not _is_there(sagemaker.describe_model, ModelName=model["ModelName"]):
        sagemaker.create_model(**model)
    name = config["EndpointConfigName"]
    if not _is_there(sagemaker.describe_endpoint_config, EndpointConfigName=name):
        sagemaker.create_endpoint_config(**config)
    target = planned["register-scalable-target"]
    _put_endpoint(planned["create-endpoint"], target, sagemaker, scaling)
    scaling.register_scalable_target(**target)
    scaling.put_scaling_policy(**planned["put-scaling-policy"])


def _put_endpoint(
    endpoint: Mapping[str, Any], target: Mapping[str, Any], sagemaker: Any, scaling: Any
) -> None:
    """Create the endpoint, or update the one that runs; wait until it serves."""
    name = endpoint["EndpointName"]
    if not _is_there(sagemaker.describe_endpoint, EndpointName=name):
        sagemaker.create_endpoint(**endpoint)
    else:
        running = sagemaker.describe_endpoint(EndpointName=name)
        if running["EndpointConfigName"] != endpoint["EndpointConfigName"]:
            _stop_scaling(target, scaling)
            sagemaker.update_endpoint(**endpoint)
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=name)


def _stop_scaling(target: Mapping[str, Any], scaling: Any) -> None:
    """Where the variant scales: an update to another instance type fails then."""
    namespace, resource = target["ServiceNamespace"], target["ResourceId"]
    known = scaling.describe_scalable_targets(ServiceNamespace=namespace, ResourceIds=[resource])
    for each in known["ScalableTargets"]:
        scaling.deregister_scalable_target(
            ServiceNamespace=namespace,
            ResourceId=resource,
            ScalableDimension=each["ScalableDimension"],
        )


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
    parser.add_argument("--image", required=True, help="URI of the image of image/Dockerfile")
    parser.add_argument("--apply", action="store_true", help="do it")
    given = parser.parse_args(arguments)
    folder = Path(__file__).parent
    release = json.loads((folder / "create-model.json").read_text())["ModelName"]
    bucket, key = given.bucket, f"{given.prefix}/{release}/{_ARCHIVE}"
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
    deploy(folder, planned, (bucket, key), clients)
    print(f"{planned['create-endpoint']['EndpointName']} is in service")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
