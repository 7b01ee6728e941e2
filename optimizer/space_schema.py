"""The shape of a space file: its sections, their keys and the rules that they must meet.

`optimizer.space_file` reads files with it; the models are in `optimizer.model_schema`.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from optimizer.arrival_trace import read_trace
from optimizer.cost import Price
from optimizer.model_schema import (
    Count,
    ModelSection,
    Number,
    Positive,
    Section,
    folder_of,
    raise_all,
    wrong,
)
from optimizer.search_space import Parameter, Value, parameters_in_order
from optimizer.serving_config import Precision, Runtime
from optimizer.workload import ArrivalPattern, ArrivalTrace, Transport

_NAME = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]

_DURATION = r"(\d+(?:\.\d+)?)([smh])"
_DURATION_RULE = "must be a number above 0 and s, m or h, such as 8h"


def duration_seconds(text: str) -> float:
    """Seconds of a duration such as "8h", "90m" or "30s". Raises ValueError for anything else."""
    match = re.fullmatch(_DURATION, text)
    if match is None or float(match[1]) == 0:
        raise ValueError(_DURATION_RULE)
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def _seconds(value: object) -> object:
    """A text as a duration; a number is seconds already."""
    return duration_seconds(value) if isinstance(value, str) else value


Duration = Annotated[
    Positive,
    BeforeValidator(_seconds),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0},
                {"type": "string", "pattern": f"^{_DURATION}$"},
            ]
        }
    ),
]


def _day(value: object) -> object:
    """YAML reads 2026-01-01 as a date."""
    return value.isoformat() if isinstance(value, datetime.date) else value


Day = Annotated[str, BeforeValidator(_day)]


class TraceSection(Section):
    """Recorded arrivals."""

    trace: str = Field(
        description="CSV file with a column `seconds` or `timestamp`; scaled to the rate, looped"
    )

    @field_validator("trace")
    @classmethod
    def _readable(cls, trace: str, info: ValidationInfo) -> str:
        read_trace(folder_of(info) / trace)
        return trace

    def to_value(self, folder: Path) -> ArrivalTrace:
        """The recording."""
        return read_trace(folder / self.trace)


def _kind_of_arrivals(value: object) -> str:
    """Which member of the union a value is meant to be, so that only that one complains."""
    return "trace" if isinstance(value, Mapping | TraceSection) else "name"


_Arrivals = Annotated[
    Annotated[Literal["poisson", "constant"], Tag("name")] | Annotated[TraceSection, Tag("trace")],
    Discriminator(_kind_of_arrivals),
]


class TransportSection(Section):
    """How requests travel to the server."""

    protocol: Literal["grpc", "http"] = "grpc"
    encoding: Literal["binary", "json"] = Field(
        "binary", description="of tensors; json is for comparison"
    )
    shared_memory: Annotated[bool, Field(strict=True)] = Field(
        False, description="inputs lie in system shared memory; client and server share a machine"
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.encoding == "json" and (self.protocol != "http" or self.shared_memory):
            raise wrong("encoding", "json needs protocol http and no shared memory", "json")
        return self

    def to_value(self) -> Transport:
        """The transport."""
        return Transport(self.protocol, self.encoding, self.shared_memory)


class TrafficSection(Section):
    """What the fleet must serve."""

    arrivals: _Arrivals = Field(
        "poisson", description="poisson, constant, or a recorded trace; never waiting for replies"
    )
    batch_size: Count = Field(1, description="inferences that one request asks for")
    transport: TransportSection = TransportSection()
    demand_per_second: Positive = Field(500, description="requests a second, whole fleet")
    headroom: Annotated[Number, Field(ge=0, le=10)] = Field(
        0, description="share of capacity kept free above the demand"
    )

    def arrival_pattern(self, folder: Path) -> ArrivalPattern:
        """The arrivals, a trace read from its file."""
        if isinstance(self.arrivals, TraceSection):
            return self.arrivals.to_value(folder)
        return self.arrivals


class LimitSection(Section):
    """The latency that must be met."""

    percentile: Annotated[Number, Field(ge=50, le=99.9)] = 95
    latency_ms: Positive = 500


class PriceSection(Section):
    """What one instance costs; without `usd_per_hour` the shipped price list is asked."""

    instance_type: str
    usd_per_hour: Positive | None = None
    source: str | None = None
    as_of: Day | None = Field(None, description="date of the price")

    @model_validator(mode="after")
    def _priced(self, info: ValidationInfo) -> Self:
        prices: Mapping[str, Price] = (info.context or {}).get("prices", {})
        if self.usd_per_hour is None and self.instance_type not in prices:
            rule = f"must be listed ({', '.join(sorted(prices))}) where usd_per_hour is not given"
            raise wrong("instance_type", rule, self.instance_type)
        return self

    def to_value(self, prices: Mapping[str, Price]) -> Price:
        """The price with its source."""
        if self.usd_per_hour is None:
            return prices[self.instance_type]
        return Price(
            self.instance_type,
            self.usd_per_hour,
            self.source or "space file",
            self.as_of or "undated",
        )


def _distinct(values: list[Any]) -> list[Any]:
    for n, value in enumerate(values):
        if value in values[:n]:
            raise ValueError(f"values must be distinct, {value!r} is listed twice")
    return values


_Sizes = Annotated[list[Count], Field(min_length=1)]


class ParametersSection(Section):
    """What may be tried. A single value fixes a parameter."""

    runtime: Annotated[list[Runtime], Field(min_length=1)] = ["onnxruntime"]
    precision: Annotated[list[Precision], Field(min_length=1)] = ["fp32"]
    batching: Annotated[list[Annotated[bool, Field(strict=True)]], Field(min_length=1)] = [False]
    max_batch_size: Annotated[list[Count], Field(min_length=1)] = [8]
    preferred_batch_sizes: Annotated[
        list[Literal["none", "half", "powers"] | _Sizes], Field(min_length=1)
    ] = Field(["none"], description="none, half, powers (derived from max_batch_size), or sizes")
    max_queue_delay_us: Annotated[
        list[Annotated[int, Field(ge=0, strict=True)]], Field(min_length=1)
    ] = [0]
    instance_count: Annotated[list[Count], Field(min_length=1)] = [1]
    intra_op_threads: Annotated[list[Count], Field(min_length=1)] = [1]
    padding: Annotated[list[Literal["max"] | _Sizes], Field(min_length=1)] = Field(
        ["max"], description="max, or lengths that requests are padded up to"
    )

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
            name: [tuple(sorted(v)) if isinstance(v, list) else v for v in getattr(self, name)]
            for name in type(self).model_fields
        }
        return parameters_in_order(model, values)


class MeasurementSection(Section):
    """How long each load level lasts, and how many requests confirm a finalist at its capacity."""

    saturation_seconds: Duration = 8.0
    check_seconds: Duration = 10.0
    warmup_seconds: Duration = 1.0
    confirm_seconds: Duration = 20.0
    confirm_requests: Count = 5000


class BudgetSection(Section):
    """When the search ends, whichever comes first."""

    trials: Count = 60
    wall_clock: Duration = 8 * 3600.0


class SpaceSection(Section):
    """The whole file."""

    study: _NAME
    models: Annotated[dict[_NAME, ModelSection], Field(min_length=1, max_length=1)]
    traffic: TrafficSection = TrafficSection()
    limit: LimitSection = LimitSection()
    price: PriceSection
    parameters: ParametersSection
    conditions: list[str] = []
    measurement: MeasurementSection = MeasurementSection()
    budget: BudgetSection = BudgetSection()

    @field_validator("parameters")
    @classmethod
    def _fit_the_model(
        cls, parameters: ParametersSection, info: ValidationInfo
    ) -> ParametersSection:
        mistakes = []
        for name, model in info.data.get("models", {}).items():
            if model.source.onnx is not None and "pytorch" in parameters.runtime:
                rule = f"pytorch needs a transformers source, models.{name} is an ONNX file"
                mistakes.append(wrong("runtime", rule, parameters.runtime))
            longest = model.lengths.to_value().longest
            for n, sizes in enumerate(parameters.padding):
                if isinstance(sizes, list) and max(sizes) > longest:
                    rule = f"must not be above the longest length ({longest})"
                    mistakes.append(wrong(f"padding.{n}", rule, sizes))
        raise_all(cls, mistakes)
        return parameters


def json_schema() -> dict[str, Any]:
    """JSON schema of the file, for editors."""
    schema = SpaceSection.model_json_schema()
    for parameter in schema["$defs"]["ParametersSection"]["properties"].values():
        several = {key: parameter.pop(key) for key in ("type", "items", "minItems")}
        parameter["anyOf"] = [several["items"], several]
    return schema
