"""Models of a space file that are deployed already: their sources."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from optimizer.configuration.deployed_settings import DeployedSettings
from optimizer.configuration.hardware import Gpu
from optimizer.configuration.hosting import Host
from optimizer.errors import UsageError
from optimizer.space_file.schema import SpaceSection
from optimizer.workload.model_spec import RepositorySource

ReadSettings = Callable[[RepositorySource], DeployedSettings]
"""Reads the settings of a model in a repository. Raises UsageError."""


def no_repository(source: RepositorySource) -> DeployedSettings:
    """Refuse every source."""
    raise UsageError(f"{source.folder}: models of a repository cannot be read here")


CompleteSource = Callable[[str, RepositorySource, Host, tuple[Gpu, ...]], RepositorySource]
"""Completes the configuration of a model, by its name in the file, on the server of the file."""


def as_it_is(
    model: str, source: RepositorySource, host: Host, gpus: tuple[Gpu, ...]
) -> RepositorySource:
    """Return a source as it is: its configuration is complete."""
    return source


def deployed_sources(
    section: SpaceSection,
    path: Path,
    gpus: tuple[Gpu, ...],
    complete: CompleteSource,
) -> dict[str, RepositorySource]:
    """Return the sources of the models that are deployed already, by name.

    Args:
        section: content of the space file.
        path: of the space file.
        gpus: of the server.
        complete: completes the sources' configurations.
    """
    given = {
        name: model.source.to_value(path.parent)
        for name, model in section.models.items()
        if model.source is not None
    }
    host = section.server.to_value(path.parent)
    return {
        name: complete(name, source, host, gpus)
        for name, source in given.items()
        if isinstance(source, RepositorySource)
    }
