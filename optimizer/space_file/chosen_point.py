"""The only point of a space that settings of its parameters leave, as `--set` gives them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from optimizer.configuration.model_space import EmptySpaceError, Limits, ModelSpace
from optimizer.configuration.named_parameters import (
    Parameter,
    is_any_field,
    model_and_parameter,
    stored_name,
)
from optimizer.configuration.search_space import SearchSpace
from optimizer.errors import Mistake, UsageError
from optimizer.files.untrusted_yaml import UnreadableYamlError, parse_yaml
from optimizer.space_file.mistakes import mistake, one_for_each_value, short
from optimizer.space_file.parameter_schema import ParametersSection
from optimizer.space_file.reader import Space


def fixed_at(space: Space, settings: Mapping[str, str]) -> Space:
    """Return the space whose only point is that of `only_point`. Raises UsageError."""
    fixed = only_point(space.search_space, settings)
    wrong = [
        f"  {model.model}.{parameter}: {rule}"
        for model in fixed.models
        if model.model in space.deployed
        for parameter, rule in space.deployed[model.model].mistakes(
            {p.name: p.values for p in model.parameters if _is_set(fixed, p, settings)}
        )
    ]
    if wrong:
        raise UsageError("\n".join(["--set:", *wrong]))
    return replace(space, search_space=fixed)


def only_point(
    searched: SearchSpace, settings: Mapping[str, str], *, with_effect: bool = True
) -> SearchSpace:
    """Return a space of one point: some parameters as set, the others as in the baseline.

    If the baseline's values are impossible with the settings, or leave a setting without effect,
    the nearest values are taken.

    Args:
        settings: YAML text by parameter, as "precision" (for every model) or "model.precision".
            Values need not be in the space's lists, and its conditions do not apply.
        with_effect: refuse a setting without effect, such as a queue delay without batching.

    Raises:
        UsageError: with every wrong setting.
    """
    parameters: list[Parameter] = []
    wrong = list(_unknown_models(searched, settings))
    for model in searched.models:
        try:
            parameters += _with_settings(model, _settings_of(searched, model.model, settings))
        except ValidationError as error:
            mistakes = [mistake(each, settings) for each in error.errors()]
            wrong += [
                each if is_any_field(each.key) else replace(each, key=each.key.split(".")[0])
                for each in mistakes
            ]
    if wrong:
        raise UsageError("\n".join(["--set:", *(f"  {m}" for m in one_for_each_value(wrong))]))
    limits = Limits(request_size=searched.limits.request_size)
    allowed = replace(searched, parameters=tuple(parameters), limits=limits)
    given = ", ".join(f"{key}={text}" for key, text in settings.items())
    try:
        used = [p.key for p in parameters if with_effect and _is_set(searched, p, settings)]
        chosen = allowed.baseline_with_effect(used)
    except EmptySpaceError as error:
        raise UsageError(f"--set: {error}; with {given}") from error
    if chosen is None:
        raise UsageError(
            f"--set: a value has no effect with {given}: batch sizes and queue delays need "
            "batching=true and a max_batch_size above traffic.batch_size, parameters of engines "
            "need runtime=tensorrt, and a rate_limit needs more instances than it allows"
        )
    fixed = tuple(
        replace(parameter, values=(parameter.values[at],))
        for parameter, at in zip(parameters, chosen, strict=True)
    )
    return replace(allowed, parameters=fixed)


def _with_settings(model: ModelSpace, settings: Mapping[str, str]) -> tuple[Parameter, ...]:
    """Return the model's parameters, some of them set. Raises pydantic's ValidationError."""
    values: dict[str, Any] = {
        parameter.name: [list(v) if isinstance(v, tuple) else v for v in parameter.values]
        for parameter in model.parameters
    }
    for key, text in settings.items():
        _, name = model_and_parameter(key)
        values.pop(stored_name(name), None)
        values[name] = [_set_value(key, text)]
    deployed = {parameter.name: parameter.deployed for parameter in model.parameters}
    return ParametersSection.model_validate(values).to_values(model.model, deployed)


def _unknown_models(searched: SearchSpace, settings: Mapping[str, str]) -> Iterator[Mistake]:
    models = [model.model for model in searched.models]
    for key in settings:
        model, _ = model_and_parameter(key)
        if model not in ("", *models):
            yield Mistake(key[:80], f"{model[:80]} is none of the models, {', '.join(models)}")


def _settings_of(
    searched: SearchSpace, model: str, settings: Mapping[str, str]
) -> Mapping[str, str]:
    """Return the settings that are for one of the models."""
    own = {}
    for key, text in settings.items():
        of, name = model_and_parameter(key)
        common = searched.concerns(model, stored_name(name))
        if of == model or (of == "" and common):
            own[key] = text
    return own


def _is_set(searched: SearchSpace, parameter: Parameter, settings: Mapping[str, str]) -> bool:
    own = _settings_of(searched, parameter.model, settings)
    return any(stored_name(model_and_parameter(key)[1]) == parameter.name for key in own)


def _set_value(key: str, text: str) -> Any:
    try:
        return parse_yaml(text)
    except UnreadableYamlError as error:
        raise UsageError(
            f"--set: {key[:80]}: must be a value in YAML ({error}), got {short(text)}"
        ) from error
