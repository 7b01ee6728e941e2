"""The text of a space file for a model of an existing Triton repository."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from tritonclient.grpc import model_config_pb2

from optimizer.configuration.deployed_settings import DeployedSettings
from optimizer.configuration.hardware import Hardware
from optimizer.configuration.parameter_definition import Value
from optimizer.errors import UsageError
from optimizer.export.rendering import render
from optimizer.triton.deployed_config import CONFIG_FILE, read_source
from optimizer.triton.deployed_pipeline import read_settings
from optimizer.triton.model_config import data_type_in
from optimizer.workload.data_types import DataType
from optimizer.workload.model_spec import RepositorySource
from optimizer.workload.streams import LENGTH

_PLACEHOLDER_SIZE = 64
"""Of free dimensions: small, and not too small for the strides of an image model."""

_QUEUE_DELAYS = (0, 500, 2000)
_INSTANCES_ON_GPUS = (1, 2, 3, 4)


@dataclass(frozen=True)
class _Input:
    """An input as the template writes it; `shape` has sizes and names of free dimensions."""

    name: str
    data_type: DataType
    shape: tuple[str, ...]


@dataclass(frozen=True)
class ObservedTraffic:
    """The traffic of production, as a space file states it.

    Attributes:
        arrivals: name of the process, or a mapping with a trace, in YAML.
        instance_type: of a replica, in the price list; None where it was not given.
    """

    arrivals: str
    batch_size: int
    demand_per_second: float
    limit_ms: float
    instance_type: str | None


def space_text(
    source: RepositorySource,
    repository: str,
    hardware: Hardware,
    file: str = "space.yaml",
    traffic: ObservedTraffic | None = None,
) -> str:
    """Return a space file with placeholders for what only a person knows.

    Args:
        source: the model, its configuration complete.
        repository: path of the repository as the file names it.
        hardware: hardware of this machine, for which parameters are proposed.
        file: name of the space file, for the comments in it.
        traffic: of production, in the place of placeholders.

    Raises:
        UsageError: for a configuration that is incomplete, or a model that cannot be tuned.
    """
    settings, config = read_settings(source), read_source(source)
    names = _dimension_names(config.input)
    try:
        inputs = [(each.optional, _input(each, names)) for each in config.input]
    except ValueError as error:
        raise _incomplete(source, f"input {error}") from error
    if not inputs:
        raise _incomplete(source, "it has no inputs")
    key = _key(source.model)
    models = _executing(key, source, settings)
    on_gpus = bool(hardware.gpus) and any(_may_use_gpus(config) for _, config in models.values())
    backends = {own.backend for own, _ in models.values()}
    # A request needs at least one input.
    left_out = [own for optional, own in inputs if optional]
    sent = [own for optional, own in inputs if not optional] or left_out
    values = {
        "key": key,
        "file": file,
        "traffic": traffic,
        "launcher": "embedded" if backends == {"python"} and not on_gpus else "docker",
        "gpus": on_gpus,
        "repository": repository,
        "model": source.model,
        "calls": _calls_text(source),
        "batched": settings.batched,
        "instance_groups": settings.instance_groups,
        "inputs": sent,
        "optional": [own for own in left_out if own not in sent],
        "dimensions": [d for d in names.values() if any(d in own.shape for own in sent)],
        "size": _PLACEHOLDER_SIZE,
        "parameters": _parameters_of_steps(models, hardware, on_gpus=on_gpus)
        if settings.steps
        else _parameters(settings, hardware, on_gpus=on_gpus),
    }
    return render("space/space.yaml.jinja", values)


_OF_STEPS = ("batching", "instance_count")
"""Parameters that are proposed for each step; more would make too many combinations."""


def _executing(
    name: str, source: RepositorySource, settings: DeployedSettings
) -> dict[str, tuple[DeployedSettings, model_config_pb2.ModelConfig]]:
    """Return the models that execute the requests to a model, each after its steps.

    Args:
        name: of the model in the space file; steps have the names of the repository.
    """
    models: dict[str, tuple[DeployedSettings, model_config_pb2.ModelConfig]] = {}
    for each in settings.step_names:
        step = source.step(each)
        models |= _executing(each, step, read_settings(step))
    if not settings.ensemble:
        models[name] = settings, read_source(source)
    return models


def _calls_text(source: RepositorySource) -> str:
    """Return the calls of models by their own code as the file states them; empty without any."""
    if source.calls is None:
        return "auto"
    by_caller = {
        caller: "[" + ", ".join(json.dumps(call.model) for call in own) + "]"
        for caller, own in source.calls
    }
    if [*by_caller] == [source.model]:
        return by_caller[source.model]
    listed = ", ".join(f"{json.dumps(caller)}: {own}" for caller, own in by_caller.items())
    return f"{{{listed}}}" if listed else ""


def _incomplete(source: RepositorySource, rule: str) -> UsageError:
    return UsageError(
        f"{source.folder / CONFIG_FILE}: {rule}: write the configuration that the server has "
        "completed into it; GET v2/models/MODEL/config of a running server returns it"
    )


def _key(model: str) -> str:
    """Return a name for the study and the model in the space file, which allow fewer letters."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", model).strip("-_")[:64] or "model"


def _may_use_gpus(config: model_config_pb2.ModelConfig) -> bool:
    on_cpu = model_config_pb2.ModelInstanceGroup.KIND_CPU
    kinds = [group.kind for group in config.instance_group]
    return not kinds or any(kind != on_cpu for kind in kinds)


_Axis = tuple[tuple[int, ...], int]
"""The `dims` of inputs and the position of a free dimension in them."""


def _dimension_names(inputs: Sequence[model_config_pb2.ModelInput]) -> Mapping[_Axis, str]:
    """Return the names of the free dimensions; inputs with the same dims share theirs."""
    names: dict[_Axis, str] = {}
    for each in inputs:
        dims = tuple(each.dims)
        for axis in (n for n, size in enumerate(dims) if size == -1):
            if (dims, axis) not in names:
                names[dims, axis] = _unused(each.name, axis, {LENGTH, *names.values()})
    return names


def _unused(tensor: str, axis: int, taken: set[str]) -> str:
    base = re.sub(r"[^A-Za-z0-9_]", "_", tensor)[:32]
    name = f"{base if base[:1].isalpha() else f'_{base}'}_{axis}"
    while name in taken:
        name += "_"
    return name


def _input(tensor: model_config_pb2.ModelInput, names: Mapping[_Axis, str]) -> _Input:
    dims = tuple(tensor.dims)
    shape = tuple(names.get((dims, axis), str(size)) for axis, size in enumerate(dims))
    return _Input(tensor.name, data_type_in(tensor), shape)


def _parameters(
    settings: DeployedSettings, hardware: Hardware, *, on_gpus: bool
) -> dict[str, Sequence[Value]]:
    """Return the values of the parameters that are worth a search on this machine."""
    parameters: dict[str, Sequence[Value]] = {}
    largest = cast(int, settings.values["max_batch_size"])
    if largest > 1:
        parameters["batching"] = (True, False)
        parameters["max_batch_size"] = tuple(_powers_of_two_to(largest))[1:][-4:]
        parameters["max_queue_delay_microseconds"] = _QUEUE_DELAYS
    if settings.instance_groups <= 1:
        counts = _INSTANCES_ON_GPUS if on_gpus else tuple(_powers_of_two_to(hardware.cores))
        parameters["instance_count"] = counts
    return parameters


def _parameters_of_steps(
    models: Mapping[str, tuple[DeployedSettings, object]], hardware: Hardware, *, on_gpus: bool
) -> dict[str, Sequence[Value]]:
    return {
        f"{name}.{parameter}": values
        for name, (own, _) in models.items()
        for parameter, values in _parameters(own, hardware, on_gpus=on_gpus).items()
        if parameter in _OF_STEPS
    }


def _powers_of_two_to(largest: int) -> Iterator[int]:
    """Yield 1, 2, 4 and so on below `largest`, and `largest` itself."""
    power = 1
    while power < largest:
        yield power
        power *= 2
    yield largest
