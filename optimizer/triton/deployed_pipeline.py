"""The models of existing repositories with the steps that they are composed of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tritonclient.grpc import model_config_pb2

from optimizer.configuration.deployed_settings import DeployedSettings
from optimizer.configuration.model_graph import ComposedModel, Step, in_sequence
from optimizer.errors import UsageError
from optimizer.files.untrusted import is_safe_name
from optimizer.triton.completed_config import left_out
from optimizer.triton.deployed_config import (
    CONFIG_FILE,
    backend_of,
    deployed_values,
    ensemble_steps,
    read_deployed,
    read_if_present,
    read_source,
    refusal_of,
    served_versions,
)
from optimizer.triton.observed_calls import code_calls_others
from optimizer.workload.model_spec import Call, RepositorySource

_Configs = Mapping[str, model_config_pb2.ModelConfig]


def read_settings(source: RepositorySource) -> DeployedSettings:
    """Return what a model's configuration means for the space that is searched.

    Raises:
        UsageError: for a configuration that cannot be read, a version that is not served, and a
            model that cannot be tuned, such as one with a step that is missing, or an ensemble with
            a step that takes other tensors than it gets.
    """
    config, path = read_source(source), source.folder / CONFIG_FILE
    mistakes = [refusal] if (refusal := refusal_of(config)) is not None else []
    if config.HasField("ensemble_scheduling"):
        mistakes += _ensemble_mistakes(source, config)
    mistakes += _call_mistakes(source, config)
    if len(mistakes) == 1:
        raise UsageError(f"{path}: {mistakes[0]}")
    if mistakes:
        raise UsageError("\n  ".join([f"{path}:", *mistakes]))
    served = served_versions(source.folder, config)
    if source.version is not None and source.version not in served:
        listed = ", ".join(map(str, served)) or "none"
        raise UsageError(
            f"source.version: must be one that the model's version_policy serves, got "
            f"{source.version}; of {source.folder} it serves {listed}"
        )
    return DeployedSettings(
        values=deployed_values(config),
        batched=config.max_batch_size > 0,
        instance_groups=len(config.instance_group),
        backend=backend_of(config),
        steps=_steps_of_calls(source.own_calls) or ensemble_steps(config),
        kind="bls" if source.own_calls else "ensemble",
    )


def step_names(source: RepositorySource, config: model_config_pb2.ModelConfig) -> tuple[str, ...]:
    """Return the names of the models that a model is composed of, each once."""
    steps = _steps_of_calls(source.own_calls) or ensemble_steps(config)
    return tuple(dict.fromkeys(step.model for step in steps))


def composing_models(source: RepositorySource) -> Iterator[RepositorySource]:
    """Yield the models that a source is composed of, each after its steps, and the source.

    A step that cannot be read is left out: that is reported with the ensemble's other mistakes.
    """
    return _composing(source, set())


def _composing(source: RepositorySource, names: set[str]) -> Iterator[RepositorySource]:
    names.add(source.model)
    for name in step_names(source, read_if_present(source.folder)[1]):
        step = source.step(name)
        if name in names or not is_safe_name(name) or not step.folder.is_dir():
            continue
        try:
            read_if_present(step.folder)
        except UsageError:
            continue
        yield from _composing(step, names)
    yield source


def _steps_of_calls(calls: Sequence[Call]) -> tuple[Step, ...]:
    """Return calls as steps: one is taken to need the answer to the one before it."""
    steps = in_sequence(call.model for call in calls)
    return tuple(replace(step, calls=call.count) for step, call in zip(steps, calls, strict=True))


def _ensemble_mistakes(
    source: RepositorySource, config: model_config_pb2.ModelConfig
) -> Iterator[str]:
    """Yield why an ensemble cannot be served: a line for each step or tensor, which names it."""
    steps = tuple(dict.fromkeys(step.model for step in ensemble_steps(config)))
    if not steps:
        yield "ensemble_scheduling: an ensemble needs a step"
    configs: dict[str, model_config_pb2.ModelConfig] = {}
    yield from _step_mistakes(source, steps, configs)
    if len(configs) == len(steps):
        yield from _tensor_mistakes(config, configs)
        yield from _batch_mistakes(config, configs)
        yield from _order_mistakes(config)


def _call_mistakes(source: RepositorySource, config: model_config_pb2.ModelConfig) -> Iterator[str]:
    """Yield why a model cannot call others: a line for each of these, which names it."""
    steps = tuple(dict.fromkeys(call.model for call in source.own_calls))
    if steps and config.HasField("ensemble_scheduling"):
        yield "source.calls: must be left out: an ensemble calls what ensemble_scheduling names"
    elif steps and backend_of(config) != "python":
        backend = backend_of(config) or "no backend"
        yield (
            "source.calls: must be left out: only models of the backend python call others, and "
            f"the model names {backend}"
        )
    stated = source.calls is None or source.model in dict(source.calls)
    if not stated and backend_of(config) == "python" and code_calls_others(source.folder):
        yield (
            "source.calls: is required: the model's code calls others (pb_utils.InferenceRequest). "
            f"List them, such as {{{source.model}: [MODEL, MODEL]}}, or [] where it calls none; "
            "auto counts them"
        )
    yield from _step_mistakes(source, steps, {})


def _step_mistakes(
    source: RepositorySource,
    steps: Sequence[str],
    configs: dict[str, model_config_pb2.ModelConfig],
) -> Iterator[str]:
    """Yield why a step cannot be served; add the configuration of each that can to `configs`."""
    for name in steps:
        step = source.step(name)
        path = step.folder / CONFIG_FILE
        try:
            text = step.completed or (read_deployed(step.folder)[0] if path.is_file() else "")
            own = read_source(step) if text else model_config_pb2.ModelConfig()
        except UsageError as error:
            yield f"step {name}: {error}"
            continue
        if (refusal := refusal_of(own)) is not None:
            yield f"step {name}: {refusal}"
        elif not step.folder.is_dir():
            yield f"step {name}: {source.repository} has no model of this name"
        elif not text:
            yield f"step {name}: {path} is missing: write the complete one"
        elif missing := left_out(text):
            yield f"step {name}: {path} leaves out {', '.join(missing)}: write the complete one"
        else:
            configs[name] = own


@dataclass(frozen=True)
class _Tensor:
    """A tensor between the models of an ensemble.

    Attributes:
        shape: with the batch axis, -1 for any size.
        origin: what makes it, for messages.
    """

    data_type: str
    shape: tuple[int, ...]
    origin: str

    @classmethod
    def of(cls, config: model_config_pb2.ModelConfig, tensor: Any, origin: str) -> _Tensor:
        """Return an input or output of a model."""
        name = model_config_pb2.DataType.Name(tensor.data_type).removeprefix("TYPE_")
        batch = (-1,) if config.max_batch_size > 0 else ()
        return cls(name, (*batch, *tensor.dims), origin)

    def fits(self, other: _Tensor) -> bool:
        """Return whether a tensor can be passed on as another."""
        pairs = zip(self.shape, other.shape, strict=False)
        return (
            self.data_type == other.data_type
            and len(self.shape) == len(other.shape)
            and all(-1 in pair or pair[0] == pair[1] for pair in pairs)
        )

    def __str__(self) -> str:
        return f"{self.data_type} {list(self.shape)}"


def _tensor_mistakes(config: model_config_pb2.ModelConfig, configs: _Configs) -> Iterator[str]:
    """Yield each tensor that is missing, or is another than what it is passed on as."""
    tensors = {each.name: _Tensor.of(config, each, "the ensemble") for each in config.input}
    for step in config.ensemble_scheduling.step:
        own = configs[step.model_name]
        outputs = {each.name: each for each in own.output}
        for name, tensor in step.output_map.items():
            if name not in outputs:
                yield f"step {step.model_name}: has no output {name}, only {', '.join(outputs)}"
                continue
            origin = f"the step {step.model_name}"
            tensors[tensor] = _Tensor.of(own, outputs[name], origin)
    for step in config.ensemble_scheduling.step:
        yield from _input_mistakes(step, configs[step.model_name], tensors)
    for each in config.output:
        made, wanted = tensors.get(each.name), _Tensor.of(config, each, "the ensemble")
        if made is None:
            yield f"output {each.name}: no step makes it"
        elif not made.fits(wanted):
            yield f"{made.origin} makes {each.name} as {made}, and the ensemble says {wanted}"


def _input_mistakes(
    step: Any, config: model_config_pb2.ModelConfig, tensors: Mapping[str, _Tensor]
) -> Iterator[str]:
    inputs = {each.name: each for each in config.input}
    for name in sorted(step.input_map.keys() - inputs.keys()):
        yield f"step {step.model_name}: has no input {name}, only {', '.join(inputs)}"
    for name, each in inputs.items():
        passed = step.input_map.get(name)
        if passed is None:
            if not each.optional:
                yield f"step {step.model_name}: the ensemble does not pass its input {name}"
            continue
        made, wanted = tensors.get(passed), _Tensor.of(config, each, step.model_name)
        if made is None:
            yield f"step {step.model_name}: no step makes {passed}, its input {name}"
        elif not made.fits(wanted):
            yield (
                f"step {step.model_name}: takes {name} as {wanted}, and {made.origin} passes "
                f"{passed} as {made}"
            )


def _order_mistakes(config: model_config_pb2.ModelConfig) -> Iterator[str]:
    try:
        ComposedModel(config.name, "ensemble", ensemble_steps(config)).in_order()
    except ValueError as error:
        yield f"{error}: each takes a tensor that another one makes"


def _batch_mistakes(config: model_config_pb2.ModelConfig, configs: _Configs) -> Iterator[str]:
    for name, own in configs.items():
        if 0 < own.max_batch_size < config.max_batch_size:
            yield (
                f"step {name}: its max_batch_size is {own.max_batch_size}, and the ensemble's "
                f"{config.max_batch_size}, which must not be larger"
            )
