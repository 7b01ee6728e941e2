"""What defines a parameter, and the draft of a configuration that its values are put into. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar, cast

from optimizer.configuration.columns import Columns, Mask
from optimizer.configuration.hardware import Hardware
from optimizer.configuration.runtimes import RUNTIMES, Runtime
from optimizer.configuration.runtimes.spec import Kind, Precision
from optimizer.configuration.serving_config import (
    ArtifactSpec,
    Batching,
    EngineProfile,
    InstanceGroup,
    ModelServing,
    ServerOptions,
)

Value = int | bool | str | tuple[int, ...]
"""A value of a parameter."""


def label(value: Value) -> str | int | bool:
    """Return a value as people and Optuna see it: lists become "4/8"."""
    return "/".join(map(str, value)) if isinstance(value, tuple) else value


T = TypeVar("T")

_SHARED: dict[Any, Any] = {}


def shared(value: T) -> T:
    """Return one object for all equal parts of configurations, of which spaces have few."""
    return cast(T, _SHARED.setdefault(value, value))


@dataclass(frozen=True)
class ModelScope:
    """What the meaning of a model's parameter values depends on, beside the values themselves.

    Attributes:
        request_size: inferences that one request asks for.
        alone: whether the model is the only one on the server.
        batch_sizes: the largest batches among which the model's points choose, ascending.
    """

    model: str
    hardware: Hardware
    request_size: int
    alone: bool
    batch_sizes: tuple[int, ...]

    @property
    def kind(self) -> Kind:
        """Where instances run: on the GPUs if there are any."""
        return "KIND_GPU" if self.hardware.gpus else "KIND_CPU"

    def backend_of(self, runtime: Runtime) -> str:
        """Return the backend that hosts a runtime: one of its own name, or "python"."""
        spec = RUNTIMES[runtime]
        lacks_own = self.hardware.only_python_backend and spec.package is not None
        return runtime if self.kind in spec.native_on and not lacks_own else "python"

    def instance_counts(self, value: Value) -> tuple[int, ...]:
        """Return the instances on each device; a number stands for every device."""
        if isinstance(value, tuple):
            return value
        return (cast(int, value),) * max(1, len(self.hardware.gpus))


@dataclass
class ServingDraft:
    """What `ModelServing` and `ServerOptions` are made of.

    Attributes:
        engine_per_batch_size: build a TensorRT engine for each max_batch_size, not one for all.
        instance_counts: instances on each device; a CPU is one device.
        config_fields: values of further fields of config.pbtxt as JSON, by their path.
    """

    scope: ModelScope
    runtime: Runtime = "onnxruntime"
    precision: Precision = "fp32"
    engine_per_batch_size: bool = False
    max_batch_size: int = 1
    batching: Batching | None = None
    instance_counts: tuple[int, ...] = (1,)
    threads: int = 1
    padding: tuple[int, ...] = ()
    cuda_graphs: bool = False
    config_fields: dict[str, str] = field(default_factory=dict)
    backend_config: list[tuple[str, str, str]] = field(default_factory=list)
    executions_per_device: int | None = None
    cache: bool = False
    cache_bytes: int | None = None

    def model(self) -> ModelServing:
        """Return how the model is served."""
        return ModelServing(
            name=self.scope.model,
            artifact=shared(self._artifact()),
            max_batch_size=self.max_batch_size,
            batching=shared(self.batching),
            groups=shared(self._groups()),
            padding=self.padding,
            cache=self.cache,
            warmup_batch_sizes=tuple(sorted({1, self.max_batch_size})),
            cuda_graphs=self.cuda_graphs,
            rate_limited=self.executions_per_device is not None,
            parameters=tuple(sorted(self.config_fields.items())),
        )

    def server(self) -> ServerOptions:
        """Return what the model's parameters ask of the server itself."""
        return shared(
            ServerOptions(tuple(self.backend_config), self.executions_per_device, self.cache_bytes)
        )

    def _artifact(self) -> ArtifactSpec:
        backend = self.scope.backend_of(self.runtime)
        profile = self._engine_profile() if self.runtime == "tensorrt" else None
        return ArtifactSpec(self.scope.model, self.runtime, backend, self.precision, profile)

    def _engine_profile(self) -> EngineProfile:
        """Tune an engine for its only batch size, or for the middle one of all.

        Requests that are served alone have an engine of their own: one that is tuned for batches
        would take longer for each of them.
        """
        if self.engine_per_batch_size or self.batching is None:
            return EngineProfile(self.max_batch_size, self.max_batch_size)
        sizes = self.scope.batch_sizes
        return EngineProfile(sizes[len(sizes) // 2], sizes[-1])

    def _groups(self) -> tuple[InstanceGroup, ...]:
        """Make one group on a CPU, and one for all GPUs that have the same number of instances."""
        counts = self.instance_counts
        if self.scope.kind == "KIND_CPU":
            return (InstanceGroup("KIND_CPU", counts[0], (), self.threads),)
        return tuple(
            InstanceGroup("KIND_GPU", count, tuple(g for g, n in enumerate(counts) if n == count))
            for count in sorted({*counts} - {0}, reverse=True)
        )


Part = Literal["artifact", "layout", "batcher", "queue", "server"]
"""What a parameter changes, which is how the surrogate and the simulator treat it: what executes;
where and how it executes; which batches are possible; how long requests wait; the server."""


@dataclass(frozen=True)
class Allowed:
    """Values that a space file may list for a parameter: of any of these kinds.

    Attributes:
        words: fixed texts.
        switch: true and false.
        least: whole numbers from here up; None allows no number.
        lists: "sizes" are positive numbers in any order, "devices" one number for each GPU.
    """

    words: tuple[str, ...] = ()
    switch: bool = False
    least: int | None = None
    lists: Literal["sizes", "devices"] | None = None


class Served(NamedTuple):
    """One model as a configuration serves it, from which values of parameters are read back.

    Attributes:
        gpus: number of GPUs that the configuration may use.
    """

    model: ModelServing
    server: ServerOptions
    gpus: int


@dataclass(frozen=True)
class ParameterEffect:
    """When a parameter has an effect.

    Attributes:
        rows: in which rows of a table of points, with a column for each parameter; or in all.
        model: whether it has one on a model as it is served.
    """

    rows: Callable[[Columns, ModelScope], Mask | bool]
    model: Callable[[ModelServing], bool]


@dataclass(frozen=True)
class ParameterDefinition:
    """One entry of the table of parameters.

    Attributes:
        name: in studies, records and tables on disk.
        default: value where a space file does not list the parameter.
        put: puts a value into a draft that holds the parameters before this one.
        read: the value of a served model, in the words of reports; None where it has no effect.
        idle: the value that all values come to where there is no effect; the default if None.
        baseline: the baseline's value, given the listed values and the model's share of the cores,
            if that is not the default.
        key: name in space files where that is not `name`, which is accepted there as the old name.
        fields: fields of config.pbtxt that hold it, as paths.
        triton_names: what Triton calls it, for messages about unknown keys.
        meaning: what a value comes to with a max_batch_size, if not itself: values of equal meaning
            make no second point.
        number: the number that conditions compare, where a value may be a list.
    """

    name: str
    part: Part
    allowed: Allowed
    default: Value
    description: str
    put: Callable[[ServingDraft, Any], None]
    read: Callable[[Served], object]
    effect: ParameterEffect = ParameterEffect(lambda rows, scope: True, lambda model: True)
    idle: Callable[[ModelScope], Value] | None = None
    baseline: Callable[[Sequence[Any], int], Value] | None = None
    key: str = ""
    fields: tuple[str, ...] = ()
    triton_names: tuple[str, ...] = ()
    meaning: Callable[[Value, int, ModelScope], Value] | None = None
    number: Callable[[Value], int] | None = None

    @property
    def file_key(self) -> str:
        """Name in space files."""
        return self.key or self.name

    def idle_value(self, scope: ModelScope) -> Value:
        """Return the value that all others come to where the parameter has no effect."""
        return self.default if self.idle is None else self.idle(scope)

    def baseline_value(self, listed: Sequence[Value], cores: int) -> Value:
        """Return the value that nobody has touched."""
        return self.default if self.baseline is None else self.baseline(listed, cores)
