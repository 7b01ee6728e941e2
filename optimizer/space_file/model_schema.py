"""The schema of a model: its source, its requests and its accuracy.

A rule over several keys is checked in the smallest section that holds them.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import (
    Field,
    JsonValue,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from optimizer.files.untrusted import is_there, parse_json, read_bytes
from optimizer.space_file.parameter_schema import ParametersSection
from optimizer.space_file.section import (
    MAX_VALUES,
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
from optimizer.workload.data_types import NUMPY_TYPES, DataType
from optimizer.workload.model_spec import (
    USUAL_PERCENTILE,
    AccuracyLimits,
    DataSet,
    ModelSpec,
    OnnxSource,
    OutputLimits,
    RepositorySource,
    TaskMetric,
    TransformersSource,
)
from optimizer.workload.streams import (
    LENGTH,
    Dimension,
    LengthDistribution,
    Payloads,
    TensorSpec,
)

Length = Annotated[int, Field(ge=1, le=1_000_000, strict=True)]
DimensionName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
_Scalar = (
    Annotated[bool, Field(strict=True)]
    | Annotated[int, Field(strict=True, ge=-(2**63), lt=2**64)]
    | Number
    | Annotated[str, Field(max_length=1_000_000)]
)
_KINDS = {"BYTES": "a text", "BOOL": "true or false"}
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
    """The model's source: a transformers class, an ONNX file, or a Triton model repository."""

    added_keys = ("repository", "model")

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

    @field_validator("config")
    @classmethod
    def _finite(cls, config: dict[str, JsonValue] | None) -> dict[str, JsonValue] | None:
        _check_finite(config)
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
            return RepositorySource((folder / self.repository).resolve(), self.model or "")
        checkpoint = self.checkpoint
        if checkpoint is not None and _looks_local(checkpoint):
            checkpoint = str((folder / checkpoint).resolve())
        config = json.dumps(self.config or {}, sort_keys=True)
        return TransformersSource(self.class_name or "", checkpoint, config, self.seed)


def _looks_local(checkpoint: str) -> bool:
    return checkpoint.startswith((".", "/")) or checkpoint.count("/") > 1


def _undefined(dimension: str, defined: Sequence[str]) -> str:
    near = difflib.get_close_matches(dimension, [LENGTH, *defined], 1)
    meant = f"; did you mean {near[0]}?" if near else ""
    return f"must be a size, or a dimension under `lengths` or `dimensions`{meant}"


def _limits_of_source(info: ValidationInfo) -> dict[str, int]:
    source: SourceSection | None = info.data.get("source")
    return source.config_limits(folder_of(info)) if source is not None else {}


class InputSection(Section):
    """An input tensor and its values: bounds, one value, or values of which each element is one."""

    added_keys = ("value", "values")

    data_type: DataType = Field("INT64", description="Triton's data type; texts are BYTES")
    shape: Annotated[list[Count | DimensionName], Field(max_length=8)] = Field(
        [LENGTH],
        description="shape without the batch axis: sizes, and names of free dimensions, of which"
        " `length` is the request's length",
    )
    minimum: Number | None = Field(None, description="smallest value, inclusive")
    maximum: Number | None = Field(None, description="largest value, inclusive")
    value: _Scalar | None = Field(None, description="the value of every element")
    values: Annotated[list[_Scalar], Field(min_length=1, max_length=MAX_VALUES)] | None = Field(
        None, description="values of which each element is one, such as a vocabulary of texts"
    )
    pad: Number = Field(0, description="value of positions beyond the request's length")

    @model_validator(mode="after")
    def _one_kind_of_values(self) -> Self:
        bounds = [key for key in ("minimum", "maximum") if getattr(self, key) is not None]
        given = [key for key in ("value", "values") if getattr(self, key) is not None]
        if len(bounds) == 1:
            raise wrong("", "must have both minimum and maximum", bounds)
        if not bounds and not given and self.data_type == "BOOL":
            return self
        if bool(bounds) + len(given) != 1:
            rule = "must have exactly one of minimum with maximum, value, values"
            raise wrong("", rule, [*bounds, *given])
        if bounds and self.data_type in ("BOOL", "BYTES"):
            raise wrong("minimum", f"{self.data_type} needs value or values", self.minimum)
        return self

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        low, high = self.minimum, self.maximum
        if low is None or high is None:
            return self
        if low > high:
            raise wrong("minimum", f"must not be above maximum ({high:g})", low)
        self._require_range("minimum", low)
        self._require_range("maximum", high)
        return self

    @model_validator(mode="after")
    def _of_the_type(self) -> Self:
        listed = self.values if self.values is not None else [self.value]
        for n, value in enumerate(listed):
            if value is None:
                continue
            key = "value" if self.values is None else f"values.{n}"
            kind = {"BYTES": str, "BOOL": bool}.get(self.data_type)
            fits = isinstance(value, kind) if kind else type(value) in (int, float)
            if not fits:
                raise wrong(key, f"must be {_KINDS.get(self.data_type, 'a number')}", value)
            if kind is None:
                self._require_range(key, value)
        return self

    def _require_range(self, key: str, value: Any) -> None:
        dtype = NUMPY_TYPES[self.data_type]
        if np.issubdtype(dtype, np.integer):
            limits = np.iinfo(dtype)
            if not (limits.min <= value <= limits.max and value == int(value)):
                rule = f"must be a whole number from {limits.min} to {limits.max} as {dtype}"
                raise wrong(key, rule, value)

    def to_value(self, name: str) -> TensorSpec:
        """Return the tensor of this name."""
        choices: tuple[Any, ...] = tuple(self.values or ())
        if self.value is not None:
            choices = (self.value,)
        elif self.data_type == "BOOL" and not choices:
            choices = (False, True)
        low, high = self.minimum or 0.0, self.maximum or 0.0
        return TensorSpec(name, self.data_type, tuple(self.shape), low, high, self.pad, choices)


class LengthSection(Section):
    """The length of requests in tokens, or another size: one of fixed, uniform and weights."""

    fixed: Length | None = Field(None, description="size in every request")
    uniform: tuple[Length, Length] | None = Field(None, description="[smallest, largest]")
    weights: dict[Length, Positive] | None = Field(None, description="weight by size")

    @field_validator("weights", mode="before")
    @classmethod
    def _whole_lengths(cls, weights: object) -> object:
        # Keys in JSON are text, so those of a stored space are.
        if isinstance(weights, Mapping):
            return {int(k) if str(k).isdecimal() else k: v for k, v in weights.items()}
        return weights

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        self._check_sizes()
        return self

    def _check_sizes(self) -> None:
        given = [k for k in ("fixed", "uniform", "weights") if getattr(self, k)]
        if len(given) != 1:
            raise wrong("", "must have exactly one of fixed, uniform, weights", given)
        if self.uniform is not None and self.uniform[0] > self.uniform[1]:
            raise wrong("uniform", "must be [shortest, longest]", self.uniform)

    def to_value(self) -> LengthDistribution:
        """Return the distribution of lengths."""
        if self.fixed is not None:
            return LengthDistribution((self.fixed,), (1.0,))
        if self.uniform is not None:
            lengths = tuple(range(self.uniform[0], self.uniform[1] + 1))
            return LengthDistribution(lengths, (1.0,) * len(lengths))
        pairs = sorted((self.weights or {}).items())
        return LengthDistribution(tuple(k for k, _ in pairs), tuple(w for _, w in pairs))


class DimensionSection(LengthSection):
    """A free dimension: sizes of its own, or `times` x the size of another one + `plus`."""

    of: DimensionName | None = Field(None, description="dimension that its size follows")
    times: Count = Field(1, description="factor of the other dimension's size")
    plus: Annotated[int, Field(ge=0, le=10**6, strict=True)] = Field(
        0, description="what is added to it"
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if self.of is None:
            self._check_sizes()
            if (self.times, self.plus) != (1, 0):
                raise wrong("of", "is needed with times or plus", None)
        elif self.fixed or self.uniform or self.weights:
            raise wrong("of", "must not be given beside fixed, uniform or weights", self.of)
        return self

    def to_dimension(self, name: str) -> Dimension:
        """Return the dimension of this name."""
        if self.of is not None:
            return Dimension(name, None, self.of, self.times, self.plus)
        return Dimension(name, self.to_value())


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

    added_keys = ("percentile",)


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


class OutputAccuracySection(Section):
    """The accuracy that an output must reach on the server, against the reference."""

    min_argmax_agreement: _Share = Field(
        0.99, description="least share of samples with the same largest output, or of equal labels"
    )
    min_cosine: Annotated[Number, Field(ge=-1, le=1)] = Field(
        0.99, description="least mean cosine similarity of the outputs"
    )
    max_abs_error: Positive | None = Field(
        None, description="largest allowed difference of any value; by default not judged"
    )

    def to_limits(self) -> OutputLimits:
        """Return the limits of one output."""
        return OutputLimits(self.min_argmax_agreement, self.min_cosine, self.max_abs_error)


class AccuracySection(OutputAccuracySection):
    """The accuracy that each artefact must reach on the server, against the FP32 reference."""

    added_keys = ("outputs",)

    metric: MetricSection | None = Field(None, description="metric of your own task, in addition")
    int8_on_generated_data: Switch = Field(
        False, description="allow INT8 of trained weights that saw only generated inputs"
    )
    outputs: dict[Name, OutputAccuracySection] = Field(
        {}, description="limits of single outputs, in place of the common ones"
    )

    def to_value(self, folder: Path) -> AccuracyLimits:
        """Return the limits."""
        return AccuracyLimits(
            self.min_argmax_agreement,
            self.min_cosine,
            self.max_abs_error,
            self.metric.to_value(folder) if self.metric is not None else None,
            self.int8_on_generated_data,
            tuple((name, section.to_limits()) for name, section in self.outputs.items()),
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

    added_keys = ("dimensions", "batched", "outputs")

    source: SourceSection = Field(description="the source of the model")
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
        defined = [*self.dimensions, *([LENGTH] if self.lengths is not None else [])]
        mistakes = [
            wrong(f"inputs.{name}.shape.{n}", _undefined(size, defined), size)
            for name, section in self.inputs.items()
            for n, size in enumerate(section.shape)
            if isinstance(size, str) and size not in (LENGTH, *defined)
        ]
        with_length = [name for name, section in self.inputs.items() if LENGTH in section.shape]
        if with_length and self.lengths is None:
            rule = f"is required by the dimension {LENGTH} of {', '.join(with_length)}"
            mistakes.append(wrong("lengths", rule, None))
        if LENGTH in self.dimensions:
            mistakes.append(wrong(f"dimensions.{LENGTH}", "is given by `lengths`", LENGTH))
        earlier = {LENGTH} if self.lengths is not None else set()
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

    @field_serializer("output")
    def _earlier_default(self, output: str | None) -> str | None:
        """Return what studies have stored where no output was named."""
        return "logits" if output is None and not self.outputs else output

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
        """Return the model of this name."""
        return ModelSpec(
            name=name,
            source=self.source.to_value(folder),
            payloads=self._payloads(),
            calibration=self.calibration.to_value(folder),
            evaluation=self.evaluation.to_value(folder),
            accuracy=self.accuracy.to_value(folder),
            outputs=tuple(self.outputs) if self.output is None else (self.output,),
            calibration_percentile=self.calibration.percentile,
        )

    def _payloads(self) -> Payloads:
        tensors = tuple(section.to_value(key) for key, section in self.inputs.items())
        dimensions = tuple(own.to_dimension(key) for key, own in self.dimensions.items())
        if self.lengths is None:
            return Payloads(tensors, dimensions=dimensions, batched=self.batched)
        return Payloads(tensors, self.lengths.to_value(), dimensions, self.batched)
