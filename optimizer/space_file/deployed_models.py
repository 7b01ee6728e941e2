"""Models of a space file that are deployed already: their sources, and what these allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from optimizer.configuration.deployed_settings import DeployedSettings
from optimizer.configuration.hardware import Gpu
from optimizer.configuration.hosting import Host
from optimizer.errors import Mistake, SpaceFileError, UsageError
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
    given = {name: model.source.to_value(path.parent) for name, model in section.models.items()}
    host = section.server.to_value(path.parent)
    return {
        name: complete(name, source, host, gpus)
        for name, source in given.items()
        if isinstance(source, RepositorySource)
    }


def deployed_settings(
    section: SpaceSection,
    path: Path,
    sources: Mapping[str, RepositorySource],
    read_settings: ReadSettings,
) -> dict[str, DeployedSettings]:
    """Return the settings of the models that are deployed already, by name.

    Raises:
        SpaceFileError: with everything that their configurations do not allow.
    """
    deployed = {name: read_settings(source) for name, source in sources.items()}
    mistakes = []
    for name, settings in deployed.items():
        listed = section.parameters.with_those_of(section.models[name].parameters).listed_values()
        mistakes += [
            Mistake(f"parameters.{parameter}", f"{rule} (models.{name})")
            for parameter, rule in settings.mistakes(listed)
        ]
        largest, size = settings.values["max_batch_size"], section.traffic.batch_size
        if cast(int, largest) < size:
            rule = f"must be at most the max_batch_size of models.{name} as deployed, {largest}"
            mistakes.append(Mistake("traffic.batch_size", rule, str(size)))
    if mistakes:
        raise SpaceFileError(path, mistakes)
    return deployed
