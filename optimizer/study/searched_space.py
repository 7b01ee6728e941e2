"""searched.json: the space, workload and price of a search, without its model files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from optimizer.configuration.model_graph import NO_GRAPH
from optimizer.configuration.parameter_definition import Value
from optimizer.configuration.search_space import SearchSpace
from optimizer.errors import DamagedStudyError
from optimizer.files.atomic import write_json
from optimizer.files.untrusted import check_ranges
from optimizer.measurement.cost import Demand, Price
from optimizer.space_file.parameter_schema import ParametersSection
from optimizer.space_file.section import first_mistake
from optimizer.study.directory import StudyDirectory
from optimizer.study.record_store import refuse_unsafe_names
from optimizer.workload.streams import Payloads, Workload


@dataclass(frozen=True)
class StepRequests:
    """The requests that a step of a generated pipeline gets from the step before it."""

    model: str
    payloads: Payloads


@dataclass(frozen=True)
class SearchedSpace:
    """The search space, and what its configurations are judged by.

    Attributes:
        search_space: without the artefacts that the prepare phase dropped.
        steps: of generated pipelines.
    """

    study: str
    search_space: SearchSpace
    workload: Workload
    price: Price
    demand: Demand
    steps: tuple[StepRequests, ...] = field(default=(), kw_only=True)

    def payloads_of(self, model: str) -> Payloads:
        """Return the requests to a model; without tensors for a step as it is deployed."""
        of_streams = ((s.target, s.payloads) for s in self.workload.streams)
        of_steps = ((step.model, step.payloads) for step in self.steps)
        return dict([*of_steps, *of_streams]).get(model, Payloads(()))


_Searched = TypeVar("_Searched", bound=SearchedSpace)
_JSON = TypeAdapter(SearchedSpace)


def write_searched(directory: StudyDirectory, space: SearchedSpace) -> None:
    """Write searched.json. Raises StorageError."""
    write_json(directory.searched, _JSON.dump_python(space, mode="json"))


def read_searched(directory: StudyDirectory) -> SearchedSpace:
    """Return the content of searched.json. Raises DamagedStudyError."""
    path = directory.searched
    try:
        searched = checked(_JSON.validate_python(directory.read_json(path)))
    except ValidationError as error:
        raise DamagedStudyError(path, first_mistake(error)) from error
    except ValueError as error:
        raise DamagedStudyError(path, error) from error
    return searched


def checked(searched: _Searched) -> _Searched:
    """Check a searched space that was read from a file of unknown origin.

    Returns:
        The same, with the defaults of parameters that came after the file was written.

    Raises:
        ValueError: with the first rule that it breaks.
    """
    check_ranges(searched)
    space, streams = searched.search_space, searched.workload.streams
    if not (streams and space.parameters):
        raise ValueError("must have a stream of requests and parameters")
    refuse_unsafe_names({searched.study, *(p.model for p in space.parameters)})
    for model in space.models:
        listed = {p.name: [_listed(v) for v in p.values] for p in model.parameters}
        if len(listed) < len(model.parameters):
            raise ValueError(f"search_space.parameters lists one of {model.model} twice")
        ordered = ParametersSection.model_validate(listed).to_values(model.model)
        own = [(p.name, p.values) for p in model.parameters]
        if [(p.name, p.values) for p in ordered if p.name in listed] != own:
            raise ValueError(f"search_space.parameters of {model.model} must be in order")
    space = space.completed()
    (space.graph or NO_GRAPH).check([model.model for model in space.models])
    check_workload(searched.workload, space.targets)
    for step in searched.steps:
        _check_payloads(step.payloads)
    if wrong := next(space.check_conditions(), None):
        rule, text = wrong.args
        raise ValueError(f"search_space.limits.conditions: {rule}, got {text[:80]!r}")
    len(space)
    return replace(searched, search_space=space)


def check_workload(workload: Workload, models: Sequence[str]) -> None:
    """Raise ValueError where the streams of a file cannot be requests to these models."""
    check_ranges(workload, "workload")
    for stream in workload.streams:
        if stream.target not in models:
            raise ValueError(f"workload.streams: {stream.target!r} is none of the models")
        if not 50 <= stream.limit.percentile <= 99.9:
            raise ValueError("workload.streams: a percentile must be from 50 to 99.9")
        if stream.repeats is not None and stream.repeats.population < 1:
            raise ValueError("workload.streams: repeats.population must be at least 1")
        if stream.keys and min(stream.keys) < 0:
            raise ValueError("workload.streams: keys of arrivals must be at least 0")
        _check_payloads(stream.payloads)


def _check_payloads(payloads: Payloads) -> None:
    lengths, file = payloads.lengths, payloads.file
    if not lengths.lengths or len(lengths.lengths) != len(lengths.weights):
        raise ValueError("payloads.lengths must have a weight for each length")
    if not min(*lengths.lengths, *lengths.weights) > 0:
        raise ValueError("payloads.lengths must have lengths and weights above 0")
    if file is not None and not (file.shapes and min(*file.shapes, file.requests) > 0):
        raise ValueError("payloads.file must have requests, and requests of each shape")


def _listed(value: Value) -> object:
    return list(value) if isinstance(value, tuple) else value
