"""The schema of a model's accuracy: the data that it is judged on, and its limits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import (
    Field,
    JsonValue,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

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
    require_file,
    require_requests,
    wrong,
)
from optimizer.workload.model_spec import (
    USUAL_PERCENTILE,
    AccuracyLimits,
    DataSet,
    OutputLimits,
    TaskMetric,
)

_Share = Annotated[Number, Field(ge=0, le=1)]


class DataSection(Section):
    """Inputs from a file, or given here, or generated from the model's inputs and lengths."""

    file: str | None = Field(
        None,
        description=".npz with an array of shape [samples, ...] for each input, .jsonl with an"
        " object of values by input on each line, perf_analyzer's .json, or a directory with one"
        " file for each sample; shorter rows are padded to the longest length",
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
            require_requests(folder_of(info) / file)
        return file

    @field_validator("tensors")
    @classmethod
    def _finite(
        cls, tensors: dict[str, list[JsonValue]] | None
    ) -> dict[str, list[JsonValue]] | None:
        check_finite(tensors)
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
        None, description="largest allowed difference of any value; by default not checked"
    )

    def to_limits(self) -> OutputLimits:
        """Return the limits of one output."""
        return OutputLimits(self.min_argmax_agreement, self.min_cosine, self.max_abs_error)


class AccuracySection(OutputAccuracySection):
    """The accuracy that each artefact must reach on the server, against the FP32 reference."""

    added_keys = ("outputs",)

    metric: MetricSection | None = Field(None, description="additional metric of your task")
    int8_on_generated_data: Switch = Field(
        False, description="allow INT8 of trained weights with generated inputs"
    )
    outputs: dict[Name, OutputAccuracySection] = Field(
        {}, description="limits of single outputs, instead of the common ones"
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
