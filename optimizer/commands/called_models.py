"""Read what the repository of a deployed model leaves to a server: its calls and configurations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from optimizer.commands.code_consent import log_code
from optimizer.commands.completed_source import complete_source, completing_server
from optimizer.commands.hosts import EMBEDDED_BACKEND, Needs, require_server
from optimizer.configuration.hardware import Gpu
from optimizer.configuration.hosting import Host, RemoteHost
from optimizer.errors import RequirementError, TrialFailure, UsageError
from optimizer.files.request_payloads import rows_of_file
from optimizer.files.untrusted import is_safe_name
from optimizer.machine.slots import local_slot
from optimizer.triton.deployed_config import ensemble_steps, model_folders, read_if_present
from optimizer.triton.deployed_loading import loaded_as_it_is
from optimizer.triton.observed_calls import attributed_calls, count_calls
from optimizer.workload.model_spec import ModelSpec, RepositorySource

_REQUESTS = 8
"""Requests whose calls are counted: a model may call others for some of them only."""

_SEED = 7


def source_from_server(model: ModelSpec, host: Host, gpus: tuple[Gpu, ...]) -> RepositorySource:
    """Return the source of a deployed model, with calls and configurations complete.

    Args:
        host: where a server is started if something is left to it; nothing is left running.
        gpus: of the server.

    Raises:
        UsageError: when a file is no configuration, or the server does not complete it either.
        RequirementError: when no server could be asked, with the reason.
    """
    source = model.source
    assert isinstance(source, RepositorySource), "the model is deployed"
    if source.calls is None:
        source = _with_calls(model, source, host, gpus)
    return complete_source(model.name, source, host, gpus)


def _with_calls(
    model: ModelSpec, source: RepositorySource, host: Host, gpus: tuple[Gpu, ...]
) -> RepositorySource:
    """Return a source with the calls that a few requests show, all models of its repository loaded.

    Raises:
        UsageError: where several models can have made the calls.
        RequirementError: where no server could be asked, or the requests are not answered.
    """
    if isinstance(host, RemoteHost):
        raise UsageError(
            f"models.{model.name}.source.calls: auto needs a server that is started for it, and "
            "server.launcher is remote: list the models that it calls"
        )
    requests = model.payloads.sample(
        _REQUESTS, np.random.default_rng(_SEED), rows=rows_of_file(model.payloads)
    )
    slot, failures = local_slot(tuple(gpu.uuid for gpu in gpus)), dict[str, str]()
    try:
        require_server(host, Needs((source.model,), (), (EMBEDDED_BACKEND,)), slot)
        with completing_server(host, source.repository, slot) as (server, repository):
            configs = {}
            for name in _in_load_order(source):
                try:
                    folder = source.step(name).folder
                    log_code(folder)
                    configs[name] = loaded_as_it_is(name, folder, server, repository)
                except TrialFailure as error:
                    failures[name] = str(error)
            if source.model in failures:
                raise RequirementError(failures[source.model])
            others = [name for name in configs if name != source.model]
            counts = count_calls(server.control, source.model, others, requests)
    except (RequirementError, TrialFailure) as error:
        lacks = f"{source.folder}: the models that it calls could not be observed: {error}"
        not_loaded = "".join(
            f"\n  {name} was not loaded: {reason}"
            for name, reason in failures.items()
            if name != source.model
        )
        raise RequirementError(lacks + not_loaded, "list them under source.calls") from error
    return replace(source, calls=attributed_calls(source, configs, counts))


def _in_load_order(source: RepositorySource) -> Iterator[str]:
    """Yield the models of a repository, ensembles after others, and the source itself last.

    Triton loads the steps of an ensemble with it, again where they are loaded already.
    """
    names = [
        folder.name
        for folder in model_folders(source.repository)
        if is_safe_name(folder.name) and folder.name != source.model
    ]
    yield from sorted(names, key=lambda name: _is_ensemble(source.step(name)))
    yield source.model


def _is_ensemble(source: RepositorySource) -> bool:
    try:
        return bool(ensemble_steps(read_if_present(source.folder)[1]))
    except UsageError:
        return False
