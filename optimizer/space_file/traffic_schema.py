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
    Duration,
    Number,
    Positive,
    Section,
    Switch,
    folder_of,
    wrong,
)
from optimizer.workload.arrivals import ArrivalName, ArrivalPattern, ArrivalTrace, Bursts
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


class BurstsSection(Section):
    """Independent arrivals at a rate that alternates between high and low."""

    bursts: Annotated[Number, Field(gt=1, le=1000)] = Field(
        description="rate during a burst, in multiples of the mean rate"
    )
    burst_seconds: Duration = Field(description="length of a burst")
    period_seconds: Duration = Field(
        description="time from the beginning of a burst to that of the next; load levels have "
        "whole periods"
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        least = self.bursts * self.burst_seconds
        if self.period_seconds < least * (1 - _ROUNDING):
            rule = (
                f"must be at least bursts x burst_seconds, {least:g} s: a burst has "
                "no more requests than its period"
            )
            raise wrong("period_seconds", rule, self.period_seconds)
        return self

    def to_value(self) -> Bursts:
        """Return the alternating rate."""
        return Bursts(self.bursts, self.burst_seconds, self.period_seconds)


_ROUNDING = 1e-9


def _kind_of_arrivals(value: object) -> str:
    """Return the member of the union that is meant, so that errors are about it alone."""
    if isinstance(value, BurstsSection) or (isinstance(value, Mapping) and "bursts" in value):
        return "in_bursts"
    return "trace" if isinstance(value, Mapping | TraceSection) else "name"


_Arrivals = Annotated[
    Annotated[ArrivalName, Tag("name")]
    | Annotated[TraceSection, Tag("trace")]
    | Annotated[BurstsSection, Tag("in_bursts")],
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
        description="poisson, constant, bursts, or a recorded trace; requests never wait for "
        "replies",
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
        if isinstance(self.arrivals, BurstsSection):
            return self.arrivals.to_value()
        return self.arrivals
