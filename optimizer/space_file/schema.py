"""The schema of a space file: its sections, their keys and their rules."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    Field,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from optimizer.configuration.parameters import PARAMETERS
from optimizer.configuration.runtimes import RUNTIMES, STEP_RUNTIMES
from optimizer.errors import Mistake
from optimizer.space_file.mistakes import short
from optimizer.space_file.model_schema import LimitSection, ModelSection
from optimizer.space_file.parameter_schema import OLD_KEYS, ParametersSection
from optimizer.space_file.price_schema import PriceChoice
from optimizer.space_file.section import (
    Count,
    Duration,
    ModelName,
    Positive,
    Section,
    raise_all,
    wrong,
)
from optimizer.space_file.server_schema import EnginesSection, ServerSection
from optimizer.space_file.source_schema import SourceSection
from optimizer.space_file.traffic_schema import TrafficSection
from optimizer.workload.model_spec import ModelSpec
from optimizer.workload.streams import LENGTH

_NAME = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


class MeasurementSection(Section):
    """How long load levels last, and how many requests confirm a finalist."""

    saturation_seconds: Duration = Field(8.0, description="duration of a saturated level")
    check_seconds: Duration = Field(
        10.0, description="duration of an open-loop level, unless its verdict is certain sooner"
    )
    warmup_seconds: Duration = Field(
        1.0, description="warm-up before each level, which is not counted"
    )
    confirm_seconds: Duration | None = Field(
        None,
        description="least duration of each of two confirmation rounds; by default 20s, or 5m on "
        "a GPU, which must reach its operating temperature",
    )
    confirm_requests: Count = Field(
        5000,
        description="most requests to each finalist at its capacity, over both rounds: a round "
        "that is longer than `confirm_seconds` ends once its verdict is certain",
    )


class BudgetSection(Section):
    """When the search ends, by whichever is reached first, and the run with it."""

    trials: Count = Field(60, description="configurations to measure")
    wall_clock: Duration = Field(8 * 3600.0, description="longest duration of the run")
    regret_percent: Annotated[Positive, Field(le=100)] | None = Field(
        None,
        description="a guided search ends when, with 95 % confidence, no configuration is "
        "cheaper than the best one by more than this percentage; by default "
        "when none is expected to save 1 %",
    )


class SpaceSection(Section):
    """The whole file."""

    study: _NAME = Field(description="name of the study; results are written to results/NAME/")
    server: ServerSection = Field(ServerSection(), description="the Triton server")
    engines: EnginesSection = Field(EnginesSection(), description="how TensorRT engines are built")
    models: Annotated[dict[ModelName, ModelSection], Field(min_length=1, max_length=32)] = Field(
        description="one model, or several that share the server"
    )
    traffic: TrafficSection = Field(
        TrafficSection(), description="the traffic that the fleet must serve"
    )
    limit: LimitSection = Field(LimitSection(), description="the latency limit")
    price: PriceChoice = Field(
        description="the price of one machine, or of one with each type of accelerator"
    )
    parameters: ParametersSection = Field(description="the search space")
    conditions: Annotated[list[str], Field(max_length=100)] = Field(
        [],
        description="conditions over parameters and `cores`, such as "
        "`batching or max_queue_delay_microseconds == 0`",
    )
    measurement: MeasurementSection = Field(
        MeasurementSection(), description="how long load levels last"
    )
    budget: BudgetSection = Field(BudgetSection(), description="when the search ends")

    @field_validator("models")
    @classmethod
    def _each_has_a_demand(cls, models: dict[str, ModelSection]) -> dict[str, ModelSection]:
        several = len(models) > 1
        rule = "is needed with several models; for one model it belongs in traffic"
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
            rule = (
                f"needs launcher embedded; a {server.launcher} server has shared memory of its own "
                "during a search"
            )
            raise wrong("transport.shared_memory", rule, value=True)
        for name, model in info.data.get("models", {}).items():
            if traffic.batch_size > 1 and not model.batched:
                rule = f"must be 1: models.{name} has no batch axis (batched: false)"
                raise wrong("batch_size", rule, traffic.batch_size)
        return traffic

    @field_validator("parameters")
    @classmethod
    def _fit_the_models(
        cls, parameters: ParametersSection, info: ValidationInfo
    ) -> ParametersSection:
        mistakes: list[PydanticCustomError] = []
        for name, model in info.data.get("models", {}).items():
            part = model.pipeline.model_name if model.pipeline is not None else name
            own = parameters.with_those_of(model.parameters).of(part)
            mistakes += _mistakes_for(name, model, own)
        server: ServerSection | None = info.data.get("server")
        if server is not None and server.launcher == "remote":
            mistakes += _options_of_a_running_server(parameters)
        raise_all(cls, mistakes)
        return parameters


def _mistakes_for(
    name: str, model: ModelSection, parameters: ParametersSection
) -> Iterator[PydanticCustomError]:
    for runtime in parameters.listed("runtime"):
        if (rule := _refusal_of_runtime(runtime, name, model.built_source)) is not None:
            yield wrong("runtime", rule, parameters.listed("runtime"))
    if not model.batched and parameters.listed("batching") != [False]:
        rule = f"models.{name} has no batch axis (batched: false), so nothing can be batched"
        yield wrong("batching", rule, parameters.listed("batching"))
    if model.requests is not None and model.lengths is None:
        return  # the longest length may be that of the requests in the file
    longest = model.lengths.to_value().longest if model.lengths is not None else 0
    for n, sizes in enumerate(parameters.listed("padding")):
        if isinstance(sizes, list) and max(sizes) > longest:
            rule = f"must not be above the longest length ({longest})"
            yield wrong(f"padding.{n}", rule, sizes)


def _refusal_of_runtime(runtime: str, name: str, source: SourceSection) -> str | None:
    """Return why a runtime cannot execute the model of a source; None where it can."""
    if source.repository is None and runtime == "repository":
        return f"repository needs a model of a repository, models.{name} is none"
    if runtime in STEP_RUNTIMES:
        return f"{runtime} executes no models, only a step of a pipeline"
    if source.onnx is not None and not RUNTIMES[runtime].graphs:
        return f"{runtime} needs a transformers source, models.{name} is an ONNX file"
    return None


def mistakes_with_requests(
    section: SpaceSection, model: ModelSpec, folder: Path
) -> Iterator[Mistake]:
    """Yield mistakes of keys that do not go with the requests in a model's file."""
    file, longest = model.payloads.file, model.payloads.lengths.longest
    if file is None:
        return
    own, size = section.models[model.name], section.traffic.batch_size
    if size > 1 and len(file.shapes) > 1:
        rule = f"must be 1: requests of {len(file.shapes)} shapes in {file.path} cannot be joined"
        yield Mistake("traffic.batch_size", rule, str(size))
    if section.traffic.transport.encoding == "json" and file.binary:
        rule = f"must be binary: JSON has no form for elements of {file.path} that are no text"
        yield Mistake("traffic.transport.encoding", rule, "json")
    if LENGTH not in model.payloads.dimensions_of_file:
        return
    positions = own.built_source.config_limits(folder).get("max_position_embeddings", longest)
    if longest > positions:
        rule = f"must not be longer than the model's max_position_embeddings ({positions})"
        yield Mistake(f"models.{model.name}.requests", rule, f"a length of {longest}")
    for sizes in section.parameters.with_those_of(own.parameters).listed("padding"):
        if isinstance(sizes, list) and max(sizes) > longest:
            rule = f"must not be above the longest length in {file.path} ({longest})"
            yield Mistake("parameters.padding", rule, short(sizes))


def _options_of_a_running_server(parameters: ParametersSection) -> Iterator[PydanticCustomError]:
    """Yield a mistake for each parameter of the server's command line, which cannot change now."""
    for each in PARAMETERS:
        if each.part == "server" and parameters.listed(each.name) != [each.default]:
            rule = f"must be {each.default} with launcher remote, whose server runs already"
            yield wrong(each.file_key, rule, parameters.listed(each.name))


def _leave_out_null(key: dict[str, Any]) -> None:
    """Describe an optional section as the section, so that editors mark the key that is wrong."""
    match key.get("anyOf"):
        case [{"$ref": section}, {"type": "null"}]:
            del key["anyOf"], key["default"]
            key["$ref"] = section


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of the file, for editors."""
    schema = SpaceSection.model_json_schema()
    for definition in schema["$defs"].values():
        for key in definition.get("properties", {}).values():
            _leave_out_null(key)
    parameters = schema["$defs"]["ParametersSection"]["properties"]
    schema["$defs"]["ParametersSection"]["patternProperties"] = {r"\.": True}
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
