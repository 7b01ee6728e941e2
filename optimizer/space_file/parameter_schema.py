"""What may be tried, as a space file says it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from optimizer.configuration.parameters import Parameter, Value, parameters_in_order
from optimizer.runtimes import Runtime
from optimizer.runtimes.spec import Precision
from optimizer.space_file.section import MAX_VALUES, Count, Section, Switch


def _distinct(values: list[Any]) -> list[Any]:
    seen = set()
    for value in values:
        key = tuple(value) if isinstance(value, list) else value
        if key in seen:
            raise ValueError(f"values must be distinct, {value!r} is listed twice")
        seen.add(key)
    return values


_NotNegative = Annotated[int, Field(ge=0, le=10**9, strict=True)]
_Sizes = Annotated[list[Count], Field(min_length=1, max_length=MAX_VALUES)]
_PerGpu = Annotated[list[_NotNegative], Field(min_length=1, max_length=MAX_VALUES)]
_Switches = Annotated[list[Switch], Field(min_length=1, max_length=MAX_VALUES)]


class ParametersSection(Section):
    """What may be tried. A single value fixes a parameter."""

    runtime: Annotated[list[Runtime], Field(min_length=1, max_length=MAX_VALUES)] = Field(
        ["onnxruntime"], description="what executes the model; tensorrt on GPUs alone"
    )
    precision: Annotated[list[Precision], Field(min_length=1, max_length=MAX_VALUES)] = Field(
        ["fp32"], description="what a runtime does not have is left out by itself"
    )
    batching: _Switches = Field([False], description="whether Triton joins requests into batches")
    max_batch_size: Annotated[list[Count], Field(min_length=1, max_length=MAX_VALUES)] = Field(
        [8], description="most inferences of one execution"
    )
    preferred_batch_sizes: Annotated[
        list[Literal["none", "half", "powers"] | _Sizes],
        Field(min_length=1, max_length=MAX_VALUES),
    ] = Field(["none"], description="none, half, powers (derived from max_batch_size), or sizes")
    max_queue_delay_us: Annotated[
        list[_NotNegative], Field(min_length=1, max_length=MAX_VALUES)
    ] = Field([0], description="how long a request may wait for others to join it")
    instance_count: Annotated[list[Count | _PerGpu], Field(min_length=1, max_length=MAX_VALUES)] = (
        Field([1], description="on the CPU, or on every GPU; a list has one number for each GPU")
    )
    intra_op_threads: Annotated[list[Count], Field(min_length=1, max_length=MAX_VALUES)] = Field(
        [1], description="of each instance on the CPU"
    )
    padding: Annotated[
        list[Literal["max"] | _Sizes], Field(min_length=1, max_length=MAX_VALUES)
    ] = Field(["max"], description="max, or lengths that requests are padded up to")
    engine_profile: Annotated[
        list[Literal["shared", "per_batch_size"]], Field(min_length=1, max_length=MAX_VALUES)
    ] = Field(["shared"], description="TensorRT: one engine for all batch sizes, or one for each")
    cuda_graphs: _Switches = Field([False], description="TensorRT: launch kernels as one graph")
    execution_policy: Annotated[
        list[Literal["device_blocking", "blocking"]],
        Field(min_length=1, max_length=MAX_VALUES),
    ] = Field(
        ["device_blocking"],
        description="TensorRT: one thread for all instances of a GPU, or one for each",
    )
    rate_limit: Annotated[
        list[Literal["off"] | Count], Field(min_length=1, max_length=MAX_VALUES)
    ] = Field(["off"], description="executions at once on a device, over all models")

    @field_validator("*", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return value if isinstance(value, list) else [value]

    @field_validator("*", mode="after")
    @classmethod
    def _distinct(cls, values: list[object]) -> list[object]:
        return _distinct(values)

    def to_values(self, model: str) -> tuple[Parameter, ...]:
        """The parameters of the model in their fixed order."""
        values: dict[str, Sequence[Value]] = {
            name: [_value(name, each) for each in getattr(self, name)]
            for name in type(self).model_fields
        }
        return parameters_in_order(model, values)

    def with_those_of(self, other: ParametersSection | None) -> ParametersSection:
        """These parameters, less those that another section sets."""
        own = {name: getattr(other, name) for name in other.model_fields_set} if other else {}
        return self.model_copy(update=own)


def _value(name: str, given: Any) -> Value:
    """What is listed, as a value; sizes have no order, what counts for each GPU has."""
    if not isinstance(given, list):
        value: Value = given
        return value
    return tuple(given) if name == "instance_count" else tuple(sorted(given))
