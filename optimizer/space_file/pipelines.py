"""The models of existing repositories and the pipelines of a space file, with their steps."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from optimizer.configuration.deployed_settings import DeployedSettings
from optimizer.configuration.model_graph import ComposedModel, ModelGraph, in_sequence
from optimizer.configuration.named_parameters import Parameter
from optimizer.configuration.parameter_definition import Value
from optimizer.configuration.runtimes import Runtime
from optimizer.errors import Mistake, SpaceFileError, UsageError
from optimizer.files.untrusted import is_safe_name
from optimizer.space_file.deployed_models import ReadSettings
from optimizer.space_file.parameter_schema import ParametersSection
from optimizer.space_file.schema import SpaceSection
from optimizer.workload.model_spec import (
    ModelSpec,
    PipelineSource,
    RepositorySource,
    SoftmaxSource,
    Source,
    TokenizerSource,
)
from optimizer.workload.streams import Payloads

_Listed = dict[str, Sequence[Value]]


@dataclass(frozen=True)
class DeployedModel:
    """A model of an existing repository.

    Attributes:
        of: the model of the space file that it is, or that it is a step of.
    """

    of: str
    source: RepositorySource
    settings: DeployedSettings

    def spec(self, name: str, target: ModelSpec) -> ModelSpec:
        """Return the model as a specification; a step is judged by the answers of its target."""
        if name == self.of:
            return target
        payloads = Payloads((), batched=self.settings.batched)
        return replace(target, name=name, source=self.source, payloads=payloads, outputs=())


@dataclass(frozen=True)
class GeneratedModel:
    """A pipeline that is generated, or a step of it.

    Attributes:
        of: the pipeline.
        settings: None for the model among the steps, whose parameters are those of any model.
    """

    of: str
    own: ModelSpec
    settings: DeployedSettings | None

    @property
    def source(self) -> Source:
        """What the model is made from."""
        return self.own.source

    def spec(self, name: str, target: ModelSpec) -> ModelSpec:
        """Return the model as a specification."""
        return self.own


DeployedModels = Mapping[str, DeployedModel | GeneratedModel]
"""By name, each after its steps."""


def _generated(name: str, section: SpaceSection, folder: Path) -> Mapping[str, GeneratedModel]:
    """Return the models of a pipeline that is generated; none where the model is no pipeline."""
    size = section.traffic.batch_size
    target = section.models[name].to_value(name, folder)
    source = target.source
    if not isinstance(source, PipelineSource):
        return {}
    target = replace(target, source=replace(source, max_batch_size=size))
    runtimes: Mapping[type, Runtime] = {TokenizerSource: "tokenizers", SoftmaxSource: "softmax"}
    steps = {
        step.name: GeneratedModel(
            name,
            step,
            DeployedSettings.generated(runtimes[type(step.source)], name, size)
            if type(step.source) in runtimes
            else None,
        )
        for step in source.steps
    }
    return steps | {name: GeneratedModel(name, target, _of_top(source, size))}


def _of_top(source: PipelineSource, size: int) -> DeployedSettings:
    """Return the settings of the model that joins the steps of a generated pipeline."""
    steps = in_sequence(step.name for step in source.steps)
    settings = DeployedSettings.generated("repository", "", size)
    return replace(settings, steps=steps, kind=source.kind)


def read_models(
    section: SpaceSection,
    path: Path,
    sources: Mapping[str, RepositorySource],
    read: ReadSettings,
) -> DeployedModels:
    """Return the deployed models of a space file, and their steps.

    Args:
        section: content of the space file.
        path: of the space file.
        sources: of the deployed models, by name.
        read: reads the settings of a model or of a step.

    Raises:
        UsageError: for a model or a step that cannot be read or tuned, and for names that clash.
        SpaceFileError: with everything that the models' configurations do not allow.
    """
    deployed: dict[str, DeployedModel] = {}
    for name, source in sources.items():
        if name in deployed:
            raise _clash(name, deployed[name].of, name)
        _add(deployed, name, DeployedModel(name, source, read(source)), read, (name,))
        _require_callers(source, [each.source for each in deployed.values() if each.of == name])
    models: dict[str, DeployedModel | GeneratedModel] = {**deployed}
    for name in section.models:
        for step, model in _generated(name, section, path.parent).items():
            if step in models or (step != name and step in section.models):
                raise _clash(step, name, models[step].of if step in models else step)
            models[step] = model
    for name in section.models:
        if name in models and models[name].of != name:
            raise _clash(name, models[name].of, name)
    if mistakes := [*_parameter_mistakes(section, models), *_size_mistakes(section, models)]:
        raise SpaceFileError(path, mistakes)
    return models


def _add(
    models: dict[str, DeployedModel],
    name: str,
    model: DeployedModel,
    read: ReadSettings,
    within: Collection[str],
) -> None:
    """Add a model after its steps.

    Args:
        within: names of the models that it is a step of, and its own.
    """
    for step in model.settings.step_names:
        source = model.source.step(step)
        if step in within:
            raise UsageError(f"{model.source.folder}: the model {step} is a step of itself")
        if not is_safe_name(step):
            raise UsageError(
                f"{model.source.folder}: the name of the step {step!r} must consist of letters, "
                "digits, '.', '_' and '-'"
            )
        if step not in models:
            _add(models, step, DeployedModel(model.of, source, read(source)), read, (*within, step))
        earlier = models[step]
        if earlier.of != model.of:
            raise _clash(step, earlier.of, model.of)
        settings = earlier.settings.as_step_of(name, model.settings)
        models[step] = replace(earlier, settings=settings)
    models[name] = model


def _require_callers(source: RepositorySource, parts: Collection[RepositorySource]) -> None:
    """Check that each model whose calls are stated is part of the pipeline. Raises UsageError."""
    names = {part.model for part in parts}
    for caller, _ in source.calls or ():
        if caller not in names:
            raise UsageError(
                f"source.calls: lists calls of {caller}, which is not a step of {source.model}"
            )


def _clash(name: str, *of: str) -> UsageError:
    # Triton loads a step with each ensemble, so that two of them would end each other's step.
    return UsageError(
        f"models: {name} is a part of {' and of '.join(dict.fromkeys(of))}: search one pipeline at "
        "a time, and give no model of the space file the name of a step"
    )


def graph_of(models: DeployedModels) -> ModelGraph | None:
    """Return the composed models among the models; None without any."""
    composed = tuple(
        ComposedModel(name, model.settings.kind, model.settings.steps)
        for name, model in models.items()
        if model.settings is not None and model.settings.steps
    )
    return ModelGraph(composed) if composed else None


def parameters_of(
    section: SpaceSection, name: str, model: DeployedModel | GeneratedModel
) -> tuple[Parameter, ...]:
    """Return the parameters of a deployed model, or of one of a generated pipeline."""
    parameters = _parameters(section, model)
    if model.settings is None:
        return parameters.of(name).to_values(name)
    listed = model.settings.common(parameters.listed_values()) | _own(parameters, name)
    return model.settings.parameters(name, listed)


def _parameter_mistakes(section: SpaceSection, models: DeployedModels) -> Iterator[Mistake]:
    """Yield the parameters that cannot be searched, and those of models that do not exist."""
    names = tuple(dict.fromkeys([*section.models, *models]))
    sections = [section.parameters, *(own.parameters for own in section.models.values())]
    for unknown in {key: None for own in sections if own for key in own.of_models}:
        if unknown not in names:
            near = difflib.get_close_matches(unknown, names, 1)
            meant = f"; did you mean {near[0]}?" if near else ""
            rule = f"{unknown[:80]} is none of the models, {', '.join(names)}{meant}"
            yield Mistake(f"parameters.{unknown[:80]}", rule)
    for name, model in models.items():
        if model.settings is None:
            continue
        for parameter, rule in model.settings.mistakes(_own(_parameters(section, model), name)):
            yield Mistake(f"parameters.{name}.{parameter}", f"{rule} (models.{model.of})")
    for name in section.models:
        pipeline = {key: model for key, model in models.items() if model.of == name}
        yield from _mistakes_of_all(section, name, pipeline)


def _mistakes_of_all(
    section: SpaceSection, name: str, pipeline: DeployedModels
) -> Iterator[Mistake]:
    """Yield the parameters without a model's name that can be searched of no model."""
    searched: set[str] = set()
    rules: dict[str, str] = {}
    for model in pipeline.values():
        listed = _parameters(section, model).listed_values()
        if model.settings is None:
            searched |= listed.keys()
            continue
        wrong = dict(model.settings.mistakes(listed))
        searched |= model.settings.common(listed).keys() - wrong.keys()
        rules = {**wrong, **rules}
    for parameter, rule in rules.items():
        if parameter not in searched:
            yield Mistake(f"parameters.{parameter}", f"{rule} (models.{name})")


def _size_mistakes(section: SpaceSection, models: DeployedModels) -> Iterator[Mistake]:
    """Yield the models that requests are too large for; a step takes what its ensemble takes."""
    size = section.traffic.batch_size
    for name, model in models.items():
        if name != model.of or model.settings is None:
            continue
        largest = cast(int, model.settings.values["max_batch_size"])
        if largest < size:
            rule = f"must be at most the max_batch_size of models.{name} as deployed, {largest}"
            yield Mistake("traffic.batch_size", rule, str(size))


def _parameters(section: SpaceSection, model: DeployedModel | GeneratedModel) -> ParametersSection:
    return section.parameters.with_those_of(section.models[model.of].parameters)


def _own(parameters: ParametersSection, name: str) -> _Listed:
    """Return the values of the parameters whose key names the model."""
    own = parameters.of_models.get(name)
    return dict(own.listed_values()) if own is not None else {}
