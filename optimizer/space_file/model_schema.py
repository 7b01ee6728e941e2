"""The schema of a model: its source, its requests and its accuracy.

A rule over several keys is checked in the smallest section that holds them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from optimizer.files.untrusted import is_there, parse_json, read_bytes
from optimizer.space_file.parameter_schema import ParametersSection
from optimizer.space_file.section import (
    Count,
    Name,
    Number,
    Positive,
    Section,
    Seed,
    Switch,
    folder_of,
    missing_file,
    raise_all,
    require_file,
    wrong,
)
from optimizer.workload.model_spec import (
    USUAL_PERCENTILE,
    AccuracyLimits,
    DataSet,
    ModelSpec,
    OnnxSource,
    TaskMetric,
    TransformersSource,
)
from optimizer.workload.streams import DataType, LengthDistribution, Payloads, TensorSpec

Length = Annotated[int, Field(ge=1, le=1_000_000, strict=True)]
_Share = Annotated[Number, Field(ge=0, le=1)]

CONFIG_LIMITS = {"input_ids": "vocab_size", "token_type_ids": "type_vocab_size"}
"""Integer inputs of `transformers` models, and the configuration value that bounds each."""


def _check_finite(values: object) -> None:
    """Raise ValueError for NaN and infinity, which JSON lacks."""
    try:
        json.dumps(values, allow_nan=False)
    except ValueError as error:
        raise ValueError("numbers must be finite") from error


class SourceSection(Section):
    """The model's source: `checkpoint` or `config` of a transformers class, or `onnx`."""

    class_name: str | None = Field(
        None, alias="class", description="class of the transformers package"
    )
    config: dict[str, JsonValue] | None = Field(
        None, description="configuration of the architecture, with random weights; no download"
    )
    seed: Seed = Field(0, description="random seed of the weights")
    checkpoint: str | None = Field(None, description="directory or hub name of trained weights")
    onnx: str | None = Field(None, description="ONNX file, with external data beside it")

    @field_validator("config")
    @classmethod
    def _finite(cls, config: dict[str, JsonValue] | None) -> dict[str, JsonValue] | None:
        _check_finite(config)
        return config

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [k for k in ("config", "checkpoint", "onnx") if getattr(self, k) is not None]
        if len(given) != 1:
            raise wrong("", "must have exactly one of config, checkpoint, onnx", given)
        if (self.onnx is None) != (self.class_name is not None):
            raise wrong(
                "class", "is needed with config or checkpoint, and not with onnx", self.class_name
            )
        return self

    @field_validator("onnx", "checkpoint")
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

    def to_value(self, folder: Path) -> TransformersSource | OnnxSource:
        """Return the source, with paths resolved against the file's folder."""
        if self.onnx is not None:
            return OnnxSource((folder / self.onnx).resolve())
        checkpoint = self.checkpoint
        if checkpoint is not None and _looks_local(checkpoint):
            checkpoint = str((folder / checkpoint).resolve())
        config = json.dumps(self.config or {}, sort_keys=True)
        return TransformersSource(self.class_name or "", checkpoint, config, self.seed)


def _looks_local(checkpoint: str) -> bool:
    return checkpoint.startswith((".", "/")) or checkpoint.count("/") > 1


def _limits_of_source(info: ValidationInfo) -> dict[str, int]:
    source: SourceSection | None = info.data.get("source")
    return source.config_limits(folder_of(info)) if source is not None else {}


class InputSection(Section):
    """An input tensor and the bounds of its values; `length` stands for the request's length."""

    data_type: DataType = Field("INT64", description="Triton's data type")
    shape: Annotated[list[Count | Literal["length"]], Field(max_length=8)] = Field(
        ["length"], description="shape without the batch axis"
    )
    minimum: Number = Field(description="smallest value, inclusive")
    maximum: Number = Field(description="largest value, inclusive")
    pad: Number = Field(0, description="value of positions beyond the request's length")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.minimum > self.maximum:
            raise wrong("minimum", f"must not be above maximum ({self.maximum:g})", self.minimum)
        return self

    def to_value(self, name: str) -> TensorSpec:
        """Return the tensor of this name."""
        shape = tuple(None if n == "length" else n for n in self.shape)
        return TensorSpec(name, self.data_type, shape, self.minimum, self.maximum, self.pad)


class LengthSection(Section):
    """The length of requests in tokens: one of fixed, uniform and weights."""

    fixed: Length | None = Field(None, description="length of every request")
    uniform: tuple[Length, Length] | None = Field(None, description="[shortest, longest]")
    weights: dict[Length, Positive] | None = Field(None, description="weight by length")

    @field_validator("weights", mode="before")
    @classmethod
    def _whole_lengths(cls, weights: object) -> object:
        # Keys in JSON are text, so those of a stored space are.
        if isinstance(weights, Mapping):
            return {int(k) if str(k).isdecimal() else k: v for k, v in weights.items()}
        return weights

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [k for k in ("fixed", "uniform", "weights") if getattr(self, k)]
        if len(given) != 1:
            raise wrong("", "must have exactly one of fixed, uniform, weights", given)
        if self.uniform is not None and self.uniform[0] > self.uniform[1]:
            raise wrong("uniform", "must be [shortest, longest]", self.uniform)
        return self

    def to_value(self) -> LengthDistribution:
        """Return the distribution of lengths."""
        if self.fixed is not None:
            return LengthDistribution((self.fixed,), (1.0,))
        if self.uniform is not None:
            lengths = tuple(range(self.uniform[0], self.uniform[1] + 1))
            return LengthDistribution(lengths, (1.0,) * len(lengths))
        pairs = sorted((self.weights or {}).items())
        return LengthDistribution(tuple(k for k, _ in pairs), tuple(w for _, w in pairs))


class DataSection(Section):
    """Inputs from a file, or given here, or generated from the model's inputs and lengths."""

    file: str | None = Field(
        None,
        description=".npz with an array of shape [samples, ...] for each input, or .jsonl with an"
        " object of values by input on each line; shorter rows are padded to the longest length",
    )
    tensors: Annotated[dict[str, list[JsonValue]], Field(min_length=1)] | None = Field(
        None, description="rows by input; shorter rows are padded to the longest length"
    )
    samples: Count = Field(64, description="number of samples; by default all of `tensors`")
    seed: Seed = Field(0, description="random seed of generated inputs")

    @model_validator(mode="before")
    @classmethod
    def _all_that_are_given(cls, section: object) -> object:
        if not isinstance(section, Mapping) or "samples" in section:
            return section
        tensors = section.get("tensors")
        rows = tensors.values() if isinstance(tensors, Mapping) else ()
        most = max((len(values) for values in rows if isinstance(values, list)), default=0)
        return {**section, "samples": most} if most else section

    @field_validator("file")
    @classmethod
    def _exists(cls, file: str | None, info: ValidationInfo) -> str | None:
        if file is not None:
            require_file(folder_of(info) / file)
        return file

    @field_validator("tensors")
    @classmethod
    def _finite(
        cls, tensors: dict[str, list[JsonValue]] | None
    ) -> dict[str, list[JsonValue]] | None:
        _check_finite(tensors)
        return tensors

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.file is not None and self.tensors is not None:
            raise wrong("tensors", "must not be given beside file", self.file)
        return self

    def to_value(self, folder: Path) -> DataSet:
        """Return the data set, with its path resolved."""
        file = (folder / self.file).resolve() if self.file is not None else None
        tensors = json.dumps(self.tensors) if self.tensors is not None else None
        return DataSet(file, self.samples, self.seed, tensors)


class CalibrationSection(DataSection):
    """Inputs for the calibration of INT8, and how activation ranges follow from them."""

    percentile: Annotated[Number, Field(gt=50, le=100)] = Field(
        USUAL_PERCENTILE,
        description="percentage of an activation's values in its INT8 range;"
        " 100 ranges from the smallest to the largest",
    )

    @model_serializer(mode="wrap")
    def _without_the_usual_percentile(self, dump: SerializerFunctionWrapHandler) -> Any:
        """Omit the default: studies that were begun before the key existed lack it."""
        content = dump(self)
        if self.percentile == USUAL_PERCENTILE:
            del content["percentile"]
        return content


class MetricSection(Section):
    """A metric of the model's task, calculated by your own Python function."""

    function: str = Field(
        description="FILE.py:NAME, called as NAME(inputs, outputs) with all evaluation samples"
    )
    minimum: Number = Field(description="least value that it must return")

    @field_validator("function")
    @classmethod
    def _exists(cls, function: str, info: ValidationInfo) -> str:
        file, _, name = function.rpartition(":")
        if not (file.endswith(".py") and name.isidentifier()):
            raise PydanticCustomError("space_rule", "must be FILE.py:NAME")
        require_file(folder_of(info) / file)
        return function

    def to_value(self, folder: Path) -> TaskMetric:
        """Return the metric, with its path resolved."""
        file, _, name = self.function.rpartition(":")
        return TaskMetric((folder / file).resolve(), name, self.minimum)


class AccuracySection(Section):
    """The accuracy that each artefact must reach on the server, against the FP32 reference."""

    min_argmax_agreement: _Share = Field(
        0.99, description="least share of samples with the same largest output"
    )
    min_cosine: Annotated[Number, Field(ge=-1, le=1)] = Field(
        0.99, description="least mean cosine similarity of the outputs"
    )
    max_abs_error: Positive | None = Field(
        None, description="largest allowed difference of any value; by default not judged"
    )
    metric: MetricSection | None = Field(None, description="metric of your own task, in addition")
    int8_on_generated_data: Switch = Field(
        False, description="allow INT8 of trained weights that saw only generated inputs"
    )

    def to_value(self, folder: Path) -> AccuracyLimits:
        """Return the limits."""
        return AccuracyLimits(
            self.min_argmax_agreement,
            self.min_cosine,
            self.max_abs_error,
            self.metric.to_value(folder) if self.metric is not None else None,
            self.int8_on_generated_data,
        )


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

    source: SourceSection = Field(description="the source of the model")
    inputs: Annotated[dict[Name, InputSection], Field(min_length=1, max_length=64)] = Field(
        description="input tensors of a request"
    )
    lengths: LengthSection = Field(description="the length of requests")
    output: Name = Field("logits", description="name of the output tensor")
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

    # Validators of fields, which run even if other fields are wrong.
    @field_validator("inputs")
    @classmethod
    def _below_the_vocabulary(
        cls, inputs: dict[str, InputSection], info: ValidationInfo
    ) -> dict[str, InputSection]:
        limits = _limits_of_source(info)
        mistakes = []
        for name, key in CONFIG_LIMITS.items():
            tensor = inputs.get(name)
            if tensor is not None and key in limits and tensor.maximum >= limits[key]:
                rule = f"must be below the model's {key} ({limits[key]})"
                mistakes.append(wrong(f"{name}.maximum", rule, tensor.maximum))
        raise_all(cls, mistakes)
        return inputs

    @field_validator("lengths")
    @classmethod
    def _within_the_positions(cls, lengths: LengthSection, info: ValidationInfo) -> LengthSection:
        longest = lengths.to_value().longest
        positions = _limits_of_source(info).get("max_position_embeddings")
        if positions is not None and longest > positions:
            rule = f"must not be above the model's max_position_embeddings ({positions})"
            raise wrong("", rule, longest)
        return lengths

    def to_value(self, name: str, folder: Path) -> ModelSpec:
        """Return the model of this name."""
        tensors = tuple(section.to_value(key) for key, section in self.inputs.items())
        return ModelSpec(
            name=name,
            source=self.source.to_value(folder),
            payloads=Payloads(tensors, self.lengths.to_value()),
            calibration=self.calibration.to_value(folder),
            evaluation=self.evaluation.to_value(folder),
            accuracy=self.accuracy.to_value(folder),
            output=self.output,
            calibration_percentile=self.calibration.percentile,
        )
