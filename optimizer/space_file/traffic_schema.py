"""Schema of the section `traffic` of a space file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from optimizer.files.arrival_trace import read_trace
from optimizer.space_file.section import (
    Count,
    Number,
    Positive,
    Section,
    Switch,
    folder_of,
    wrong,
)
from optimizer.workload.arrivals import ArrivalName, ArrivalPattern, ArrivalTrace
from optimizer.workload.repeats import ZipfRepeats
from optimizer.workload.transport import Transport


class TraceSection(Section):
    """Recorded arrivals."""

    added_keys = ("keys",)

    keys: str | None = Field(
        None,
        description="column with equal text for equal requests, which a response cache may answer",
    )
    trace: str = Field(
        description="CSV file with a column `seconds` or `timestamp`; scaled to the rate, repeated"
    )

    @field_validator("trace")
    @classmethod
    def _readable(cls, trace: str, info: ValidationInfo) -> str:
        read_trace(folder_of(info) / trace, info.data.get("keys"))
        return trace

    def to_value(self, folder: Path) -> ArrivalTrace:
        """Return the recorded arrivals."""
        return read_trace(folder / self.trace, self.keys)


def _kind_of_arrivals(value: object) -> str:
    """Return the member of the union that is meant, so that errors are about it alone."""
    return "trace" if isinstance(value, Mapping | TraceSection) else "name"


_Arrivals = Annotated[
    Annotated[ArrivalName, Tag("name")] | Annotated[TraceSection, Tag("trace")],
    Discriminator(_kind_of_arrivals),
]


class TransportSection(Section):
    """How requests are sent to the server."""

    protocol: Literal["grpc", "http"] = Field("grpc", description="protocol of the requests")
    encoding: Literal["binary", "json"] = Field(
        "binary", description="encoding of tensors; json is for comparison"
    )
    shared_memory: Switch = Field(
        False, description="send inputs through system shared memory, on one machine"
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.encoding == "json" and (self.protocol != "http" or self.shared_memory):
            raise wrong("encoding", "json needs protocol http and no shared memory", "json")
        return self

    def to_value(self) -> Transport:
        """Return the transport."""
        return Transport(self.protocol, self.encoding, self.shared_memory)


class RepeatsSection(Section):
    """Requests out of a population, of which some are more popular than others."""

    zipf: Annotated[Number, Field(ge=0, le=10)] = Field(
        description="exponent of Zipf's law: the request of rank k has the popularity k^-exponent"
    )
    population: Annotated[int, Field(ge=1, le=10**6, strict=True)] = Field(
        description="number of different requests"
    )

    def to_value(self) -> ZipfRepeats:
        """Return the popularity of the requests."""
        return ZipfRepeats(self.zipf, self.population)


class TrafficSection(Section):
    """The traffic that the fleet must serve."""

    added_keys = ("repeats",)

    arrivals: _Arrivals = Field(
        "poisson",
        description="poisson, constant, or a recorded trace; requests never wait for replies",
    )
    repeats: RepeatsSection | None = Field(
        None,
        description="how requests repeat, for each model separately; by default no two "
        "requests are equal, or as the keys of a recorded trace say",
    )
    batch_size: Count = Field(1, description="inferences per request")
    transport: TransportSection = Field(
        TransportSection(), description="how requests are sent to the server"
    )
    demand_per_second: Positive = Field(500, description="requests per second to the whole fleet")
    headroom: Annotated[Number, Field(ge=0, le=10)] = Field(
        0, description="spare capacity above the demand, as a share of the demand"
    )

    @model_validator(mode="after")
    def _repeats_once(self) -> Self:
        if self.repeats is not None and getattr(self.arrivals, "keys", None) is not None:
            rule = "must be left out: the keys of the recorded trace tell what repeats"
            raise wrong("repeats", rule, self.repeats.population)
        return self

    def arrival_pattern(self, folder: Path) -> ArrivalPattern:
        """Return the arrivals; a trace is read from its file."""
        if isinstance(self.arrivals, TraceSection):
            return self.arrivals.to_value(folder)
        return self.arrivals
