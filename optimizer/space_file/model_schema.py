"""The schema of a model: its source, and the sections of its requests and its accuracy.

A rule over several keys is checked in the smallest section that holds them.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    JsonValue,
    Tag,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from optimizer.files.request_payloads import with_file
from optimizer.files.untrusted import is_there, parse_json, read_bytes
from optimizer.space_file.accuracy_schema import AccuracySection, CalibrationSection, DataSection
from optimizer.space_file.input_schema import (
    VALUE_KEYS,
    DimensionName,
    DimensionSection,
    InputSection,
    LengthSection,
)
from optimizer.space_file.parameter_schema import ParametersSection
from optimizer.space_file.section import (
    Count,
    Name,
    Number,
    Positive,
    Section,
    Seed,
    Switch,
    check_finite,
    folder_of,
    missing_file,
    raise_all,
    require_requests,
    wrong,
)
from optimizer.workload.model_spec import (
    Call,
    Calls,
    ModelSpec,
    OnnxSource,
    RepositorySource,
    TransformersSource,
)
from optimizer.workload.streams import (
    LENGTH,
    Payloads,
)

CONFIG_LIMITS = {"input_ids": "vocab_size", "token_type_ids": "type_vocab_size"}
"""Integer inputs of `transformers` models, and the configuration value that bounds each."""


class CallSection(Section):
    """Calls of a model by a model of the Python backend."""

    model: Name = Field(description="name of the called model in the repository")
    count: Positive = Field(1, description="mean number of calls for each request of the caller")


def _form_of_calls(given: object) -> str:
    if isinstance(given, str):
        return "text"
    return "by_caller" if isinstance(given, dict) else "calls"


# Tagged, so that a mistake is reported for the form that was meant only.
_Call = Annotated[
    Annotated[Name, Tag("name")] | Annotated[CallSection, Tag("call")],
    Discriminator(lambda given: "name" if isinstance(given, str) else "call"),
]
_Calls = Annotated[list[_Call], Field(max_length=100)]
_CallsOrAuto = Annotated[
    Annotated[Literal["auto"], Tag("text")]
    | Annotated[_Calls, Tag("calls")]
    | Annotated[dict[Name, _Calls], Tag("by_caller")],
    Discriminator(_form_of_calls),
]


class SourceSection(Section):
    """The model's source: a transformers class, an ONNX file, or a Triton model repository."""

    added_keys = ("repository", "model", "version", "calls")

    class_name: str | None = Field(
        None, alias="class", description="class of the transformers package"
    )
    config: dict[str, JsonValue] | None = Field(
        None, description="configuration of the architecture, with random weights; no download"
    )
    seed: Seed = Field(0, description="random seed of the weights")
    checkpoint: str | None = Field(None, description="directory or hub name of trained weights")
    onnx: str | None = Field(None, description="ONNX file, with external data beside it")
    repository: str | None = Field(
        None, description="model repository of Triton, whose model is served as it is"
    )
    model: Name | None = Field(None, description="name of the model in the repository")
    version: Count | None = Field(
        None, description="version that is measured; by default the newest that is served"
    )
    calls: _CallsOrAuto | None = Field(
        None,
        description="models that the model calls by its own code (BLS), in their order; by name,"
        " the calls of each calling model; auto is what the server counts for one request",
    )

    @field_validator("config")
    @classmethod
    def _finite(cls, config: dict[str, JsonValue] | None) -> dict[str, JsonValue] | None:
        check_finite(config)
        return config

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        kinds = ("config", "checkpoint", "onnx", "repository")
        given = [kind for kind in kinds if getattr(self, kind) is not None]
        if len(given) != 1:
            raise wrong("", f"must have exactly one of {', '.join(kinds)}", given)
        if (given[0] in ("config", "checkpoint")) != (self.class_name is not None):
            raise wrong(
                "class", "is needed with config or checkpoint, and only there", self.class_name
            )
        if (self.repository is None) != (self.model is None):
            raise wrong("model", "is needed with repository, and only there", self.model)
        if self.version is not None and self.repository is None:
            raise wrong("version", "goes with repository, and only there", self.version)
        if self.calls is not None and self.repository is None:
            raise wrong("calls", "goes with repository, and only there", self.calls)
        return self

    @field_validator("onnx", "checkpoint", "repository")
    @classmethod
    def _exists(cls, given: str | None, info: ValidationInfo) -> str | None:
        if given is None or (info.field_name == "checkpoint" and not _looks_local(given)):
            return given
        if not is_there(path := folder_of(info) / given):
            raise missing_file(path)
        return given

    def config_limits(self, folder: Path) -> dict[str, int]:
        """Return whole numbers of the model's configuration, if it needs no download."""
        config: object = self.config
        if self.checkpoint is not None:
            file = folder / self.checkpoint / "config.json"
            config = parse_json(read_bytes(file)) if is_there(file) else {}
        items = config.items() if isinstance(config, dict) else ()
        return {key: value for key, value in items if isinstance(value, int)}

    def to_value(self, folder: Path) -> TransformersSource | OnnxSource | RepositorySource:
        """Return the source, with paths resolved against the file's folder."""
        if self.onnx is not None:
            return OnnxSource((folder / self.onnx).resolve())
        if self.repository is not None:
            repository = (folder / self.repository).resolve()
            calls = self._calls(self.model or "")
            return RepositorySource(repository, self.model or "", self.version, calls=calls)
        checkpoint = self.checkpoint
        if checkpoint is not None and _looks_local(checkpoint):
            checkpoint = str((folder / checkpoint).resolve())
        config = json.dumps(self.config or {}, sort_keys=True)
        return TransformersSource(self.class_name or "", checkpoint, config, self.seed)

    def _calls(self, model: str) -> Calls | None:
        if self.calls is None:
            return ()
        if self.calls == "auto":
            return None
        by_caller = self.calls if isinstance(self.calls, dict) else {model: self.calls}
        return tuple((caller, tuple(map(_call, own))) for caller, own in by_caller.items())


def _call(given: str | CallSection) -> Call:
    return Call(given) if isinstance(given, str) else Call(given.model, given.count)


def _looks_local(checkpoint: str) -> bool:
    return checkpoint.startswith((".", "/")) or checkpoint.count("/") > 1


def _undefined(dimension: str, defined: Sequence[str]) -> str:
    near = difflib.get_close_matches(dimension, [LENGTH, *defined], 1)
    meant = f"; did you mean {near[0]}?" if near else ""
    return f"must be a size, or a dimension under `lengths` or `dimensions`{meant}"


def _limits_of_source(info: ValidationInfo) -> dict[str, int]:
    source: SourceSection | None = info.data.get("source")
    return source.config_limits(folder_of(info)) if source is not None else {}


class LimitSection(Section):
    """The latency limit."""

    percentile: Annotated[Number, Field(ge=50, le=99.9)] = Field(
        95, description="percentile of the latency that must be within the limit"
    )
    latency_ms: Positive = Field(
        500, description="latency limit, from the scheduled time of a request"
    )


class ModelSection(Section):
    """One model: its source, its requests, and how its accuracy is judged."""

    added_keys = ("requests", "dimensions", "batched", "outputs")

    source: SourceSection = Field(description="the source of the model")
    requests: str | None = Field(
        None,
        description="file with the values of requests, for inputs without values of their own:"
        " .npz, .jsonl, perf_analyzer's .json, or a directory with one file for each request",
    )
    inputs: Annotated[dict[Name, InputSection], Field(min_length=1, max_length=64)] = Field(
        description="input tensors of a request"
    )
    lengths: LengthSection | None = Field(
        None, description="the length of requests, if an input has the dimension `length`"
    )
    dimensions: Annotated[dict[DimensionName, DimensionSection], Field(max_length=32)] = Field(
        {}, description="the other free dimensions of the inputs"
    )
    batched: Switch = Field(
        True, description="whether tensors have a batch axis; false is max_batch_size 0"
    )
    output: Name | None = Field(None, description="the only output that is served and judged")
    outputs: Annotated[list[Name], Field(max_length=64)] = Field(
        [], description="the outputs that are served and judged; by default all"
    )
    calibration: CalibrationSection = Field(
        CalibrationSection(seed=1), description="inputs for the calibration of INT8"
    )
    evaluation: DataSection = Field(
        DataSection(seed=2), description="other inputs, on which accuracy is judged"
    )
    accuracy: AccuracySection = Field(
        AccuracySection(), description="the accuracy without which an artefact is excluded"
    )
    demand_per_second: Positive | None = Field(
        None, description="requests per second to this model, if there are several"
    )
    limit: LimitSection | None = Field(
        None, description="limit of this model, in place of the common one"
    )
    parameters: ParametersSection | None = Field(
        None, description="parameters of this model, in place of the common ones"
    )

    @model_validator(mode="after")
    def _dimensions_are_defined(self) -> Self:
        of_file = self._dimensions_of_requests
        defined = [
            *self.dimensions,
            *([LENGTH] if self.lengths is not None else []),
            *of_file,
        ]
        mistakes = [
            wrong(f"inputs.{name}.shape.{n}", _undefined(size, defined), size)
            for name, section in self.inputs.items()
            for n, size in enumerate(section.shape)
            if isinstance(size, str) and size not in (LENGTH, *defined)
        ]
        with_length = [name for name, section in self.inputs.items() if LENGTH in section.shape]
        if with_length and self.lengths is None and LENGTH not in of_file:
            rule = f"is required by the dimension {LENGTH} of {', '.join(with_length)}"
            mistakes.append(wrong("lengths", rule, None))
        if LENGTH in self.dimensions:
            mistakes.append(wrong(f"dimensions.{LENGTH}", "is given by `lengths`", LENGTH))
        mistakes += self._given_twice(of_file)
        earlier = {LENGTH, *of_file} if self.lengths is not None else {*of_file}
        for name, section in self.dimensions.items():
            if section.of is not None and section.of not in earlier:
                listed = f", one of {', '.join(sorted(earlier))}" if earlier else ""
                rule = f"must be a dimension before it{listed}"
                mistakes.append(wrong(f"dimensions.{name}.of", rule, section.of))
            earlier.add(name)
        if self.output is not None and self.outputs:
            mistakes.append(wrong("output", "must not be given beside outputs", self.output))
        raise_all(type(self), mistakes)
        return self

    @property
    def _dimensions_of_requests(self) -> list[str]:
        """Names of the free dimensions whose sizes are those of values in `requests`."""
        if self.requests is None:
            return []
        shapes = [section.shape for section in self.inputs.values() if not section.valued]
        return [size for shape in shapes for size in shape if isinstance(size, str)]

    def _given_twice(self, of_file: Sequence[str]) -> Iterator[PydanticCustomError]:
        rule = "must be left out: `requests` gives the sizes of this dimension"
        if self.lengths is not None and LENGTH in of_file:
            yield wrong("lengths", rule, LENGTH)
        for name in sorted({*self.dimensions} & {*of_file}):
            yield wrong(f"dimensions.{name}", rule, name)

    @field_serializer("output")
    def _earlier_default(self, output: str | None) -> str | None:
        """Return what studies have stored where no output was named."""
        return "logits" if output is None and not self.outputs else output

    # Validators of fields, which run even if other fields are wrong.
    @field_validator("requests")
    @classmethod
    def _readable(cls, requests: str | None, info: ValidationInfo) -> str | None:
        if requests is not None:
            require_requests(folder_of(info) / requests)
        return requests

    @field_validator("inputs")
    @classmethod
    def _each_has_values(
        cls, inputs: dict[str, InputSection], info: ValidationInfo
    ) -> dict[str, InputSection]:
        if "requests" not in info.data:  # it has a mistake of its own
            return inputs
        without = [name for name, section in inputs.items() if not section.valued]
        if info.data["requests"] is not None:
            if not without:
                rule = "have values, so `requests` is not used: leave the values of an input out"
                raise wrong("", rule, ", ".join(inputs))
            return inputs
        rule = f"must have exactly one of {VALUE_KEYS}, or the model a file of `requests`"
        needed = [name for name in without if inputs[name].data_type != "BOOL"]
        raise_all(cls, [wrong(name, rule, []) for name in needed])
        return inputs

    @field_validator("batched")
    @classmethod
    def _as_the_source(cls, batched: bool, info: ValidationInfo) -> bool:
        source: SourceSection | None = info.data.get("source")
        if not batched and source is not None and source.class_name is not None:
            rule = "must be true: tensors of a transformers class have a batch axis"
            raise wrong("", rule, batched)
        return batched

    @field_validator("inputs")
    @classmethod
    def _below_the_vocabulary(
        cls, inputs: dict[str, InputSection], info: ValidationInfo
    ) -> dict[str, InputSection]:
        limits = _limits_of_source(info)
        mistakes = []
        for name, key in CONFIG_LIMITS.items():
            tensor = inputs.get(name)
            largest = tensor.maximum if tensor is not None else None
            if largest is not None and key in limits and largest >= limits[key]:
                rule = f"must be below the model's {key} ({limits[key]})"
                mistakes.append(wrong(f"{name}.maximum", rule, largest))
        raise_all(cls, mistakes)
        return inputs

    @field_validator("lengths")
    @classmethod
    def _within_the_positions(
        cls, lengths: LengthSection | None, info: ValidationInfo
    ) -> LengthSection | None:
        if lengths is None:
            return None
        longest = lengths.to_value().longest
        positions = _limits_of_source(info).get("max_position_embeddings")
        if positions is not None and longest > positions:
            rule = f"must not be above the model's max_position_embeddings ({positions})"
            raise wrong("", rule, longest)
        return lengths

    def to_value(self, name: str, folder: Path) -> ModelSpec:
        """Return the model of this name; its file of requests is read wholly.

        Raises:
            UsageError: every mistake of that file.
        """
        payloads = self._payloads()
        if self.requests is not None:
            payloads = with_file(payloads, (folder / self.requests).resolve())
        return ModelSpec(
            name=name,
            source=self.source.to_value(folder),
            payloads=payloads,
            calibration=self.calibration.to_value(folder),
            evaluation=self.evaluation.to_value(folder),
            accuracy=self.accuracy.to_value(folder),
            outputs=tuple(self.outputs) if self.output is None else (self.output,),
            calibration_percentile=self.calibration.percentile,
        )

    def _payloads(self) -> Payloads:
        requests = self.requests is not None
        tensors = tuple(
            section.to_value(key, requests=requests) for key, section in self.inputs.items()
        )
        dimensions = tuple(own.to_dimension(key) for key, own in self.dimensions.items())
        if self.lengths is None:
            return Payloads(tensors, dimensions=dimensions, batched=self.batched)
        return Payloads(tensors, self.lengths.to_value(), dimensions, self.batched)
