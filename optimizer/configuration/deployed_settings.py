"""The settings of a model that is deployed already, as the starting point of its space."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from optimizer.configuration.model_graph import ComposedKind, Step
from optimizer.configuration.named_parameters import (
    CONFIG_PREFIX,
    UNCHANGED,
    Parameter,
    is_any_field,
    parameters_in_order,
)
from optimizer.configuration.parameter_definition import Value
from optimizer.configuration.runtimes import Runtime

_SCHEDULING: Mapping[str, Value] = {
    "batching": False,
    "max_batch_size": 1,
    "preferred_batch_sizes": "none",
    "max_queue_delay_us": 0,
    "instance_count": 1,
    "max_queue_size": "off",
    "default_timeout_microseconds": "off",
    "timeout_action": "reject",
}
"""Parameters of every model that executes requests, whatever its files are, with the values of one
that nobody has touched."""

_REQUESTS = ("padding",)
"""Parameters of the requests, which every model has that clients send requests to."""

_CACHE, _CACHE_SIZE = "response_cache", "response_cache_mib"
"""The cache, which every model may have, and its size, which no config.pbtxt holds."""

_OF_ENSEMBLES = f"{CONFIG_PREFIX}ensemble_scheduling."


def concerns(name: str, *, ensemble: bool, step: bool) -> bool:
    """Return whether a parameter that names no model is one of a model of a pipeline.

    Args:
        ensemble: whether the model is an ensemble, which has no batcher and no instances.
        step: whether the model is a step, which clients send no requests to.
    """
    if name == _CACHE_SIZE:
        return True
    if name in (*_REQUESTS, _CACHE):
        return not step
    return name.startswith(_OF_ENSEMBLES) == ensemble


def is_of_built_model(name: str) -> bool:
    """Return whether only a model whose files are built here has a parameter, such as precision."""
    return not is_any_field(name) and name not in (*_SCHEDULING, *_REQUESTS)


@dataclass(frozen=True)
class DeployedSettings:
    """What a deployed configuration means for the space that is searched.

    Attributes:
        values: of the parameters that it holds, by name.
        batched: whether the model has a batch axis.
        instance_groups: number of instance groups in its config.pbtxt.
        backend: Triton backend that executes the model; empty where it is not named.
        steps: of a composed model, the calls of the models that it is composed of.
        kind: of a composed model.
        caller: of a step, a model that is composed of it: the ensemble with the largest
            max_batch_size, if any; empty for other models.
        least_batch_size: that max_batch_size, which the step must take; 0 without an ensemble.
        runtime: what executes the model; of a step that is generated, that of the step.
        is_generated: whether the configuration is made here, which no one has deployed.
    """

    values: Mapping[str, Value]
    batched: bool
    instance_groups: int
    backend: str
    steps: tuple[Step, ...] = ()
    kind: ComposedKind = "ensemble"
    caller: str = ""
    least_batch_size: int = 0
    runtime: Runtime = "repository"
    is_generated: bool = False

    @classmethod
    def generated(cls, runtime: Runtime, target: str, request_size: int) -> DeployedSettings:
        """Return the settings of a generated model that is not built from a graph.

        Args:
            target: the pipeline that it is a step of; empty for the pipeline itself.
            request_size: inferences in one request.
        """
        return cls(
            {**_SCHEDULING, "max_batch_size": request_size},
            batched=True,
            instance_groups=1,
            backend="python",
            caller=target,
            least_batch_size=request_size,
            runtime=runtime,
            is_generated=True,
        )

    @property
    def _fixed(self) -> Mapping[str, Value]:
        return {"runtime": self.runtime, "precision": "as_deployed"}

    @property
    def ensemble(self) -> bool:
        """Whether the model is an ensemble, which has no instances and no batcher."""
        return bool(self.steps) and self.kind == "ensemble"

    @property
    def step_names(self) -> tuple[str, ...]:
        """Names of the models that the model is composed of, each once."""
        return tuple(dict.fromkeys(step.model for step in self.steps))

    def as_step_of(self, caller: str, settings: DeployedSettings) -> DeployedSettings:
        """Return the settings as those of a step of a composed model, given that model's own."""
        bounded = settings.ensemble and settings.batched
        size = cast(int, settings.values["max_batch_size"]) if bounded else 0
        if self.caller and size <= self.least_batch_size:
            return self
        return replace(self, caller=caller, least_batch_size=size)

    def mistakes(self, listed: Mapping[str, Sequence[Value]]) -> Iterator[tuple[str, str]]:
        """Yield the name of each listed parameter that cannot be searched, and the reason."""
        for name, values in listed.items():
            others = [v for v in values if v != self.values.get(name, self._fixed.get(name))]
            rule = self._refusal(name, others) if others else None
            if rule is not None:
                yield name, rule

    def _refusal(self, name: str, values: Sequence[Value]) -> str | None:
        """Return why a parameter cannot have these values, which are not the deployed one."""
        if name in (_CACHE, _CACHE_SIZE):
            return None
        if is_any_field(name) or name in _REQUESTS:
            return self._refusal_in_pipeline(name)
        least = self.least_batch_size
        served = self._fixed.get(name)
        below = name == "max_batch_size" and min(cast(Sequence[int], values)) < least
        rules = (
            (name in self._fixed, f"must be left out: the model is served as {served}"),
            (
                self.ensemble,
                f"has no effect on an ensemble, only on its steps: {', '.join(self.step_names)}",
            ),
            (name not in self.values, f"has no effect on {self._kind}"),
            (
                name == "batching" and not self.batched,
                "must be false: the model's max_batch_size is 0",
            ),
            (
                name == "instance_count" and self.instance_groups > 1,
                f"must be left out: the model has {self.instance_groups} instance groups",
            ),
            (
                below,
                f"must be at least {least}, the max_batch_size of the ensemble {self.caller}",
            ),
        )
        return next((rule for broken, rule in rules if broken), None)

    @property
    def _kind(self) -> str:
        if self.runtime != "repository":
            return f"a step of {self.runtime}"
        return "a model that calls others" if self.is_generated else "a model of a repository"

    def _refusal_in_pipeline(self, name: str) -> str | None:
        if name in _REQUESTS and self.caller:
            return f"has no effect on a step: requests go to {self.caller}"
        if name.startswith(_OF_ENSEMBLES) and not self.ensemble:
            return "is a field of ensembles, and the model is none"
        return None

    def common(self, listed: Mapping[str, Sequence[Value]]) -> dict[str, Sequence[Value]]:
        """Return those of the parameters listed for all models that can be searched of this one.

        Outside a pipeline these are all: one that cannot be searched is a mistake.
        """
        if not (self.steps or self.caller):
            return dict(listed)
        wrong = {name for name, _ in self.mistakes(listed)}
        own = {"ensemble": self.ensemble, "step": bool(self.caller)}
        return {
            name: values
            for name, values in listed.items()
            if name not in wrong and concerns(name, **own)
        }

    def parameters(
        self, model: str, listed: Mapping[str, Sequence[Value]]
    ) -> tuple[Parameter, ...]:
        """Return the parameters of the model.

        A parameter that is not listed keeps its deployed value. One that is listed can have that
        value too, so that the configuration as deployed is a point of the space. A generated step
        has no deployed value.
        """
        values: dict[str, Sequence[Value]] = {n: (value,) for n, value in self._fixed.items()}
        deployed = {} if self.is_generated else self.values
        values |= {name: listed[name] for name in self.values if name in listed}
        for name, value in deployed.items():
            values[name] = tuple(dict.fromkeys((value, *listed.get(name, ()))))
        for name, each in listed.items():
            if is_any_field(name):
                values[name] = tuple(each) if UNCHANGED in each else (UNCHANGED, *each)
            elif name in (*_REQUESTS, _CACHE_SIZE):
                values[name] = each
        return parameters_in_order(model, values, deployed)
