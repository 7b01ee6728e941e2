"""SageMaker: what it can host, and what the templates of its calls and its stack need.

What belongs to an account stays a placeholder: `${Image}`, `${ModelDataUrl}` and `${RoleArn}` are
parameters of the CloudFormation template and filled in by deploy.py, and so is `${Release}`, the
digest in the names that follow from them.
"""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from optimizer.configuration.releases import tag_of
from optimizer.errors import UsageError, storage_errors
from optimizer.export.bundle.manifest import EXAMPLES, GRAPH, RECIPE
from optimizer.export.deployment import Deployment, startup_seconds
from optimizer.export.monitoring.alerts import FAILURE_LIMIT
from optimizer.export.platforms import sagemaker_deploy
from optimizer.workload.data_types import NUMPY_TYPES

MODEL_ARCHIVE = "model.tar.gz"

_NOT_SERVED = {GRAPH, RECIPE, EXAMPLES}
"""Files in a model's folder that verify it or rebuild its engine."""

_CUDA_13_RELEASE = (25, 8)
"""The first release of Triton whose image holds CUDA 13."""

_AMI_FOR_CUDA_13 = "al2023-ami-sagemaker-inference-gpu-4-1"
_FAMILIES_WITH_OLD_DRIVERS = ("ml.g4dn.", "ml.g5.")

_DOWNLOAD_SECONDS = 1800
_MAX_STARTUP_SECONDS = 3600

_NUMPY_TYPES = {
    **{name: f"np.{dtype.name}" for name, dtype in NUMPY_TYPES.items()},
    "BOOL": "np.bool_",
    "BYTES": "np.object_",
}


def check_hosting(models: Sequence[str], instance_type: str) -> None:
    """Raise UsageError for several models, or an instance type that SageMaker does not have."""
    if len(models) != 1:
        raise UsageError(
            "a SageMaker endpoint serves one model, and this server has"
            f" {', '.join(models)}: export to another format"
        )
    if not instance_type.startswith("ml."):
        raise UsageError(
            f"SageMaker's instance types begin with 'ml.', the study's is {instance_type}:"
            " set price.instance_type in the study's space file to the type that serves"
        )


def template_values(deployment: Deployment) -> dict[str, Any]:
    """Return what SageMaker's templates need beside the values of all platforms."""
    return {
        "release": f"{deployment.name}-${{Release}}",
        "variant": _variant(deployment),
        "invocations_per_minute": round(60 * deployment.target_per_second, 1),
        "failure_limit": FAILURE_LIMIT,
        "numpy_types": _NUMPY_TYPES,
    }


def _variant(deployment: Deployment) -> dict[str, str | float]:
    """Return the production variant of the endpoint configuration, without its model."""
    variant: dict[str, str | float] = {
        "VariantName": "AllTraffic",
        "InstanceType": deployment.price.instance_type,
        "InitialInstanceCount": deployment.replicas,
        "InitialVariantWeight": 1.0,
        "ModelDataDownloadTimeoutInSeconds": _DOWNLOAD_SECONDS,
        "ContainerStartupHealthCheckTimeoutInSeconds": min(
            startup_seconds(deployment), _MAX_STARTUP_SECONDS
        ),
    }
    if _needs_newer_driver(deployment):
        variant["InferenceAmiVersion"] = _AMI_FOR_CUDA_13
    return variant


def _needs_newer_driver(deployment: Deployment) -> bool:
    if not deployment.image.carries_server or not deployment.resources.gpus:
        return False
    year, month = map(int, tag_of(deployment.image.base).split("."))
    old_driver = deployment.price.instance_type.startswith(_FAMILIES_WITH_OLD_DRIVERS)
    return old_driver and (year, month) >= _CUDA_13_RELEASE


def deploy_script(deployment: Deployment) -> dict[str, str]:
    """Return the script that makes the calls, by its path."""
    del deployment
    return {"deploy.py": Path(sagemaker_deploy.__file__).read_text()}


def write_model_archive(repository: Path, models: Sequence[str], target: Path) -> None:
    """Pack the models of a repository.

    The same files always give the same bytes: no time, owner or path of this machine gets into it.

    Raises:
        StorageError: when it cannot be written.
    """
    with (
        storage_errors(target),
        target.open("wb") as written,
        gzip.GzipFile("", "wb", fileobj=written, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for model in sorted(models):
            for file in _served_files(repository / model):
                _add(archive, file, file.relative_to(repository).as_posix())


def _served_files(model: Path) -> Iterator[Path]:
    """Yield the model's folder and everything in it that Triton reads, sorted by path."""
    yield model
    for path in sorted(model.iterdir()):
        if path.name not in _NOT_SERVED:
            yield path
            yield from sorted(path.rglob("*"))


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    entry = tarfile.TarInfo(name)
    if path.is_dir():
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(entry)
        return
    entry.size, entry.mode = path.stat().st_size, 0o644
    with path.open("rb") as content:
        archive.addfile(entry, content)
