"""The schema of a model's inputs: their values, and the sizes of their free dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

import numpy as np
from pydantic import (
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from optimizer.space_file.section import (
    MAX_VALUES,
    Count,
    Number,
    Positive,
    Section,
    wrong,
)
from optimizer.workload.data_types import NUMPY_TYPES, DataType
from optimizer.workload.request_sizes import Dimension, LengthDistribution
from optimizer.workload.streams import LENGTH, TensorSpec
from optimizer.workload.text_pattern import text_pattern

Length = Annotated[int, Field(ge=1, le=1_000_000, strict=True)]
DimensionName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
_Scalar = (
    Annotated[bool, Field(strict=True)]
    | Annotated[int, Field(strict=True, ge=-(2**63), lt=2**64)]
    | Number
    | Annotated[str, Field(max_length=1_000_000)]
)
_GIVEN_KEYS = ("value", "values", "pattern", "words")
VALUE_KEYS = "minimum with maximum, value, values, pattern, words"
"""Keys with the values of an input, for messages."""

_KINDS = {"BYTES": "a text", "BOOL": "true or false"}


class InputSection(Section):
    """An input tensor and its values; one without any takes them from the model's `requests`."""

    added_keys = _GIVEN_KEYS

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
        None, description="values from which each element is drawn, such as a vocabulary of texts"
    )
    pattern: Annotated[str, Field(max_length=1000)] | None = Field(
        None, description="regular expression of texts, such as `[A-Z]{3}-[0-9]{4}`"
    )
    words: Length | tuple[Length, Length] | None = Field(
        None,
        description="number of words, or [fewest, most], of texts for a pipeline; words are"
        " drawn from the vocabulary of its tokenizer, and each is one token",
    )
    pad: Number = Field(0, description="value of positions beyond the request's length")

    @model_validator(mode="after")
    def _one_kind_of_values(self) -> Self:
        bounds = [key for key in ("minimum", "maximum") if getattr(self, key) is not None]
        given = [key for key in _GIVEN_KEYS if getattr(self, key) is not None]
        if len(bounds) == 1:
            raise wrong("", "must have both minimum and maximum", bounds)
        if bool(bounds) + len(given) > 1:
            raise wrong("", f"must have exactly one of {VALUE_KEYS}", [*bounds, *given])
        if bounds and self.data_type in ("BOOL", "BYTES"):
            raise wrong("minimum", f"{self.data_type} needs value or values", self.minimum)
        return self

    @field_validator("pattern")
    @classmethod
    def _of_texts(cls, pattern: str | None, info: ValidationInfo) -> str | None:
        if pattern is not None:
            if info.data.get("data_type", "BYTES") != "BYTES":
                raise ValueError("must go with data_type BYTES")
            text_pattern(pattern)
        return pattern

    @field_validator("words")
    @classmethod
    def _from_few_to_many(cls, words: int | tuple[int, int] | None) -> int | tuple[int, int] | None:
        if isinstance(words, tuple) and words[0] > words[1]:
            raise ValueError("must be [fewest, most]")
        return words

    def pattern_of_words(self, vocabulary: Sequence[str]) -> str:
        """Return the pattern of texts of `words`; empty where these are not given."""
        if self.words is None:
            return ""
        least, most = self.words if isinstance(self.words, tuple) else (self.words, self.words)
        word = f"({'|'.join(vocabulary)})"
        return f"{word}( {word}){{{least - 1},{most - 1}}}"

    @property
    def valued(self) -> bool:
        """Whether its values are given here."""
        return any(getattr(self, key) is not None for key in ("minimum", *_GIVEN_KEYS))

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

    def to_value(self, name: str, *, requests: bool = False) -> TensorSpec:
        """Return the tensor of this name.

        Args:
            requests: whether there is a file of requests, which has the values that are not here.
        """
        if requests and not self.valued:
            shape = tuple(self.shape)
            return TensorSpec(name, self.data_type, shape, pad=self.pad, from_file=True)
        choices: tuple[Any, ...] = tuple(self.values or ())
        if self.value is not None:
            choices = (self.value,)
        elif self.data_type == "BOOL" and not choices:
            choices = (False, True)
        low, high = self.minimum or 0.0, self.maximum or 0.0
        return TensorSpec(
            name,
            self.data_type,
            tuple(self.shape),
            minimum=low,
            maximum=high,
            pad=self.pad,
            choices=choices,
            pattern=self.pattern or "",
        )


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

    of: DimensionName | None = Field(None, description="dimension from which the size is computed")
    times: Count = Field(1, description="factor of the other dimension's size")
    plus: Annotated[int, Field(ge=0, le=10**6, strict=True)] = Field(
        0, description="number that is added to the product"
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
