"""Reads space files into values, and reports every mistake at once, with its key and line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from optimizer.configuration.deployed_settings import DeployedSettings
from optimizer.configuration.hardware import Gpu, Hardware
from optimizer.configuration.hosting import EngineSettings, Host
from optimizer.configuration.model_space import EmptySpaceError, Limits, ModelSpace
from optimizer.configuration.parameters import (
    Parameter,
    is_any_field,
    model_and_parameter,
    stored_name,
)
from optimizer.configuration.search_space import SearchSpace
from optimizer.errors import Mistake, RequirementError, SpaceFileError, UsageError
from optimizer.files.untrusted import UnreadableError, read_text
from optimizer.files.untrusted_yaml import UnreadableYamlError, parse_yaml
from optimizer.measurement.cost import Demand, Price
from optimizer.space_file.deployed_models import (
    CompleteSource,
    ReadSettings,
    as_it_is,
    deployed_sources,
    no_repository,
)
from optimizer.space_file.mistakes import line_of, mistake, one_for_each_value, short
from optimizer.space_file.parameter_schema import ParametersSection, deprecations
from optimizer.space_file.pipelines import (
    DeployedModels,
    graph_of,
    listed_values,
    read_models,
)
from optimizer.space_file.schema import SpaceSection, mistakes_with_requests
from optimizer.space_file.section import Count
from optimizer.space_file.server_schema import ServerSection
from optimizer.workload.arrivals import ArrivalTrace
from optimizer.workload.model_spec import AccuracyEvidence, ModelSpec
from optimizer.workload.streams import LatencyLimit, Stream, Workload


@dataclass(frozen=True)
class MeasurementSettings:
    """How long load levels last, and how many requests confirm a finalist.

    Attributes:
        confirm_seconds: None stands for the default of the device.
    """

    saturation_seconds: float
    check_seconds: float
    warmup_seconds: float
    confirm_seconds: float | None
    confirm_requests: int


@dataclass(frozen=True)
class Budget:
    """The search ends after `trials` measured configurations or `wall_clock_seconds`."""

    trials: int
    wall_clock_seconds: float


_COUNT: TypeAdapter[int] = TypeAdapter(Count)
_CONDITIONS: TypeAdapter[list[str]] = TypeAdapter(Annotated[list[str], Field(max_length=100)])

_MOST_MISTAKES = 1_000
"""Number of mistakes that are reported; a file with more is no space file."""

_WEAKEST_FIRST: tuple[AccuracyEvidence, ...] = ("synthetic", "dataset", "task")


@dataclass(frozen=True)
class Space:
    """The content of a space file as values.

    Attributes:
        engines: how TensorRT engines are built; None without GPUs.
        models: of the file, each after the steps that it is composed of.
        content: the file's keys with their defaults, less the study's name and budget; a study is
            resumed only with the same.
        deployed: settings of the models that are deployed already, by name.
        notes: about old names in the file, and content of other files that is not used.
    """

    study: str
    host: Host
    engines: EngineSettings | None
    models: tuple[ModelSpec, ...]
    workload: Workload
    price: Price
    demand: Demand
    search_space: SearchSpace
    measurement: MeasurementSettings
    budget: Budget
    content: Mapping[str, Any]
    deployed: Mapping[str, DeployedSettings] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def accuracy_evidence(self) -> AccuracyEvidence:
        """The weakest evidence of the models' accuracy figures."""
        return min((m.accuracy_evidence for m in self.models), key=_WEAKEST_FIRST.index)


def load_space(
    path: Path,
    prices: Mapping[str, Price],
    hardware: Hardware,
    read_settings: ReadSettings = no_repository,
    complete: CompleteSource = as_it_is,
) -> Space:
    """Read a space file.

    Args:
        path: YAML file; paths in it are relative to its folder.
        prices: price list by instance type.
        hardware: hardware of this machine, whose GPUs the file may select.
        read_settings: reads the settings of models that are deployed already.
        complete: completes their configurations before.

    Raises:
        SpaceFileError: with every mistake.
        RequirementError: the file asks for GPUs that the machine lacks.
    """
    document = _read_yaml(path)
    try:
        section = SpaceSection.model_validate(
            document, context={"folder": path.parent, "prices": prices}
        )
    except ValidationError as error:
        errors = error.errors()[:_MOST_MISTAKES]
        mistakes = one_for_each_value(mistake(each, document) for each in errors)
        mistakes += _mistakes_beside_others(document, hardware)
        raise SpaceFileError(path, mistakes) from error
    sources = deployed_sources(section, path, _gpus(section.server, hardware), complete)
    deployed = read_models(section, path, sources, read_settings)
    space = _to_value(section, path, prices, hardware, deployed)
    mistakes = list(_space_mistakes(space.search_space, document))
    for model in space.models:
        mistakes += mistakes_with_requests(section, model, path.parent)
    if mistakes:
        raise SpaceFileError(path, mistakes)
    return replace(space, notes=(*deprecations(document), *_unused(space.models)))


def fixed_at(space: Space, settings: Mapping[str, str]) -> Space:
    """Return the space whose only point is that of `only_point`. Raises UsageError."""
    fixed = only_point(space.search_space, settings)
    wrong = [
        f"  {model.model}.{parameter}: {rule}"
        for model in fixed.models
        if model.model in space.deployed
        for parameter, rule in space.deployed[model.model].mistakes(
            {p.name: p.values for p in model.parameters if _is_set(fixed, p, settings)}
        )
    ]
    if wrong:
        raise UsageError("\n".join(["--set:", *wrong]))
    return replace(space, search_space=fixed)


def only_point(
    searched: SearchSpace, settings: Mapping[str, str], *, with_effect: bool = True
) -> SearchSpace:
    """Return a space of one point: some parameters as set, the others as in the baseline.

    If the baseline's values are impossible with the settings, or leave a setting without effect,
    the nearest values are taken.

    Args:
        settings: YAML text by parameter, as "precision" (for every model) or "model.precision".
            Values need not be in the space's lists, and its conditions do not apply.
        with_effect: refuse a setting without effect, such as a queue delay without batching.

    Raises:
        UsageError: with every wrong setting.
    """
    parameters: list[Parameter] = []
    wrong = list(_unknown_models(searched, settings))
    for model in searched.models:
        try:
            parameters += _with_settings(model, _settings_of(searched, model.model, settings))
        except ValidationError as error:
            mistakes = [mistake(each, settings) for each in error.errors()]
            wrong += [
                each if is_any_field(each.key) else replace(each, key=each.key.split(".")[0])
                for each in mistakes
            ]
    if wrong:
        raise UsageError("\n".join(["--set:", *(f"  {m}" for m in one_for_each_value(wrong))]))
    limits = Limits(request_size=searched.limits.request_size)
    allowed = replace(searched, parameters=tuple(parameters), limits=limits)
    given = ", ".join(f"{key}={text}" for key, text in settings.items())
    try:
        used = [p.key for p in parameters if with_effect and _is_set(searched, p, settings)]
        chosen = allowed.baseline_with_effect(used)
    except EmptySpaceError as error:
        raise UsageError(f"--set: {error}; with {given}") from error
    if chosen is None:
        raise UsageError(
            f"--set: a value has no effect with {given}: batch sizes and queue delays need "
            "batching=true and a max_batch_size above traffic.batch_size, parameters of engines "
            "need runtime=tensorrt, and a rate_limit needs more instances than it allows"
        )
    fixed = tuple(
        replace(parameter, values=(parameter.values[at],))
        for parameter, at in zip(parameters, chosen, strict=True)
    )
    return replace(allowed, parameters=fixed)


def read_host(settings: Mapping[str, object], folder: Path) -> Host:
    """Return the host of a server section that is not part of a space file.

    Args:
        settings: keys of the section; `gpus` is ignored.
        folder: folder to which paths are relative.

    Raises:
        UsageError: with every wrong setting.
    """
    given = {name: value for name, value in settings.items() if name != "gpus"}
    try:
        return ServerSection.model_validate(given).to_value(folder)
    except ValidationError as error:
        mistakes = "; ".join(str(mistake(each, given)) for each in error.errors())
        raise UsageError(f"server: {mistakes}") from error


def _with_settings(model: ModelSpace, settings: Mapping[str, str]) -> tuple[Parameter, ...]:
    """Return the model's parameters, some of them set. Raises pydantic's ValidationError."""
    values: dict[str, Any] = {
        parameter.name: [list(v) if isinstance(v, tuple) else v for v in parameter.values]
        for parameter in model.parameters
    }
    for key, text in settings.items():
        _, name = model_and_parameter(key)
        values.pop(stored_name(name), None)
        values[name] = [_set_value(key, text)]
    deployed = {parameter.name: parameter.deployed for parameter in model.parameters}
    return ParametersSection.model_validate(values).to_values(model.model, deployed)


def _unknown_models(searched: SearchSpace, settings: Mapping[str, str]) -> Iterator[Mistake]:
    models = [model.model for model in searched.models]
    for key in settings:
        model, _ = model_and_parameter(key)
        if model not in ("", *models):
            yield Mistake(key[:80], f"{model[:80]} is none of the models, {', '.join(models)}")


def _settings_of(
    searched: SearchSpace, model: str, settings: Mapping[str, str]
) -> Mapping[str, str]:
    """Return the settings that are for one of the models."""
    own = {}
    for key, text in settings.items():
        of, name = model_and_parameter(key)
        common = searched.concerns(model, stored_name(name))
        if of == model or (of == "" and common):
            own[key] = text
    return own


def _is_set(searched: SearchSpace, parameter: Parameter, settings: Mapping[str, str]) -> bool:
    own = _settings_of(searched, parameter.model, settings)
    return any(stored_name(model_and_parameter(key)[1]) == parameter.name for key in own)


def _set_value(key: str, text: str) -> Any:
    try:
        return parse_yaml(text)
    except UnreadableYamlError as error:
        raise UsageError(
            f"--set: {key[:80]}: must be a value in YAML ({error}), got {short(text)}"
        ) from error


def _read_yaml(path: Path) -> Any:
    try:
        document = parse_yaml(read_text(path))
    except UnreadableYamlError as error:
        raise SpaceFileError(path, [Mistake("YAML", str(error), line=error.line)]) from error
    except UnreadableError as error:
        raise SpaceFileError(path, [Mistake("file", str(error))]) from error
    if not isinstance(document, Mapping):
        raise SpaceFileError(path, [Mistake("file", "must hold keys and values", short(document))])
    return document


def _mistakes_beside_others(document: Any, hardware: Hardware) -> Iterator[Mistake]:
    """Yield the mistakes of the points, if the sections that define them have none."""
    conditions, traffic = document.get("conditions", []), document.get("traffic", {})
    try:
        size = _COUNT.validate_python(traffic.get("batch_size", 1))
        parameters = ParametersSection.model_validate(document.get("parameters"))
        server = ServerSection.model_validate(document.get("server", {}))
        conditions = _CONDITIONS.validate_python(conditions)
    except (ValidationError, AttributeError):
        return
    limits = Limits(tuple(conditions), size)
    chosen = replace(hardware, gpus=_gpus(server, hardware) if server.gpus != "none" else ())
    space = SearchSpace(parameters.to_values("model"), chosen, limits)
    yield from _space_mistakes(space, document)


def _space_mistakes(space: SearchSpace, document: Any) -> Iterator[Mistake]:
    """Yield the mistakes of the points of a space whose sections have none."""
    try:
        wrong = list(space.check_conditions())
        if not wrong:
            len(space)
    except EmptySpaceError as error:
        yield Mistake("parameters", str(error), None, line_of(document, ["parameters"]))
        return
    for condition_error in wrong:
        rule, text = condition_error.args
        at = [str(c) for c in document["conditions"]].index(text)
        line = line_of(document, ["conditions", at])
        yield Mistake(f"conditions.{at}", str(rule), short(text), line)


def _unused(models: Sequence[ModelSpec]) -> Iterator[str]:
    """Yield a note for each key of files of requests that has no meaning here."""
    for file in filter(None, (model.payloads.file for model in models)):
        for key in file.unused:
            compared = key == "validation_data"
            reason = "; outputs are compared with the model's own" if compared else ""
            yield f"{file.path}: {key} is not used{reason}"


def _to_value(
    section: SpaceSection,
    path: Path,
    prices: Mapping[str, Price],
    hardware: Hardware,
    deployed: DeployedModels,
) -> Space:
    folder, traffic = path.parent, section.traffic
    targets = {name: model.to_value(name, folder) for name, model in section.models.items()}
    targets |= {
        name: replace(target, source=deployed[name].source)
        for name, target in targets.items()
        if name in deployed
    }
    streams = tuple(_stream(section, model, folder) for model in targets.values())
    workload = Workload(streams, traffic.transport.to_value())
    host = section.server.to_value(folder)
    chosen = replace(hardware, gpus=_gpus(section.server, hardware))
    models = _in_load_order(targets, deployed)
    return Space(
        study=section.study,
        host=host,
        engines=section.engines.to_value(host, chosen.gpus[0]) if chosen.gpus else None,
        models=models,
        deployed={name: model.settings for name, model in deployed.items()},
        workload=workload,
        price=section.price.to_value(prices),
        demand=Demand(workload.demand_per_second, traffic.headroom, traffic.batch_size),
        search_space=SearchSpace(
            tuple(p for model in models for p in _parameters(section, model.name, deployed)),
            chosen,
            Limits(tuple(section.conditions), traffic.batch_size),
            graph_of(deployed),
        ),
        measurement=MeasurementSettings(**section.measurement.model_dump()),
        budget=Budget(section.budget.trials, section.budget.wall_clock),
        content=_content(section, streams),
    )


def _in_load_order(
    targets: Mapping[str, ModelSpec], deployed: DeployedModels
) -> tuple[ModelSpec, ...]:
    """Return the models of the file, each after the steps that it is composed of."""
    ordered: list[ModelSpec] = []
    for target in targets.values():
        own = {name: model for name, model in deployed.items() if model.of == target.name}
        ordered += [model.spec(name, target) for name, model in own.items()] or [target]
    return tuple(ordered)


def _parameters(
    section: SpaceSection, name: str, deployed: DeployedModels
) -> tuple[Parameter, ...]:
    if name in deployed:
        model = deployed[name]
        return model.settings.parameters(name, listed_values(section, name, model))
    own = section.parameters.with_those_of(section.models[name].parameters)
    return own.of(name).to_values(name)


def _stream(section: SpaceSection, model: ModelSpec, folder: Path) -> Stream:
    own, traffic = section.models[model.name], section.traffic
    limit = own.limit or section.limit
    return Stream(
        name=model.name,
        target=model.name,
        arrivals=traffic.arrival_pattern(folder),
        payloads=model.payloads,
        limit=LatencyLimit(limit.percentile, limit.latency_ms),
        demand_per_second=own.demand_per_second or traffic.demand_per_second,
        batch_size=traffic.batch_size,
        version=model.version,
    )


def _gpus(server: ServerSection, hardware: Hardware) -> tuple[Gpu, ...]:
    """Return the GPUs that the file selects, in the order in which a server numbers them."""
    if server.gpus == "none":
        return ()
    if not hardware.gpus:
        raise RequirementError(
            f"server.gpus is {server.gpus}, but this machine has no working NVIDIA driver: "
            "install one, or search on the CPU with gpus: none"
        )
    if server.gpus == "all":
        return hardware.gpus
    by_name = {str(n): gpu for n, gpu in enumerate(hardware.gpus)}
    by_name |= {gpu.uuid: gpu for gpu in hardware.gpus}
    unknown = [str(name) for name in server.gpus if str(name) not in by_name]
    if unknown:
        raise RequirementError(
            f"server.gpus: this machine has {', '.join(by_name)}; got {', '.join(unknown)}"
        )
    chosen = {by_name[str(name)] for name in server.gpus}
    return tuple(gpu for gpu in hardware.gpus if gpu in chosen)


def _content(section: SpaceSection, streams: Sequence[Stream]) -> Mapping[str, Any]:
    """Return `Space.content`, with the digests of a recorded trace and of files of requests."""
    content = section.model_dump(mode="json", by_alias=True, exclude={"study", "budget"})
    for stream in streams:
        if isinstance(stream.arrivals, ArrivalTrace):
            content["traffic"]["arrivals"]["sha256"] = stream.arrivals.sha256
        if stream.payloads.file is not None:
            content["models"][stream.target]["requests_sha256"] = stream.payloads.file.sha256
    return content
