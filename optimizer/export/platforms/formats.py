"""Formats for platforms: each is a folder of templates and one line of `PLATFORMS`.

A new format, such as one for Nomad, is `templates/nomad/`, whose files have the paths and names
that they are exported under (and `.jinja` behind them), and

    Platform("nomad"),

The templates are filled in with `server.template_values`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.errors import storage_errors
from optimizer.export.deployment import Deployment
from optimizer.export.monitoring.rules import monitoring_files
from optimizer.export.platforms import sagemaker
from optimizer.export.platforms.server import template_values
from optimizer.export.rendering import render_folder
from optimizer.triton.deployed_config import CONFIG_FILE


def _no_values(deployment: Deployment) -> Mapping[str, Any]:
    del deployment
    return {}


def _hosts_everything(models: Sequence[str], instance_type: str) -> None:
    del models, instance_type


@dataclass(frozen=True)
class Platform:
    """A format that is written for one platform.

    Attributes:
        name: of the format, and of its folder in `templates/`.
        values: further values for its templates.
        further_files: texts by path, beside those of the templates.
        check: raises UsageError for models or an instance type that the platform cannot host.
        with_repository: whether the model repository is part of the format, as `repository/`.
        pack: adds files that are made from the repository, whose models are given.
    """

    name: str
    values: Callable[[Deployment], Mapping[str, Any]] = _no_values
    further_files: Callable[[Deployment], Mapping[str, str]] = monitoring_files
    check: Callable[[Sequence[str], str], None] = _hosts_everything
    with_repository: bool = True
    pack: Callable[[Path, Sequence[str], Path], None] | None = None

    def files(self, deployment: Deployment) -> dict[str, str]:
        """Return the texts of all files but the repository, by path.

        Raises:
            UsageError: for what the platform cannot host.
        """
        self.check([model.name for model in deployment.models], deployment.price.instance_type)
        values = {**template_values(deployment), **self.values(deployment)}
        return {**render_folder(self.name, values), **self.further_files(deployment)}

    def write(self, deployment: Deployment, repository: Path, target: Path) -> None:
        """Write the format into an empty folder; the repository is moved there.

        Raises:
            UsageError: for what the platform cannot host.
            StorageError: when it cannot be written.
        """
        files = self.files(deployment)
        with storage_errors(target):
            if self.with_repository:
                repository = repository.rename(target / "repository")
            if self.pack is not None:
                models = [config.parent.name for config in repository.glob(f"*/{CONFIG_FILE}")]
                self.pack(repository, models, target)
            for name, text in files.items():
                path = target / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)


PLATFORMS: Mapping[str, Platform] = {
    platform.name: platform
    for platform in (
        Platform(
            "sagemaker",
            values=sagemaker.template_values,
            further_files=sagemaker.deploy_script,
            check=sagemaker.check_hosting,
            pack=lambda repository, models, target: sagemaker.write_model_archive(
                repository, models, target / sagemaker.MODEL_ARCHIVE
            ),
        ),
        Platform(
            "kubernetes",
            values=lambda deployment: {
                "labels": {
                    "app.kubernetes.io/name": "triton",
                    "app.kubernetes.io/instance": deployment.name,
                }
            },
        ),
        # KServe itself puts this label on the pods of a service's predictor.
        Platform(
            "kserve",
            values=lambda deployment: {
                "labels": {"serving.kserve.io/inferenceservice": deployment.name}
            },
        ),
        Platform("compose"),
        Platform("monitoring", with_repository=False),
    )
}
"""By name of the format."""
