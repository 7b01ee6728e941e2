"""The shape of a space file: its sections, their keys and the rules that they must meet.

pydantic checks every key; what spans several is checked on the smallest section that holds them.
`optimizer.space_file` reads files with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from optimizer.cost import Price
from optimizer.model_spec import AccuracyLimits, DataSet, ModelSpec, OnnxSource, TransformersSource
from optimizer.search_space import Parameter, Value, parameters_in_order
from optimizer.serving_config import Precision, Runtime
from optimizer.workload import DataType, LengthDistribution, Payloads, TensorSpec

_NAME = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1, strict=True)]
_Share = Annotated[float, Field(ge=0, le=1)]

CONFIG_LIMITS = {"input_ids": "vocab_size", "token_type_ids": "type_vocab_size"}
"""Integer inputs of `transformers` models and the configuration value that they stay below."""


def _wrong(key: str, rule: str, value: object) -> PydanticCustomError:
    """A mistake found below the section that is being checked."""
    context = {"key": key, "rule": rule, "value": repr(value)}
    return PydanticCustomError("space_rule", "{rule}", context)


def duration_seconds(text: str) -> float:
    """Seconds of a duration such as "8h", "90m" or "30s". Raises ValueError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if match is None or float(match[1]) == 0:
        raise ValueError(f"must be a number above 0 and s, m or h, such as 8h; got {text!r}")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def _seconds(value: object) -> object:
    """A text as a duration; a number is seconds already."""
    return duration_seconds(value) if isinstance(value, str) else value


Duration = Annotated[_Positive, BeforeValidator(_seconds)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class SourceSection(_Section):
    """Where the model comes from: `checkpoint` or `config` of a transformers class, or `onnx`."""

    class_name: str | None = Field(
        None, alias="class", description="class of the transformers package"
    )
    config: dict[str, Any] | None = Field(
        None, description="the architecture's configuration; random weights, nothing is downloaded"
    )
    seed: int = Field(0, description="of the random weights")
    checkpoint: str | None = Field(None, description="directory or hub name of trained weights")
    onnx: str | None = Field(None, description="ONNX file; external data beside it")

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [k for k in ("config", "checkpoint", "onnx") if getattr(self, k) is not None]
        if len(given) != 1:
            raise _wrong("", "must have exactly one of config, checkpoint, onnx", given)
        if (self.onnx is None) != (self.class_name is not None):
            raise _wrong("class", "goes with config or checkpoint, not with onnx", self.class_name)
        return self

    @field_validator("onnx", "checkpoint")
    @classmethod
    def _exists(cls, given: str | None, info: ValidationInfo) -> str | None:
        if given is None or (info.field_name == "checkpoint" and not _looks_local(given)):
            return given
        path = _folder(info) / given
        if not path.exists():
            raise PydanticCustomError(
                "space_rule", "file must exist, looked at {at}", {"at": str(path)}
            )
        return given

    def known_limits(self, folder: Path) -> dict[str, Any]:
        """The model's configuration as far as it is known without loading it."""
        if self.checkpoint is not None:
            file = folder / self.checkpoint / "config.json"
            return dict(json.loads(file.read_text())) if file.is_file() else {}
        return self.config or {}

    def to_value(self, folder: Path) -> TransformersSource | OnnxSource:
        """The source with paths resolved against the file's folder."""
        if self.onnx is not None:
            return OnnxSource((folder / self.onnx).resolve())
        checkpoint = self.checkpoint
        if checkpoint is not None and _looks_local(checkpoint):
            checkpoint = str((folder / checkpoint).resolve())
        config = json.dumps(self.config or {}, sort_keys=True)
        return TransformersSource(self.class_name or "", checkpoint, config, self.seed)


def _looks_local(checkpoint: str) -> bool:
    return checkpoint.startswith((".", "/")) or checkpoint.count("/") > 1


def _folder(info: ValidationInfo) -> Path:
    return Path((info.context or {}).get("folder", "."))


class InputSection(_Section):
    """One input tensor and the bounds of its values; `length` in the shape is the request's."""

    data_type: DataType = "INT64"
    shape: list[_Count | Literal["length"]] = Field(
        ["length"], description="without the batch axis"
    )
    minimum: float = Field(description="smallest value, inclusive")
    maximum: float = Field(description="largest value, inclusive")
    pad: float = Field(0, description="fills the positions beyond the request's own length")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.minimum > self.maximum:
            raise _wrong("minimum", f"must not be above maximum ({self.maximum:g})", self.minimum)
        return self

    def to_value(self, name: str) -> TensorSpec:
        """The tensor of this name."""
        shape = tuple(None if n == "length" else n for n in self.shape)
        return TensorSpec(name, self.data_type, shape, self.minimum, self.maximum, self.pad)


class LengthSection(_Section):
    """How long requests are, in tokens: one of fixed, uniform, weights."""

    fixed: _Count | None = None
    uniform: tuple[_Count, _Count] | None = Field(None, description="[shortest, longest]")
    weights: dict[_Count, _Positive] | None = Field(None, description="weight by length")

    @field_validator("weights", mode="before")
    @classmethod
    def _whole_lengths(cls, weights: object) -> object:
        # JSON has only text keys, so a stored space comes back with them.
        if isinstance(weights, Mapping):
            return {int(k) if str(k).isdecimal() else k: v for k, v in weights.items()}
        return weights

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [k for k in ("fixed", "uniform", "weights") if getattr(self, k)]
        if len(given) != 1:
            raise _wrong("", "must have exactly one of fixed, uniform, weights", given)
        if self.uniform is not None and self.uniform[0] > self.uniform[1]:
            raise _wrong("uniform", "must be [shortest, longest]", self.uniform)
        return self

    def to_value(self) -> LengthDistribution:
        """The distribution over whole lengths."""
        if self.fixed is not None:
            return LengthDistribution((self.fixed,), (1.0,))
        if self.uniform is not None:
            lengths = tuple(range(self.uniform[0], self.uniform[1] + 1))
            return LengthDistribution(lengths, (1.0,) * len(lengths))
        pairs = sorted((self.weights or {}).items())
        return LengthDistribution(tuple(k for k, _ in pairs), tuple(w for _, w in pairs))


class DataSection(_Section):
    """Inputs from a file, or generated from the model's own inputs and lengths."""

    file: str | None = Field(None, description=".npz with one array per input, [samples, ...]")
    samples: _Count = 64
    seed: int = 0

    @field_validator("file")
    @classmethod
    def _exists(cls, file: str | None, info: ValidationInfo) -> str | None:
        if file is not None and not (_folder(info) / file).is_file():
            at = str(_folder(info) / file)
            raise PydanticCustomError("space_rule", "file must exist, looked at {at}", {"at": at})
        return file

    def to_value(self, folder: Path) -> DataSet:
        """The data set with its path resolved."""
        file = (folder / self.file).resolve() if self.file is not None else None
        return DataSet(file, self.samples, self.seed)


class AccuracySection(_Section):
    """What an artefact must reach against the FP32 reference, through the running server."""

    min_argmax_agreement: _Share = 0.99
    min_cosine: Annotated[float, Field(ge=-1, le=1)] = 0.99
    max_abs_error: _Positive | None = None


class ModelSection(_Section):
    """One model: its source, what requests to it carry, and how its accuracy is judged."""

    source: SourceSection
    inputs: Annotated[dict[str, InputSection], Field(min_length=1)]
    lengths: LengthSection
    output: str = Field("logits", description="tensor that the model answers with")
    calibration: DataSection = DataSection(seed=1)
    evaluation: DataSection = DataSection(seed=2)
    accuracy: AccuracySection = AccuracySection()

    @model_validator(mode="after")
    def _within_the_model(self, info: ValidationInfo) -> Self:
        known = self.source.known_limits(_folder(info))
        for name, key in CONFIG_LIMITS.items():
            tensor = self.inputs.get(name)
            if tensor is not None and key in known and tensor.maximum >= known[key]:
                rule = f"must be below the model's {key} ({known[key]})"
                raise _wrong(f"inputs.{name}.maximum", rule, tensor.maximum)
        longest = self.lengths.to_value().longest
        positions = known.get("max_position_embeddings")
        if positions is not None and longest > positions:
            rule = f"must not be above the model's max_position_embeddings ({positions})"
            raise _wrong("lengths", rule, longest)
        return self

    def to_value(self, name: str, folder: Path) -> ModelSpec:
        """The model of this name."""
        tensors = tuple(section.to_value(key) for key, section in self.inputs.items())
        return ModelSpec(
            name=name,
            source=self.source.to_value(folder),
            payloads=Payloads(tensors, self.lengths.to_value()),
            calibration=self.calibration.to_value(folder),
            evaluation=self.evaluation.to_value(folder),
            accuracy=AccuracyLimits(**self.accuracy.model_dump()),
            output=self.output,
        )


class TrafficSection(_Section):
    """What the fleet must serve."""

    arrivals: Literal["poisson"] = "poisson"
    demand_per_second: _Positive = Field(500, description="requests a second, whole fleet")
    headroom: Annotated[float, Field(ge=0, le=10)] = Field(
        0, description="share of capacity kept free above the demand"
    )


class LimitSection(_Section):
    """The latency that must be met."""

    percentile: Annotated[float, Field(ge=50, le=99.9)] = 95
    latency_ms: _Positive = 500


class PriceSection(_Section):
    """What one instance costs; without `usd_per_hour` the shipped price list is asked."""

    instance_type: str
    usd_per_hour: _Positive | None = None
    source: str | None = None
    as_of: str | None = Field(None, description="date of the price")

    @model_validator(mode="after")
    def _priced(self, info: ValidationInfo) -> Self:
        prices: Mapping[str, Price] = (info.context or {}).get("prices", {})
        if self.usd_per_hour is None and self.instance_type not in prices:
            rule = f"must be listed ({', '.join(sorted(prices))}) where usd_per_hour is not given"
            raise _wrong("instance_type", rule, self.instance_type)
        return self

    def to_value(self, prices: Mapping[str, Price]) -> Price:
        """The price with its source."""
        if self.usd_per_hour is None:
            return prices[self.instance_type]
        return Price(
            self.instance_type,
            self.usd_per_hour,
            self.source or "space file",
            self.as_of or "undated",
        )


def _distinct(values: list[Any]) -> list[Any]:
    for n, value in enumerate(values):
        if value in values[:n]:
            raise ValueError(f"values must be distinct, {value!r} is listed twice")
    return values


_Sizes = Annotated[list[_Count], Field(min_length=1)]


class ParametersSection(_Section):
    """What may be tried. A single value fixes a parameter."""

    runtime: Annotated[list[Runtime], Field(min_length=1)] = ["onnxruntime"]
    precision: Annotated[list[Precision], Field(min_length=1)] = ["fp32"]
    batching: Annotated[list[Annotated[bool, Field(strict=True)]], Field(min_length=1)] = [False]
    max_batch_size: Annotated[list[_Count], Field(min_length=1)] = [8]
    preferred_batch_sizes: Annotated[
        list[Literal["none", "half", "powers"] | _Sizes], Field(min_length=1)
    ] = Field(["none"], description="none, half, powers (derived from max_batch_size), or sizes")
    max_queue_delay_us: Annotated[
        list[Annotated[int, Field(ge=0, strict=True)]], Field(min_length=1)
    ] = [0]
    instance_count: Annotated[list[_Count], Field(min_length=1)] = [1]
    intra_op_threads: Annotated[list[_Count], Field(min_length=1)] = [1]
    padding: Annotated[list[Literal["max"] | _Sizes], Field(min_length=1)] = Field(
        ["max"], description="max, or lengths that requests are padded up to"
    )

    @field_validator("*", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return value if isinstance(value, list) else [value]

    @field_validator("*", mode="after")
    @classmethod
    def _distinct(cls, values: list[object]) -> list[object]:
        return _distinct(values)

    def to_values(self, model: str) -> tuple[Parameter, ...]:
        """The parameters of the model in their fixed order."""
        values: dict[str, Sequence[Value]] = {
            name: [tuple(sorted(v)) if isinstance(v, list) else v for v in getattr(self, name)]
            for name in type(self).model_fields
        }
        return parameters_in_order(model, values)


class MeasurementSection(_Section):
    """How long each load level lasts."""

    saturation_seconds: Duration = 8.0
    check_seconds: Duration = 10.0
    warmup_seconds: Duration = 1.0
    confirm_seconds: Duration = 20.0


class BudgetSection(_Section):
    """When the search ends, whichever comes first."""

    trials: _Count = 60
    wall_clock: Duration = 8 * 3600.0


class SpaceSection(_Section):
    """The whole file."""

    study: _NAME
    models: Annotated[dict[_NAME, ModelSection], Field(min_length=1, max_length=1)]
    traffic: TrafficSection = TrafficSection()
    limit: LimitSection = LimitSection()
    price: PriceSection
    parameters: ParametersSection
    conditions: list[str] = []
    measurement: MeasurementSection = MeasurementSection()
    budget: BudgetSection = BudgetSection()

    @model_validator(mode="after")
    def _across_sections(self) -> Self:
        ((name, model),) = self.models.items()
        if model.source.onnx is not None and "pytorch" in self.parameters.runtime:
            rule = f"pytorch needs a transformers source, models.{name} is an ONNX file"
            raise _wrong("parameters.runtime", rule, self.parameters.runtime)
        longest = model.lengths.to_value().longest
        for sizes in self.parameters.padding:
            if isinstance(sizes, list) and max(sizes) > longest:
                rule = f"must not be above the longest length ({longest})"
                raise _wrong("parameters.padding", rule, sizes)
        return self


def json_schema() -> dict[str, Any]:
    """JSON schema of the file, for editors."""
    return SpaceSection.model_json_schema()
