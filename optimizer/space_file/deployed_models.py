"""Models of a space file that are deployed already: their sources."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from optimizer.configuration.deployed_settings import DeployedSettings
from optimizer.configuration.hardware import Gpu
from optimizer.configuration.hosting import Host
from optimizer.errors import UsageError
from optimizer.workload.model_spec import ModelSpec, RepositorySource

ReadSettings = Callable[[RepositorySource], DeployedSettings]
"""Reads the settings of a model in a repository. Raises UsageError."""


def no_repository(source: RepositorySource) -> DeployedSettings:
    """Refuse every source."""
    raise UsageError(f"{source.folder}: models of a repository cannot be read here")


CompleteSource = Callable[[ModelSpec, Host, tuple[Gpu, ...]], RepositorySource]
"""Returns a model's source, with what its repository leaves open as the file's server shows it."""


def as_it_is(model: ModelSpec, host: Host, gpus: tuple[Gpu, ...]) -> RepositorySource:
    """Return a source as it is: its repository leaves nothing open."""
    assert isinstance(model.source, RepositorySource), "the model is deployed"
    return model.source


def deployed_sources(
    models: Mapping[str, ModelSpec],
    host: Host,
    gpus: tuple[Gpu, ...],
    complete: CompleteSource,
) -> dict[str, RepositorySource]:
    """Return the sources of the models that are deployed already, by name.

    Args:
        models: of the space file, by name.
        host: of the space file.
        gpus: of the server.
        complete: completes the sources.
    """
    return {
        name: complete(model, host, gpus)
        for name, model in models.items()
        if isinstance(model.source, RepositorySource)
    }
