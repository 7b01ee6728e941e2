"""Parameters by their names: those of a model with their values, and entries of the table."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import cast

from optimizer.configuration.parameter_definition import (
    Allowed,
    ParameterDefinition,
    Part,
    ServingDraft,
    Value,
)
from optimizer.configuration.parameters import PARAMETERS, WITH_BATCHING, config_field

CONFIG_PREFIX = "config."
"""Begins the name of a parameter that is any field of config.pbtxt, by its path."""


UNCHANGED = "unchanged"
"""Value of such a parameter that leaves the field as it is without the parameter."""


@lru_cache
def _any_field(name: str) -> ParameterDefinition:
    """Return the definition of "config.PATH"; a field of the batcher needs batching."""
    path = name.removeprefix(CONFIG_PREFIX)
    allowed = Allowed(words=(UNCHANGED,), switch=True, least=0)
    field = config_field(name, path, allowed, UNCHANGED, f"field {path} of config.pbtxt")
    if not path.startswith("dynamic_batching."):
        return field

    def put(draft: ServingDraft, value: Value) -> None:
        if draft.batching is not None:
            field.put(draft, value)

    return replace(field, put=put, effect=WITH_BATCHING)


_BY_NAME: Mapping[str, ParameterDefinition] = {
    **{each.file_key: each for each in PARAMETERS},
    **{each.name: each for each in PARAMETERS},
}


PARAMETER_KEYS = tuple(each.file_key for each in PARAMETERS)
"""Names of all parameters in space files."""


FIELD_KEYS = {
    "max_inflight_requests": f"{CONFIG_PREFIX}ensemble_scheduling.max_inflight_requests",
}
"""Short names in space files of fields that only some models have."""


def stored_name(name: str) -> str:
    """Return the name in studies of what a space file may call by its key; others as they are."""
    if name in FIELD_KEYS:
        return FIELD_KEYS[name]
    return _BY_NAME[name].name if name in _BY_NAME else name


def is_any_field(name: str) -> bool:
    """Return whether a parameter is a field of config.pbtxt that has no entry in the table."""
    return name.startswith(CONFIG_PREFIX)


def model_and_parameter(key: str) -> tuple[str, str]:
    """Return the parts of "MODEL.PARAMETER"; the model is empty where the key names none.

    A name in the table has no dots, so that the model of "a.b.instance_count" is "a.b".
    """
    if is_any_field(key):
        return "", key
    of, prefix, path = key.partition(f".{CONFIG_PREFIX}")
    if prefix:
        return of, f"{CONFIG_PREFIX}{path}"
    of, _, name = key.rpartition(".")
    return of, name


def parameter_of_field(path: str) -> str | None:
    """Return the key of the parameter in the table that holds a field of config.pbtxt."""
    holding = [each.file_key for each in PARAMETERS if path in each.fields]
    # Batching and max_batch_size share a field, which is named like one of them.
    return next((key for key in holding if path.endswith(key)), next(iter(holding), None))


def names_of(*parts: Part) -> tuple[str, ...]:
    """Return the names of the parameters that change any of these parts."""
    return tuple(each.name for each in PARAMETERS if each.part in parts)


def suggestion(name: str, valid: Iterable[str]) -> str:
    """Return the end of a message about an invalid name: the valid name that may be meant."""
    names = list(valid)
    meant = next((each.file_key for each in PARAMETERS if name in each.triton_names), None)
    # A name that was left unfinished is nearer to its end than to another of its length.
    longer = [each for each in names if name and each.startswith(name)]
    near = [meant] if meant in names else longer or difflib.get_close_matches(name, names, 1)
    return f"; did you mean {near[0]}?" if near else ""


@dataclass(frozen=True)
class Parameter:
    """One parameter of one model and the values it may take, in listed order.

    Attributes:
        deployed: its value in a configuration that is deployed already, which is the baseline.
    """

    model: str
    name: str
    values: tuple[Value, ...]
    deployed: Value | None = None

    @property
    def key(self) -> str:
        """Name in studies and on the command line: "model.parameter"."""
        return f"{self.model}.{self.name}"

    @property
    def definition(self) -> ParameterDefinition:
        """The parameter's entry in the table."""
        return _definition_of(self.name)

    @property
    def ordinal(self) -> bool:
        """Whether the values are numbers, so that neighbours in the list behave alike."""
        return all(isinstance(v, int) and not isinstance(v, bool) for v in self.values)


@lru_cache(maxsize=1024)
def _definition_of(name: str) -> ParameterDefinition:
    return _any_field(name) if is_any_field(name) else _BY_NAME[name]


def parameters_in_order(
    model: str,
    values: Mapping[str, Sequence[Value]],
    deployed: Mapping[str, Value | None] = MappingProxyType({}),
) -> tuple[Parameter, ...]:
    """Return the parameters of a model in the order of the table, numbers ascending.

    Further fields of config.pbtxt follow in the order of their names.

    Args:
        values: by name; a parameter that is left out has its default alone.
        deployed: values in a configuration that is deployed already, by name.
    """
    fields = sorted(filter(is_any_field, values))
    listed = [
        *(
            Parameter(model, each.name, tuple(values.get(each.name, (each.default,))))
            for each in PARAMETERS
        ),
        *(Parameter(model, name, tuple(values[name])) for name in fields),
    ]
    ascending = (
        replace(p, values=tuple(sorted(cast(tuple[int, ...], p.values)))) if p.ordinal else p
        for p in listed
    )
    return tuple(replace(p, deployed=deployed.get(p.name)) for p in ascending)
