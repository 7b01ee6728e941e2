"""Reads space files into values, and reports every mistake at once, with its key and line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from optimizer.configuration.conditions import names_a_model
from optimizer.configuration.deployed_settings import DeployedSettings
from optimizer.configuration.hardware import Gpu, Hardware
from optimizer.configuration.hosting import EmbeddedHost, EngineSettings, Host
from optimizer.configuration.model_space import EmptySpaceError, Limits
from optimizer.configuration.named_parameters import Parameter
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
    parameters_of,
    read_models,
)
from optimizer.space_file.price_schema import PriceSection
from optimizer.space_file.repetition import repetition_mistakes
from optimizer.space_file.schema import SpaceSection, mistakes_with_requests
from optimizer.space_file.section import Count
from optimizer.space_file.server_schema import ServerSection
from optimizer.workload.arrivals import ArrivalTrace
from optimizer.workload.model_spec import AccuracyEvidence, ModelSpec, SoftmaxSource
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
    """The search ends after `trials` configurations, and the run after `wall_clock_seconds`.

    Attributes:
        regret_percent: bound on the regret that ends a guided search; None ends it when no
            configuration is expected to save 1 %.
    """

    trials: int
    wall_clock_seconds: float
    regret_percent: float | None = None


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
        judged = (m for m in self.models if not isinstance(m.source, SoftmaxSource))
        return min((m.accuracy_evidence for m in judged), key=_WEAKEST_FIRST.index)


def load_space(
    path: Path,
    prices: Mapping[str, Price],
    hardware: Hardware,
    read_settings: ReadSettings = no_repository,
    complete: CompleteSource = as_it_is,
    accelerator_type: str | None = None,
) -> Space:
    """Read a space file.

    Args:
        path: YAML file; paths in it are relative to its folder.
        prices: price list by instance type.
        hardware: hardware of this machine, whose GPUs the file may select.
        read_settings: reads the settings of models that are deployed already.
        complete: completes their sources before.
        accelerator_type: of the machine, as Ray names it; chooses among prices by accelerator.

    Raises:
        SpaceFileError: with every mistake.
        RequirementError: the file asks for GPUs that the machine lacks.
    """
    document = _read_yaml(path)
    section = _validated(
        document, path, prices, lambda: _mistakes_beside_others(document, hardware)
    )
    section = _with_one_price(section, path, accelerator_type)
    host, gpus = section.server.to_value(path.parent), _gpus(section.server, hardware)
    targets = {name: own.to_value(name, path.parent) for name, own in section.models.items()}
    sources = deployed_sources(targets, host, gpus, complete)
    deployed = read_models(section, path, sources, read_settings)
    targets |= {name: replace(targets[name], source=deployed[name].source) for name in sources}
    only_python = isinstance(host, EmbeddedHost)
    chosen = replace(hardware, gpus=gpus, only_python_backend=only_python)
    space = _to_value(section, path.parent, prices, host, chosen, targets, deployed)
    mistakes = list(_space_mistakes(space.search_space, document))
    for name in section.models:  # a step that is generated takes the requests of its pipeline
        mistakes += mistakes_with_requests(section, targets[name], path.parent)
    mistakes += repetition_mistakes(space.workload, space.search_space)
    if mistakes:
        raise SpaceFileError(path, mistakes)
    return replace(space, notes=(*deprecations(document), *_unused(space.models)))


def study_with_prices(
    path: Path, prices: Mapping[str, Price], accelerator_types: Sequence[str]
) -> str:
    """Return the name of a space file's study, which has a price for each type of accelerator.

    Raises:
        SpaceFileError: with the types that have none, or with every mistake of its sections.
    """
    section = _validated(_read_yaml(path), path, prices)
    listed = getattr(section.price, "by_accelerator", {})
    if missing := [each for each in accelerator_types if each not in listed]:
        rule = (
            f"must have a price for each type of accelerator, and has none for {', '.join(missing)}"
        )
        raise SpaceFileError(path, [Mistake("price.by_accelerator", rule)])
    return section.study


def _validated(
    document: Any,
    path: Path,
    prices: Mapping[str, Price],
    other_mistakes: Callable[[], Iterable[Mistake]] = tuple,
) -> SpaceSection:
    """Return a document as a section.

    Args:
        other_mistakes: returns those that are reported beside the document's own.
    """
    context = {"folder": path.parent, "prices": prices}
    try:
        return SpaceSection.model_validate(document, context=context)
    except ValidationError as error:
        errors = error.errors()[:_MOST_MISTAKES]
        mistakes = one_for_each_value(mistake(each, document) for each in errors)
        raise SpaceFileError(path, [*mistakes, *other_mistakes()]) from error


def _with_one_price(
    section: SpaceSection, path: Path, accelerator_type: str | None
) -> SpaceSection:
    """Return a file's section with the price of one machine."""
    if isinstance(section.price, PriceSection):
        return section
    prices = section.price.by_accelerator
    if accelerator_type not in prices:
        has = (
            f"has none for {accelerator_type}" if accelerator_type else "is for a Ray cluster alone"
        )
        rule = f"must have the price of the machine, and {has}: give it, or price.instance_type"
        raise SpaceFileError(path, [Mistake("price.by_accelerator", rule, ", ".join(prices))])
    return section.model_copy(update={"price": prices[accelerator_type]})


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


def _read_yaml(path: Path) -> Any:
    try:
        document = parse_yaml(read_text(path))
    except UnreadableYamlError as error:
        raise SpaceFileError(path, [Mistake("YAML", str(error), line=error.line)]) from error
    except UnreadableError as error:
        raise SpaceFileError(path, [Mistake("file", str(error))]) from error
    if not isinstance(document, Mapping):
        raise SpaceFileError(
            path, [Mistake("file", "must contain keys and values", short(document))]
        )
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
    own = (condition for condition in conditions if not names_a_model(condition))
    limits = Limits(tuple(own), size)
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
    for file in dict.fromkeys(filter(None, (model.payloads.file for model in models))):
        for key in file.unused:
            compared = key == "validation_data"
            reason = "; outputs are compared with the model's own" if compared else ""
            yield f"{file.path}: {key} is not used{reason}"


def _to_value(
    section: SpaceSection,
    folder: Path,
    prices: Mapping[str, Price],
    host: Host,
    hardware: Hardware,
    targets: Mapping[str, ModelSpec],
    deployed: DeployedModels,
) -> Space:
    traffic = section.traffic
    assert isinstance(section.price, PriceSection), "one price was chosen"
    streams = tuple(_stream(section, model, folder) for model in targets.values())
    workload = Workload(streams, traffic.transport.to_value())
    models = _in_load_order(targets, deployed)
    return Space(
        study=section.study,
        host=host,
        engines=section.engines.to_value(host, hardware.gpus[0]) if hardware.gpus else None,
        models=models,
        deployed={n: model.settings for n, model in deployed.items() if model.settings},
        workload=workload,
        price=section.price.to_value(prices),
        demand=Demand(workload.demand_per_second, traffic.headroom, traffic.batch_size),
        search_space=SearchSpace(
            tuple(p for model in models for p in _parameters(section, model.name, deployed)),
            hardware,
            Limits(tuple(section.conditions), traffic.batch_size),
            graph_of(deployed),
        ),
        measurement=MeasurementSettings(**section.measurement.model_dump()),
        budget=Budget(
            section.budget.trials, section.budget.wall_clock, section.budget.regret_percent
        ),
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
        return parameters_of(section, name, deployed[name])
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
        repeats=traffic.repeats.to_value() if traffic.repeats is not None else None,
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
