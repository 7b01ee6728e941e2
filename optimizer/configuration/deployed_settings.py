"""The settings of a model that is deployed already, as the starting point of its space."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from optimizer.configuration.parameter_definition import Value
from optimizer.configuration.parameters import (
    UNCHANGED,
    Parameter,
    is_any_field,
    parameters_in_order,
)

_FIXED: Mapping[str, Value] = {"runtime": "repository", "precision": "as_deployed"}
_REQUESTS = ("padding",)
"""Parameters of the requests, which every model has."""


@dataclass(frozen=True)
class DeployedSettings:
    """What a deployed configuration means for the space that is searched.

    Attributes:
        values: of the parameters that it holds, by name.
        batched: whether the model has a batch axis.
        instance_groups: number of instance groups in its config.pbtxt.
        backend: Triton backend that executes the model; empty where it is not named.
    """

    values: Mapping[str, Value]
    batched: bool
    instance_groups: int
    backend: str

    def mistakes(self, listed: Mapping[str, Sequence[Value]]) -> Iterator[tuple[str, str]]:
        """Yield the name of each listed parameter that cannot be searched, and the reason."""
        for name, values in listed.items():
            others = [v for v in values if v != self.values.get(name, _FIXED.get(name))]
            if not others or is_any_field(name) or name in _REQUESTS:
                continue
            if name in _FIXED:
                yield name, f"must be left out: the model is served as {_FIXED[name]}"
            elif name not in self.values:
                yield name, "has no effect on a model of a repository"
            elif name == "batching" and not self.batched:
                yield name, "must be false: the model's max_batch_size is 0"
            elif name == "instance_count" and self.instance_groups > 1:
                yield (
                    name,
                    f"must be left out: the model has {self.instance_groups} instance groups",
                )

    def parameters(
        self, model: str, listed: Mapping[str, Sequence[Value]]
    ) -> tuple[Parameter, ...]:
        """Return the parameters of the model.

        A parameter that is not listed keeps its deployed value. One that is listed can have that
        value too, so that the configuration as deployed is a point of the space.
        """
        values: dict[str, Sequence[Value]] = {name: (value,) for name, value in _FIXED.items()}
        for name, deployed in self.values.items():
            values[name] = tuple(dict.fromkeys((deployed, *listed.get(name, ()))))
        for name, own in listed.items():
            if is_any_field(name):
                values[name] = tuple(own) if UNCHANGED in own else (UNCHANGED, *own)
            elif name in _REQUESTS:
                values[name] = own
        return parameters_in_order(model, values, self.values)
