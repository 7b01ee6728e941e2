"""The shape of a space file: its sections, their keys and the rules that they must meet.

`optimizer.space_file.reader` reads files with it; `optimizer.space_file.model_schema` describes
the models.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from optimizer.configuration.parameters import PARAMETERS
from optimizer.measurement.cost import OWNED, Price, Purchase
from optimizer.runtimes import RUNTIMES
from optimizer.space_file.arrival_trace import read_trace
from optimizer.space_file.model_schema import LimitSection, ModelSection
from optimizer.space_file.parameter_schema import OLD_KEYS, ParametersSection
from optimizer.space_file.section import (
    Count,
    Duration,
    Number,
    Positive,
    Section,
    Switch,
    folder_of,
    raise_all,
    wrong,
)
from optimizer.space_file.server_schema import EnginesSection, ServerSection
from optimizer.workload.arrivals import ArrivalName, ArrivalPattern, ArrivalTrace
from optimizer.workload.streams import Transport

_NAME = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


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
    Annotated[ArrivalName, Tag("name")] | Annotated[TraceSection, Tag("trace")],
    Discriminator(_kind_of_arrivals),
]


class TransportSection(Section):
    """How requests travel to the server."""

    protocol: Literal["grpc", "http"] = Field("grpc", description="of the requests")
    encoding: Literal["binary", "json"] = Field(
        "binary", description="of tensors; json is for comparison"
    )
    shared_memory: Switch = Field(
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
    transport: TransportSection = Field(
        TransportSection(), description="how requests travel to the server"
    )
    demand_per_second: Positive = Field(500, description="requests a second, whole fleet")
    headroom: Annotated[Number, Field(ge=0, le=10)] = Field(
        0, description="share of capacity kept free above the demand"
    )

    def arrival_pattern(self, folder: Path) -> ArrivalPattern:
        """The arrivals, a trace read from its file."""
        if isinstance(self.arrivals, TraceSection):
            return self.arrivals.to_value(folder)
        return self.arrivals


class PurchaseSection(Section):
    """A machine that is owned: purchase price over its lifetime, and power."""

    usd: Positive = Field(description="purchase price")
    lifetime_years: Positive = Field(4, description="over which it is written off")
    watts: Positive = Field(description="that it draws while it serves, cooling included")
    usd_per_kwh: Positive = Field(description="price of power")

    def to_value(self) -> Purchase:
        """The purchase as a value."""
        return Purchase(self.usd, self.lifetime_years, self.watts, self.usd_per_kwh)


class PriceSection(Section):
    """What one instance costs; without `usd_per_hour` or `purchase` the price list is asked."""

    instance_type: str = Field(description="its name; listed where no price is given here")
    usd_per_hour: Positive | None = Field(None, description="of the whole instance")
    purchase: PurchaseSection | None = Field(
        None, description="for a machine of your own, in place of usd_per_hour"
    )
    source: str | None = Field(
        None,
        description="where the price is from, for the report; `example` says that it is made up",
    )
    as_of: Day | None = Field(None, description="date of the price")

    @model_validator(mode="after")
    def _priced(self, info: ValidationInfo) -> Self:
        prices: Mapping[str, Price] = (info.context or {}).get("prices", {})
        if self.usd_per_hour is not None and self.purchase is not None:
            raise wrong("purchase", "must not be given beside usd_per_hour", self.purchase.usd)
        given = self.usd_per_hour is not None or self.purchase is not None
        if not given and self.instance_type not in prices:
            rule = f"must be listed ({', '.join(sorted(prices))}) where usd_per_hour is not given"
            raise wrong("instance_type", rule, self.instance_type)
        return self

    def to_value(self, prices: Mapping[str, Price]) -> Price:
        """The price with its source."""
        as_of = self.as_of or "undated"
        if self.purchase is not None:
            owned = self.purchase.to_value()
            source = self.source or f"bought, over {owned.lifetime_years:g} years, and power"
            return Price(self.instance_type, owned.usd_per_hour, source, as_of, rate=OWNED)
        if self.usd_per_hour is None:
            return prices[self.instance_type]
        return Price(self.instance_type, self.usd_per_hour, self.source or "space file", as_of)


class MeasurementSection(Section):
    """How long each load level lasts, and how many requests confirm a finalist at its capacity."""

    saturation_seconds: Duration = Field(8.0, description="of a saturated level")
    check_seconds: Duration = Field(
        10.0, description="of an open level, unless its verdict is proven sooner"
    )
    warmup_seconds: Duration = Field(1.0, description="before each level, dropped")
    confirm_seconds: Duration | None = Field(
        None, description="of each of two rounds; 20s without, 5m on a GPU, which must grow hot"
    )
    confirm_requests: Count = Field(
        5000, description="answered by each finalist at its capacity, over both rounds"
    )


class BudgetSection(Section):
    """When the search ends, whichever comes first."""

    trials: Count = Field(60, description="configurations to measure")
    wall_clock: Duration = Field(8 * 3600.0, description="time of the search")


class SpaceSection(Section):
    """The whole file."""

    study: _NAME = Field(description="its name; results are in results/NAME/")
    server: ServerSection = Field(ServerSection(), description="which server serves")
    engines: EnginesSection = Field(EnginesSection(), description="how TensorRT engines are built")
    models: Annotated[dict[_NAME, ModelSection], Field(min_length=1, max_length=32)] = Field(
        description="one, or several that share the server"
    )
    traffic: TrafficSection = Field(TrafficSection(), description="what the fleet must serve")
    limit: LimitSection = Field(LimitSection(), description="the latency that must be met")
    price: PriceSection = Field(description="what one instance costs")
    parameters: ParametersSection = Field(description="what may be tried")
    conditions: Annotated[list[str], Field(max_length=100)] = Field(
        [],
        description="further rules over parameter names and `cores`, such as "
        "`batching or max_queue_delay_microseconds == 0`",
    )
    measurement: MeasurementSection = Field(
        MeasurementSection(), description="how long a level lasts"
    )
    budget: BudgetSection = Field(BudgetSection(), description="when the search ends")

    @field_validator("models")
    @classmethod
    def _each_has_a_demand(cls, models: dict[str, ModelSection]) -> dict[str, ModelSection]:
        several = len(models) > 1
        rule = "is needed where there are several models; of one model, traffic has it"
        raise_all(
            cls,
            [
                wrong(f"{name}.demand_per_second", rule, model.demand_per_second)
                for name, model in models.items()
                if (model.demand_per_second is not None) != several
            ],
        )
        return models

    @field_validator("traffic")
    @classmethod
    def _reaches_the_server(cls, traffic: TrafficSection, info: ValidationInfo) -> TrafficSection:
        server: ServerSection | None = info.data.get("server")
        if traffic.transport.shared_memory and server and server.launcher != "embedded":
            rule = f"needs launcher embedded, a {server.launcher} server has memory of its own"
            raise wrong("transport.shared_memory", rule, value=True)
        return traffic

    @field_validator("parameters")
    @classmethod
    def _fit_the_models(
        cls, parameters: ParametersSection, info: ValidationInfo
    ) -> ParametersSection:
        mistakes: list[PydanticCustomError] = []
        for name, model in info.data.get("models", {}).items():
            mistakes += _mistakes_for(name, model, parameters.with_those_of(model.parameters))
        server: ServerSection | None = info.data.get("server")
        if server is not None and server.launcher == "remote":
            mistakes += _options_of_a_running_server(parameters)
        raise_all(cls, mistakes)
        return parameters


def _mistakes_for(
    name: str, model: ModelSection, parameters: ParametersSection
) -> Iterator[PydanticCustomError]:
    if model.source.onnx is not None:
        for runtime in parameters.listed("runtime"):
            if not RUNTIMES[runtime].graphs:
                rule = f"{runtime} needs a transformers source, models.{name} is an ONNX file"
                yield wrong("runtime", rule, parameters.listed("runtime"))
    longest = model.lengths.to_value().longest
    for n, sizes in enumerate(parameters.listed("padding")):
        if isinstance(sizes, list) and max(sizes) > longest:
            rule = f"must not be above the longest length ({longest})"
            yield wrong(f"padding.{n}", rule, sizes)


def _options_of_a_running_server(parameters: ParametersSection) -> Iterator[PydanticCustomError]:
    """Yield a mistake for each parameter of the server's command line, which cannot change now."""
    for each in PARAMETERS:
        if each.part == "server" and parameters.listed(each.name) != [each.default]:
            rule = f"must be {each.default} with launcher remote, whose server runs already"
            yield wrong(each.file_key, rule, parameters.listed(each.name))


def json_schema() -> dict[str, Any]:
    """JSON schema of the file, for editors."""
    schema = SpaceSection.model_json_schema()
    parameters = schema["$defs"]["ParametersSection"]["properties"]
    for parameter in parameters.values():
        several = {key: parameter.pop(key) for key in ("type", "items", "minItems", "maxItems")}
        parameter["anyOf"] = [several["items"], several]
    for old, key in OLD_KEYS.items():
        parameters[old] = {
            **parameters[key],
            "description": f"the old name of {key}",
            "deprecated": True,
        }
    return schema
