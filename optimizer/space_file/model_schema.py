"""The schema of a model: its source, and the sections of its requests and its accuracy.

A rule over several keys is checked in the smallest section that holds them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Self

from pydantic import (
    Field,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from optimizer.files.request_payloads import with_file
from optimizer.space_file.accuracy_schema import AccuracySection, CalibrationSection, DataSection
from optimizer.space_file.input_schema import (
    VALUE_KEYS,
    DimensionName,
    DimensionSection,
    InputSection,
    LengthSection,
)
from optimizer.space_file.parameter_schema import ParametersSection
from optimizer.space_file.pipeline_schema import PipelineSection
from optimizer.space_file.section import (
    Name,
    Number,
    Positive,
    Section,
    Switch,
    folder_of,
    raise_all,
    require_requests,
    wrong,
)
from optimizer.space_file.source_schema import SourceSection
from optimizer.workload.model_spec import PIPELINE_OUTPUTS, ModelSpec, PipelineSource
from optimizer.workload.streams import LENGTH, Payloads

CONFIG_LIMITS = {"input_ids": "vocab_size", "token_type_ids": "type_vocab_size"}
"""Integer inputs of `transformers` models, and the configuration value that bounds each."""


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
    """One model or pipeline: its source, its requests, and how its accuracy is judged."""

    added_keys = ("pipeline", "requests", "dimensions", "batched", "outputs")

    source: SourceSection | None = Field(None, description="the source of the model")
    pipeline: PipelineSection | None = Field(
        None, description="instead of a source: a generated pipeline from texts to labels"
    )
    requests: str | None = Field(
        None,
        description="file with the values of requests, for inputs without values:"
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
    output: Name | None = Field(None, description="the only output that is served and checked")
    outputs: Annotated[list[Name], Field(max_length=64)] = Field(
        [], description="the outputs that are served and checked; by default all"
    )
    calibration: CalibrationSection = Field(
        CalibrationSection(seed=1), description="inputs for the calibration of INT8"
    )
    evaluation: DataSection = Field(
        DataSection(seed=2), description="held-out inputs, on which accuracy is measured"
    )
    accuracy: AccuracySection = Field(
        AccuracySection(),
        description="limits of the accuracy check; an artefact that misses one is excluded",
    )
    demand_per_second: Positive | None = Field(
        None, description="requests per second to this model, if there are several"
    )
    limit: LimitSection | None = Field(
        None, description="limit of this model, instead of the common one"
    )
    parameters: ParametersSection | None = Field(
        None, description="parameters of this model, instead of the common ones"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.source is None and self.pipeline is None:
            raise PydanticCustomError("missing", "is required", {"key": "source"})
        if self.pipeline is None:
            rule = "needs a pipeline, whose tokenizer has a vocabulary"
            words = {name: own.words for name, own in self.inputs.items() if own.words is not None}
            own = [wrong(f"inputs.{name}.words", rule, given) for name, given in words.items()]
            raise_all(type(self), own)
            return self
        if self.source is not None:
            raise wrong("pipeline", "must not be given beside source", self.pipeline.kind)
        given = [(spec.data_type, spec.shape) for spec in self.inputs.values()]
        if given != [("BYTES", [1])]:
            rule = "must be one input of a pipeline: data_type BYTES, shape [1]"
            raise wrong("inputs", rule, ", ".join(self.inputs))
        keys = ("lengths", "dimensions", "batched", "output", "outputs")
        rule = "must be left out of a pipeline, whose texts are inferences of their own"
        raise_all(type(self), [wrong(k, rule, k) for k in keys if k in self.model_fields_set])
        return self

    @property
    def built_source(self) -> SourceSection:
        """The source of the model, or of the model among a pipeline's steps."""
        if self.pipeline is not None:
            return self.pipeline.model_source
        assert self.source is not None, "the section was validated"
        return self.source

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
        if self.pipeline is not None:
            payloads = self._with_words(payloads, self.pipeline.vocabulary(folder))
        if self.requests is not None:
            payloads = with_file(payloads, (folder / self.requests).resolve())
        pipeline = self.pipeline
        spec = ModelSpec(
            name=name,
            source=(
                PipelineSource(pipeline.kind, ())
                if pipeline is not None
                else self.built_source.to_value(folder)
            ),
            payloads=payloads,
            calibration=self.calibration.to_value(folder),
            evaluation=self.evaluation.to_value(folder),
            accuracy=self.accuracy.to_value(folder),
            outputs=tuple(self.outputs) if self.output is None else (self.output,),
            calibration_percentile=self.calibration.percentile,
        )
        if pipeline is None:
            return spec
        return replace(spec, source=pipeline.to_source(spec, folder), outputs=PIPELINE_OUTPUTS)

    def _with_words(self, payloads: Payloads, vocabulary: Sequence[str]) -> Payloads:
        """Return texts with the words that they consist of."""
        [text] = payloads.tensors
        pattern = self.inputs[text.name].pattern_of_words(vocabulary)
        return replace(payloads, tensors=(replace(text, pattern=pattern or text.pattern),))

    def _payloads(self) -> Payloads:
        requests = self.requests is not None
        tensors = tuple(
            section.to_value(key, requests=requests) for key, section in self.inputs.items()
        )
        dimensions = tuple(own.to_dimension(key) for key, own in self.dimensions.items())
        if self.lengths is None:
            return Payloads(tensors, dimensions=dimensions, batched=self.batched)
        return Payloads(tensors, self.lengths.to_value(), dimensions, self.batched)
