"""An exported repository in the format of a platform: a folder that is deployed as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from optimizer.errors import storage_errors
from optimizer.export.deployment import Deployment
from optimizer.export.monitoring.rules import monitoring_files
from optimizer.export.platforms.compose import compose_files
from optimizer.export.platforms.kserve import kserve_files
from optimizer.export.platforms.kubernetes import kubernetes_files
from optimizer.export.platforms.model_archive import write_model_archive
from optimizer.export.platforms.readme import readme
from optimizer.export.platforms.sagemaker import (
    MODEL_ARCHIVE,
    refuse_what_it_cannot_host,
    sagemaker_files,
)

Writer = Callable[[Deployment, Path, Path], None]
"""Writes a format of a model repository into an empty folder; moves the repository there where the
format has it."""

_REPOSITORY = "repository"


def _with_repository(name: str, files: Callable[[Deployment], Mapping[str, str]]) -> Writer:
    def write(deployment: Deployment, repository: Path, target: Path) -> None:
        with storage_errors(target):
            repository.rename(target / _REPOSITORY)
        own = {**files(deployment), **monitoring_files(deployment)}
        _write(target, {**own, "README.md": readme(name, deployment)})

    return write


def _sagemaker(deployment: Deployment, repository: Path, target: Path) -> None:
    """Raises UsageError for what SageMaker cannot host."""
    models = [model.name for model in deployment.models]
    refuse_what_it_cannot_host(models, deployment.price.instance_type)
    with storage_errors(target):
        repository.rename(target / _REPOSITORY)
    write_model_archive(target / _REPOSITORY, models, target / MODEL_ARCHIVE)
    _write(target, {**sagemaker_files(deployment), "README.md": readme("sagemaker", deployment)})


def _monitoring(deployment: Deployment, _: Path, target: Path) -> None:
    _write(target, {**monitoring_files(deployment), "README.md": readme("monitoring", deployment)})


def _write(target: Path, files: Mapping[str, str]) -> None:
    with storage_errors(target):
        for name, text in files.items():
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


PLATFORMS: Mapping[str, Writer] = {
    "sagemaker": _sagemaker,
    "kubernetes": _with_repository("kubernetes", kubernetes_files),
    "kserve": _with_repository("kserve", kserve_files),
    "compose": _with_repository("compose", compose_files),
    "monitoring": _monitoring,
}
"""By the name of the format."""
