"""The YAML file that a person writes, and the values that it stands for.

Every mistake is reported at once, with its key and line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from optimizer.cost import Demand, Price
from optimizer.errors import Mistake, SpaceFileError, UsageError
from optimizer.model_schema import Count
from optimizer.model_spec import ModelSpec
from optimizer.search_space import EmptySpaceError, SearchSpace
from optimizer.space_schema import ParametersSection, SpaceSection
from optimizer.workload import ArrivalTrace, LatencyLimit, Stream, Workload


@dataclass(frozen=True)
class MeasurementSettings:
    """Seconds that load levels last: saturation, check, warm-up before each, confirmation."""

    saturation_seconds: float
    check_seconds: float
    warmup_seconds: float
    confirm_seconds: float
    confirm_requests: int


@dataclass(frozen=True)
class Budget:
    """The search ends after `trials` measured configurations or `wall_clock_seconds`."""

    trials: int
    wall_clock_seconds: float


@dataclass(frozen=True)
class Space:
    """Everything that a space file says, as values.

    Attributes:
        content: the file's settings with defaults filled in, less study name and budget: what a
            study cannot be resumed without.
    """

    study: str
    model: ModelSpec
    workload: Workload
    price: Price
    demand: Demand
    search_space: SearchSpace
    measurement: MeasurementSettings
    budget: Budget
    content: Mapping[str, Any]


def load_space(path: Path, prices: Mapping[str, Price], cores: int) -> Space:
    """Read a space file.

    Args:
        path: the YAML file; paths in it are relative to its folder.
        prices: price list by instance type.
        cores: CPU cores of the slot that trials run on.

    Raises:
        SpaceFileError: with every mistake found.
    """
    document = _read_yaml(path)
    try:
        section = SpaceSection.model_validate(
            document, context={"folder": path.parent, "prices": prices}
        )
    except ValidationError as error:
        mistakes = _one_for_each_value(_mistake(e, document) for e in error.errors())
        mistakes += _mistakes_beside_others(document, cores)
        raise SpaceFileError(path, mistakes) from error
    space = _to_value(section, path.parent, prices, cores)
    mistakes = list(_space_mistakes(space.search_space, document))
    if mistakes:
        raise SpaceFileError(path, mistakes)
    return space


def fixed_at(space: Space, settings: Mapping[str, str]) -> Space:
    """The space that holds only one point: some parameters as set, the rest the baseline's.

    Where the baseline's values do not go with what is set, the nearest that do.

    Args:
        settings: YAML text by parameter, as "precision" or "model.precision". Values need not be
            among those that the space lists, and its conditions do not apply.

    Raises:
        UsageError: with every setting that is wrong.
    """
    searched = space.search_space
    values: dict[str, list[Any]] = {
        parameter.name: [list(v) if isinstance(v, tuple) else v for v in parameter.values]
        for parameter in searched.parameters
    }
    for key, text in settings.items():
        values[key.removeprefix(f"{space.model.name}.")] = [YAML(typ="safe").load(text)]
    try:
        parameters = ParametersSection.model_validate(values).to_values(space.model.name)
    except ValidationError as error:
        wrong = _one_for_each_value(_mistake(each, values) for each in error.errors())
        lines = [f"  {replace(mistake, key=mistake.key.split('.')[0])}" for mistake in wrong]
        raise UsageError("\n".join(["--set:", *lines])) from error
    allowed = SearchSpace(parameters, (), searched.cores, searched.request_size)
    try:
        baseline = allowed.baseline
    except EmptySpaceError as error:
        given = ", ".join(f"{key}={text}" for key, text in settings.items())
        raise UsageError(f"--set: {error}; with {given}") from error
    fixed = tuple(
        replace(parameter, values=(parameter.values[at],))
        for parameter, at in zip(parameters, baseline, strict=True)
    )
    return replace(
        space, search_space=SearchSpace(fixed, (), searched.cores, searched.request_size)
    )


def _read_yaml(path: Path) -> Any:
    try:
        document = YAML(typ="rt").load(path)
    except OSError as error:
        raise SpaceFileError(
            path, [Mistake("file", f"must be readable ({error.strerror})")]
        ) from error
    except UnicodeDecodeError as error:
        raise SpaceFileError(path, [Mistake("file", "must be UTF-8 text")]) from error
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else None
        rule = " ".join(str(error.problem).split())
        raise SpaceFileError(path, [Mistake("YAML", rule, line=line)]) from error
    except YAMLError as error:
        raise SpaceFileError(path, [Mistake("YAML", " ".join(str(error).split()))]) from error
    if not isinstance(document, Mapping):
        raise SpaceFileError(path, [Mistake("file", "must hold keys and values", repr(document))])
    return document


def _mistake(error: Mapping[str, Any], document: Any) -> Mistake:
    """A pydantic error as a mistake with key, rule, value and line."""
    context = error.get("ctx") or {}
    below = [part for part in str(context.get("key", "")).split(".") if part]
    location = _existing(document, error["loc"], error["type"] == "missing")
    location = _existing(document, [*location, *below], absent_last=True)
    rule, value = error["msg"].removeprefix("Value error, "), context.get("value")
    if error["type"] == "extra_forbidden":
        rule = "unknown key"
    elif error["type"] == "missing":
        rule = "is required"
    elif value is None:
        rule = re.sub(r"^\w+ should ", "must ", rule)
        value = _short(error["input"])
    key = ".".join(str(part) for part in location) or "file"
    return Mistake(key, rule, value, _line(document, location))


def _existing(document: Any, location: Sequence[Any], absent_last: bool) -> list[Any]:
    """The location as keys of the document: pydantic adds parts for union members, dropped here.

    Args:
        absent_last: whether the last part is a key that is not there.
    """
    found: list[Any] = []
    node = document
    for n, part in enumerate(location):
        # Text where a key or an index was joined to others by dots, or is a number in YAML.
        at = int(part) if isinstance(part, str) and part.isdecimal() else part
        if isinstance(node, Mapping) and (part in node or at in node):
            at = part if part in node else at
        elif not (isinstance(node, list) and isinstance(at, int) and at < len(node)):
            if absent_last and n == len(location) - 1 and isinstance(node, Mapping):
                found.append(part)
            continue
        node = node[at]
        found.append(at)
    return found


def _one_for_each_value(mistakes: Iterable[Mistake]) -> list[Mistake]:
    """Join what the members of a union say of the same value: any of them would do."""
    joined: dict[tuple[str, str | None], Mistake] = {}
    for mistake in mistakes:
        known = joined.get((mistake.key, mistake.value))
        rule = f"{known.rule}, or {mistake.rule}" if known is not None else mistake.rule
        joined[mistake.key, mistake.value] = replace(mistake, rule=rule)
    return list(joined.values())


def _line(document: Any, location: Sequence[Any]) -> int | None:
    """1-based line of the deepest part of the location that stands in the file."""
    line, node = None, document
    for part in location:
        try:
            is_map = isinstance(node, Mapping)
            position = node.lc.key(part) if is_map else node.lc.item(part)
            line, node = position[0] + 1, node[part]
        except (AttributeError, KeyError, IndexError, TypeError):
            break  # an empty map has no positions at all
    return line


def _short(value: object) -> str:
    text = repr(value if isinstance(value, str | int | float | bool | None) else _plain(value))
    return text if len(text) <= 80 else text[:77] + "..."


def _plain(value: object) -> object:
    """Ruamel's containers as built-in ones, so that messages show what was written."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value


def _mistakes_beside_others(document: Any, cores: int) -> Iterator[Mistake]:
    """Those of the points, where the sections that they come from are right."""
    conditions, traffic = document.get("conditions", []), document.get("traffic", {})
    try:
        size = TypeAdapter(Count).validate_python(traffic.get("batch_size", 1))
        parameters = ParametersSection.model_validate(document.get("parameters"))
        conditions = TypeAdapter(list[str]).validate_python(conditions)
    except (ValidationError, AttributeError):
        return
    space = SearchSpace(parameters.to_values("model"), tuple(conditions), cores, size)
    yield from _space_mistakes(space, document)


def _space_mistakes(space: SearchSpace, document: Any) -> Iterator[Mistake]:
    """What is wrong with the points of a space whose every section is right."""
    try:
        wrong = list(space.check_conditions())
        if not wrong:
            len(space)
    except EmptySpaceError as error:
        yield Mistake("parameters", str(error), None, _line(document, ["parameters"]))
        return
    for condition_error in wrong:
        rule, text = condition_error.args
        at = [str(c) for c in document["conditions"]].index(text)
        line = _line(document, ["conditions", at])
        yield Mistake(f"conditions.{at}", str(rule), repr(text), line)


def _to_value(
    section: SpaceSection, folder: Path, prices: Mapping[str, Price], cores: int
) -> Space:
    ((name, model_section),) = section.models.items()
    model = model_section.to_value(name, folder)
    traffic = section.traffic
    stream = Stream(
        name=name,
        target=name,
        arrivals=traffic.arrival_pattern(folder),
        payloads=model.payloads,
        limit=LatencyLimit(section.limit.percentile, section.limit.latency_ms),
        demand_per_second=traffic.demand_per_second,
        batch_size=traffic.batch_size,
    )
    return Space(
        study=section.study,
        model=model,
        workload=Workload((stream,), traffic.transport.to_value()),
        price=section.price.to_value(prices),
        demand=Demand(traffic.demand_per_second, traffic.headroom, traffic.batch_size),
        search_space=SearchSpace(
            section.parameters.to_values(name),
            tuple(section.conditions),
            cores,
            traffic.batch_size,
        ),
        measurement=MeasurementSettings(**section.measurement.model_dump()),
        budget=Budget(section.budget.trials, section.budget.wall_clock),
        content=_content(section, stream),
    )


def _content(section: SpaceSection, stream: Stream) -> Mapping[str, Any]:
    """See `Space.content`; a file's content belongs to it, not only its name."""
    content = section.model_dump(mode="json", by_alias=True, exclude={"study", "budget"})
    if isinstance(stream.arrivals, ArrivalTrace):
        content["traffic"]["arrivals"]["sha256"] = stream.arrivals.sha256
    return content
