"""The schema of a space file's parameters, made from the table of parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union

from pydantic import (
    AliasChoices,
    Field,
    create_model,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from optimizer.configuration.named_parameters import (
    CONFIG_PREFIX,
    FIELD_KEYS,
    Parameter,
    is_any_field,
    model_and_parameter,
    parameter_of_field,
    parameters_in_order,
)
from optimizer.configuration.parameter_definition import Allowed, Value
from optimizer.configuration.parameters import PARAMETERS
from optimizer.space_file.section import MAX_VALUES, Count, Section, Switch, wrong

OLD_KEYS: Mapping[str, str] = {each.name: each.key for each in PARAMETERS if each.key}
"""Keys of parameters that are still read, and what each is called now."""

_NAMES = tuple(each.name for each in PARAMETERS)
_FieldValue = Switch | Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)] | str
_NotNegative = Annotated[int, Field(ge=0, le=10**9, strict=True)]
_LISTS = {
    "sizes": Annotated[list[Count], Field(min_length=1, max_length=MAX_VALUES)],
    "devices": Annotated[list[_NotNegative], Field(min_length=1, max_length=MAX_VALUES)],
}


def _type_of(allowed: Allowed) -> Any:
    """Return the type of a list of values, as pydantic checks it."""
    kinds: list[Any] = []
    if allowed.words:
        kinds.append(Literal[allowed.words])
    if allowed.switch:
        kinds.append(Switch)
    if allowed.least is not None:
        kinds.append(Annotated[int, Field(ge=allowed.least, le=10**9, strict=True)])
    if allowed.lists is not None:
        kinds.append(_LISTS[allowed.lists])
    several: Any = list[Union[tuple(kinds)]]  # type: ignore[misc] # noqa: UP007 - mypy sees no table
    return Annotated[several, Field(min_length=1, max_length=MAX_VALUES)]


if TYPE_CHECKING:
    _Parameters = Section
else:
    _Parameters = create_model(
        "_Parameters",
        __base__=Section,
        **{
            each.name: (
                _type_of(each.allowed),
                Field(
                    [each.default],
                    validation_alias=AliasChoices(each.key, each.name) if each.key else None,
                    description=each.description,
                ),
            )
            for each in PARAMETERS
        },
    )


class ParametersSection(_Parameters):
    """The search space: a list of values is searched, a single value is fixed.

    A key "config.PATH" is any other field of Triton's config.pbtxt. A key "MODEL.PARAMETER" is a
    parameter of one of several models, or of a step of a pipeline. `max_inflight_requests` is the
    field of that name of an ensemble.
    """

    added_keys = ("fields_of_config", "of_models")

    fields_of_config: SkipJsonSchema[
        dict[str, Annotated[list[_FieldValue], Field(min_length=1)]]
    ] = Field({}, max_length=100)
    of_models: SkipJsonSchema[dict[str, ParametersSection]] = Field({}, max_length=100)

    @model_validator(mode="before")
    @classmethod
    def _models_apart(cls, section: Any) -> Any:
        """Move the keys "MODEL.PARAMETER" into sections of their models."""
        if not isinstance(section, Mapping):
            return section
        rest, apart = {}, {**section.get("of_models", {})}
        for key, value in section.items():
            model, name = model_and_parameter(str(key))
            if model:
                apart[model] = {**apart.get(model, {}), name: value}
            elif key != "of_models":
                rest[key] = value
        return {**rest, "of_models": apart} if apart else rest

    @model_validator(mode="before")
    @classmethod
    def _fields_apart(cls, section: Any) -> Any:
        """Move the keys "config.PATH", and short names of such fields, into a section of theirs."""
        if not isinstance(section, Mapping):
            return section
        for key in FIELD_KEYS.keys() & section.keys():
            if (path := FIELD_KEYS[key]) in section:
                raise wrong(key, f"is the field {path}, which is given too", section[key])
            section = {(path if each == key else each): own for each, own in section.items()}
        apart = {key: value for key, value in section.items() if is_any_field(str(key))}
        for key in apart:
            if (own := parameter_of_field(key.removeprefix(CONFIG_PREFIX))) is not None:
                raise wrong(key, f"is the parameter {own}", section[key])
        rest = {key: value for key, value in section.items() if key not in apart}
        if not apart:
            return rest
        lists = {k: v if isinstance(v, list) else [v] for k, v in apart.items()}
        for key, values in lists.items():
            if len({(type(value), str(value)) for value in values}) < len(values):
                raise wrong(key, "values must be distinct", values)
        return {**rest, "fields_of_config": {**rest.get("fields_of_config", {}), **lists}}

    @model_validator(mode="before")
    @classmethod
    def _named_once(cls, section: Any) -> Any:
        if isinstance(section, Mapping):
            for old, key in OLD_KEYS.items():
                if old in section and key in section:
                    raise wrong(old, f"is the old name of {key}, which is given too", section[old])
        return section

    @field_validator(*_NAMES, mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return value if isinstance(value, list) else [value]

    @field_validator(*_NAMES, mode="after")
    @classmethod
    def _distinct(cls, values: list[Any]) -> list[Any]:
        keys = set()
        for value in values:
            key = tuple(value) if isinstance(value, list) else value
            if key in keys:
                raise ValueError(f"values must be distinct, {value!r} is listed twice")
            keys.add(key)
        return values

    @field_serializer("of_models", mode="plain")
    def _as_listed(self, of_models: dict[str, ParametersSection]) -> dict[str, Any]:
        """Return the parameters that are listed, and no others."""
        return {
            model: own.model_dump(mode="json", include=own.model_fields_set)
            for model, own in of_models.items()
        }

    def listed(self, name: str) -> list[Any]:
        """Return the values that a parameter may take."""
        values: list[Any] = getattr(self, name)
        return values

    def to_values(
        self, model: str, deployed: Mapping[str, Value | None] = MappingProxyType({})
    ) -> tuple[Parameter, ...]:
        """Return the parameters of a model in the order of the table.

        Args:
            deployed: values in a configuration that is deployed already, by name.
        """
        values = {
            each.name: [_value(each.allowed, value) for value in self.listed(each.name)]
            for each in PARAMETERS
        }
        return parameters_in_order(model, {**values, **self.fields_of_config}, deployed)

    def listed_values(self) -> dict[str, tuple[Value, ...]]:
        """Return the values of the parameters that the file lists, by name."""
        listed: dict[str, tuple[Value, ...]] = {
            each.name: tuple(_value(each.allowed, value) for value in self.listed(each.name))
            for each in PARAMETERS
            if each.name in self.model_fields_set
        }
        return listed | {name: tuple(own) for name, own in self.fields_of_config.items()}

    def with_those_of(self, other: ParametersSection | None) -> Self:
        """Return these parameters, but those that another section sets."""
        if other is None:
            return self
        own = {name: getattr(other, name) for name in other.model_fields_set}
        fields = {**self.fields_of_config, **other.fields_of_config}
        models = self.of_models | {
            model: self.of_models.get(model, section).with_those_of(section)
            for model, section in other.of_models.items()
        }
        return self.model_copy(
            update={**own, "fields_of_config": fields, "of_models": models},
        )

    def of(self, model: str) -> Self:
        """Return these parameters, but those whose key names the model as the key sets them."""
        return self.with_those_of(self.of_models.get(model))


def _value(allowed: Allowed, listed: Any) -> Value:
    """Return what is listed as a value; sizes have no order, what counts for each GPU has."""
    if not isinstance(listed, list):
        value: Value = listed
        return value
    return tuple(listed) if allowed.lists == "devices" else tuple(sorted(listed))


def with_defaults(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the stored content of a space file with the parameters that were added since.

    Each has its default, which leaves everything as it was before there was the parameter. Content
    of another shape, as of a damaged study, is returned as it is.
    """
    defaults = ParametersSection.model_validate({}).model_dump(mode="json")

    def completed(section: Any) -> Any:
        own = section.get("parameters") if isinstance(section, Mapping) else None
        if not isinstance(own, Mapping):
            return section
        return {**section, "parameters": {**defaults, **own}}

    models = content.get("models")
    if isinstance(models, Mapping):
        content = {**content, "models": {name: completed(model) for name, model in models.items()}}
    whole: Mapping[str, Any] = completed(content)
    return whole


def deprecations(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note for each old name of a parameter in a space file.

    Args:
        document: of a space file without mistakes.
    """
    sections = {"parameters": document["parameters"]} | {
        f"models.{name}.parameters": model.get("parameters") or {}
        for name, model in document["models"].items()
    }
    for where, section in sections.items():
        for old, key in OLD_KEYS.items():
            if old in section:
                yield f"{where}.{old} is now called {key}; the old name is still read"
