"""User loads and jobs in the JSON format of SageMaker Inference Recommender.

    {"TrafficPattern": {"TrafficType": "PHASES",
                        "Phases": [{"InitialNumberOfUsers": 2, "SpawnRate": 2,
                                    "DurationInSeconds": 1500}]},
     "StoppingConditions": {"MaxInvocations": 30000,
                            "ModelLatencyThresholds": [{"Percentile": "P95",
                                                        "ValueInMilliseconds": 500}]}}

or "TrafficType": "STAIRS" with "Stairs": {"DurationInSeconds", "NumberOfSteps", "UsersPerStep"}.
"ThinkTimeInSeconds" beside them is an extension of this program.

A job may also have "ResourceLimit": {"MaxNumberOfTests", "MaxParallelOfTests"}, and
"JobDurationInSeconds".
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_pascal

from optimizer.errors import UsageError
from optimizer.files.untrusted import UnreadableError, parse_json, read_bytes
from optimizer.load.stopping import StoppingConditions
from optimizer.load.user_load import Phase, UserLoad
from optimizer.workload.streams import LatencyLimit

JOB_PERCENTILE = 95.0
"""Percentile of all latency thresholds of a job, as in the recommender's custom load tests."""

MAX_USERS = 10_000
"""Concurrent users; more than one machine's load generator can simulate."""
_MOST_SECONDS = 7 * 86_400
_MOST_PHASES = 1_000
_SHOWN = 20
"""Mistakes that a message lists; it counts the rest."""

_Count = Annotated[int, Field(ge=1, le=10**9, strict=True)]
_Users = Annotated[int, Field(ge=0, le=MAX_USERS, strict=True)]
_Seconds = Annotated[float, Field(ge=1e-3, le=_MOST_SECONDS, strict=True, allow_inf_nan=False)]
_NotNegative = Annotated[float, Field(ge=0, le=1e6, strict=True, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_pascal)


class _PhaseSection(_Section):
    initial_number_of_users: _Users
    spawn_rate: _NotNegative = 0
    duration_in_seconds: _Seconds


class _StairsSection(_Section):
    duration_in_seconds: _Seconds
    number_of_steps: Annotated[int, Field(ge=1, le=_MOST_PHASES, strict=True)]
    users_per_step: Annotated[_Users, Field(ge=1)]


class _TrafficPattern(_Section):
    traffic_type: Literal["PHASES", "STAIRS"]
    phases: Annotated[list[_PhaseSection], Field(min_length=1, max_length=_MOST_PHASES)] | None = (
        None
    )
    stairs: _StairsSection | None = None

    @model_validator(mode="after")
    def _matches_its_type(self) -> Self:
        present = [key for key in ("phases", "stairs") if getattr(self, key) is not None]
        expected = self.traffic_type.lower()
        if present != [expected]:
            rule = f"TrafficType {self.traffic_type} must have only {expected.capitalize()}"
            raise ValueError(f"{rule}, got {[key.capitalize() for key in present]}")
        if self.phases is not None and all(
            p.initial_number_of_users == 0 and p.spawn_rate == 0 for p in self.phases
        ):
            raise ValueError("at least one phase must have users")
        phases = self.in_order()
        if (most := max(phase.most_users for phase in phases)) > MAX_USERS:
            raise ValueError(f"must have at most {MAX_USERS:,} users at once, got {most:,}")
        if (seconds := sum(phase.duration_in_seconds for phase in phases)) > _MOST_SECONDS:
            raise ValueError(f"must last at most {_MOST_SECONDS:,} s, got {seconds:,.0f} s")
        return self

    def in_order(self) -> tuple[Phase, ...]:
        if (stairs := self.stairs) is not None:
            return tuple(
                Phase(step * stairs.users_per_step, 0.0, stairs.duration_in_seconds)
                for step in range(1, stairs.number_of_steps + 1)
            )
        return tuple(
            Phase(p.initial_number_of_users, p.spawn_rate, p.duration_in_seconds)
            for p in self.phases or ()
        )


class _Threshold(_Section):
    percentile: Annotated[str, Field(pattern=r"^P(\d{1,2}(\.\d+)?|100)$")]
    value_in_milliseconds: _Seconds


class _StoppingConditions(_Section):
    max_invocations: _Count | None = None
    model_latency_thresholds: list[_Threshold] = []
    flat_invocations: Literal["Continue", "Stop"] = "Continue"


class _UserLoad(_Section):
    traffic_pattern: _TrafficPattern
    stopping_conditions: _StoppingConditions = _StoppingConditions()
    think_time_in_seconds: _NotNegative = 0

    def load(self) -> UserLoad:
        return UserLoad(self.traffic_pattern.in_order(), self.think_time_in_seconds)

    def conditions(self) -> StoppingConditions:
        stop = self.stopping_conditions
        thresholds = tuple(
            LatencyLimit(float(t.percentile[1:]), t.value_in_milliseconds)
            for t in stop.model_latency_thresholds
        )
        return StoppingConditions(stop.max_invocations, thresholds, stop.flat_invocations)


class _ResourceLimit(_Section):
    max_number_of_tests: _Count = 3
    max_parallel_of_tests: _Count = 1

    @model_validator(mode="after")
    def _one_at_a_time(self) -> Self:
        if self.max_parallel_of_tests != 1:
            rule = "MaxParallelOfTests must be 1: a machine measures one configuration at a time"
            raise ValueError(f"{rule}; got {self.max_parallel_of_tests}")
        return self


class _Job(_UserLoad):
    resource_limit: _ResourceLimit = _ResourceLimit()
    job_duration_in_seconds: _Seconds | None = None

    @model_validator(mode="after")
    def _feasible(self) -> Self:
        for threshold in self.conditions().model_latency_thresholds:
            if threshold.percentile != JOB_PERCENTILE:
                raise ValueError(
                    f"Percentile of a job's ModelLatencyThresholds must be P{JOB_PERCENTILE:g}; "
                    f"got P{threshold.percentile:g}"
                )
        tests, seconds = self.resource_limit.max_number_of_tests, self.load().seconds
        duration = self.job_duration_in_seconds
        if duration is not None and duration <= tests * seconds:
            rule = "JobDurationInSeconds must be above the longest time of the tests"
            raise ValueError(f"{rule}, {tests} x {seconds:g} s; got {duration:g}")
        return self


@dataclass(frozen=True)
class LoadTestJob:
    """A load test of a study's best configurations.

    Attributes:
        conditions: end each test early.
        tests: largest number of configurations to test.
        seconds: time of search and tests together, None for no bound.
    """

    load: UserLoad
    conditions: StoppingConditions
    tests: int
    seconds: float | None


def read_user_load(path: Path) -> tuple[UserLoad, StoppingConditions]:
    """Read the users and the conditions that end the load early.

    Raises:
        UsageError: when the file cannot be read, or naming every mistake in it.
    """
    user_load = _read(path, _UserLoad, "user load")
    return user_load.load(), user_load.conditions()


def read_job(path: Path) -> LoadTestJob:
    """Read a job. Raises UsageError as `read_user_load` does."""
    job = _read(path, _Job, "job")
    return LoadTestJob(
        job.load(),
        job.conditions(),
        job.resource_limit.max_number_of_tests,
        job.job_duration_in_seconds,
    )


_Read = TypeVar("_Read", bound=_UserLoad)


def _read(path: Path, kind: type[_Read], name: str) -> _Read:
    try:
        return kind.model_validate(parse_json(read_bytes(path)))
    except UnreadableError as error:
        raise UsageError(f"{path} {error}") from error
    except ValidationError as error:
        mistakes = error.errors()
        lines = [_mistake(e["loc"], e["msg"]) for e in mistakes[:_SHOWN]]
        more = [f"  and {len(mistakes) - _SHOWN} more"] if len(mistakes) > _SHOWN else []
        raise UsageError("\n".join([f"{path} is not a valid {name}:", *lines, *more])) from error


def _mistake(location: tuple[int | str, ...], message: str) -> str:
    key = ".".join(map(str, location)) or "file"
    rule = message.removeprefix("Value error, ").replace("Input should", "must")
    return f"  {key}: {rule}"
