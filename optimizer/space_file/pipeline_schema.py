"""The schema of a pipeline that is generated: a tokeniser, a model, and a softmax with labels."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from optimizer.files.tokenizer_file import TOKENIZER_FILE, Vocabulary, read_vocabulary
from optimizer.files.untrusted import UnreadableError, is_there
from optimizer.space_file.accuracy_schema import AccuracySection
from optimizer.space_file.section import (
    Count,
    ModelName,
    Name,
    Section,
    folder_of,
    raise_all,
    wrong,
)
from optimizer.space_file.source_schema import SourceSection
from optimizer.workload.model_spec import (
    PIPELINE_OUTPUTS,
    AccuracyLimits,
    DataSet,
    ModelSpec,
    PipelineSource,
    SoftmaxSource,
    Texts,
    TokenizerSource,
)
from optimizer.workload.request_sizes import LengthDistribution
from optimizer.workload.streams import LENGTH, Payloads, TensorSpec

_OF_SOURCE = "source"
"""Value of keys that take what the source of the model has."""

_EXACT = AccuracyLimits(min_argmax_agreement=1.0, min_cosine=0.9999)
"""Accuracy of the steps around a model, which compute the same as their references."""

_LOGITS = (-8.0, 8.0)
"""Bounds of the drawn outputs of a model, on which a softmax is judged by itself."""

_MOST_WORDS = 300
"""Words of a vocabulary that drawn texts consist of."""

_TENSORS: Mapping[str, float] = {"input_ids": 0, "attention_mask": 1, "token_type_ids": 0}
"""Outputs of a tokeniser, and a valid value of each."""


class TokenizerSection(Section):
    """The step that turns texts into tokens."""

    tokenizer: str = Field(
        description="tokenizer.json of the tokenizers package, or a directory that has one;"
        " `source` is the checkpoint of the model"
    )
    max_length: Count = Field(
        description="tokens that texts are truncated and padded to, special tokens included"
    )
    outputs: Annotated[
        list[Literal["input_ids", "attention_mask", "token_type_ids"]],
        Field(min_length=1, max_length=3),
    ] = Field(["input_ids", "attention_mask"], description="the inputs that the model takes")


class StepModelSection(Section):
    """The model of a pipeline."""

    source: SourceSection = Field(description="the source of the model, not one of a repository")
    output: Name = Field("logits", description="the output that the softmax takes")
    accuracy: AccuracySection = Field(
        AccuracySection(),
        description="limits of the accuracy check; an artefact that misses one is excluded",
    )

    @field_validator("source")
    @classmethod
    def _is_built(cls, source: SourceSection) -> SourceSection:
        if source.repository is not None:
            rule = "must be none of a repository: its ensembles are searched as they are"
            raise wrong("repository", rule, source.repository)
        return source


class SoftmaxSection(Section):
    """The step that turns outputs of the model into labels and their probabilities."""

    labels: Literal["source"] | Annotated[list[str], Field(min_length=1, max_length=10_000)] = (
        Field(description="a label for each output of the model; `source` is its id2label")
    )
    top_k: Count = Field(1, description="how many labels are returned, the most probable first")


_KINDS: Mapping[str, type[Section]] = {
    "tokenizer": TokenizerSection,
    "source": StepModelSection,
    "labels": SoftmaxSection,
}


def _kind_of_step(value: object) -> str | None:
    """Return the key that says what a step is; None where there is not exactly one."""
    if isinstance(value, Section):
        return next(key for key, kind in _KINDS.items() if isinstance(value, kind))
    keys: Collection[object] = value if isinstance(value, Mapping) else ()
    given = [key for key in _KINDS if key in keys]
    return given[0] if len(given) == 1 else None


_Step = Annotated[
    Annotated[TokenizerSection, Tag("tokenizer")]
    | Annotated[StepModelSection, Tag("source")]
    | Annotated[SoftmaxSection, Tag("labels")],
    Discriminator(
        _kind_of_step,
        custom_error_type="space_rule",
        custom_error_message=f"must have exactly one of {', '.join(_KINDS)}",
    ),
]


class PipelineSection(Section):
    """A pipeline that is generated: texts in, labels out."""

    kind: Literal["ensemble", "bls"] = Field(
        "ensemble", description="an ensemble of Triton, or a Python model that calls the steps"
    )
    steps: dict[ModelName, _Step] = Field(
        description="three steps by name, one each with `tokenizer`, `source` and `labels`"
    )

    @field_validator("steps")
    @classmethod
    def _each_kind_once(cls, steps: dict[str, _Step], info: ValidationInfo) -> dict[str, _Step]:
        given = [_kind_of_step(step) for step in steps.values()]
        if sorted(map(str, given)) != sorted(_KINDS):
            rule = "must be three steps: one with tokenizer, one with source, and one with labels"
            raise wrong("", rule, given)
        raise_all(cls, list(_Steps(steps, folder_of(info)).mistakes()))
        return steps

    @property
    def model_name(self) -> str:
        """Name of the step that is a model."""
        return next(n for n, step in self.steps.items() if isinstance(step, StepModelSection))

    @property
    def model_source(self) -> SourceSection:
        """The source of the step that is a model."""
        model = self.steps[self.model_name]
        assert isinstance(model, StepModelSection)
        return model.source

    def vocabulary(self, folder: Path) -> tuple[str, ...]:
        """Return the first words of the tokeniser's vocabulary, each of which is one token."""
        return _Steps(self.steps, folder).vocabulary.words[:_MOST_WORDS]

    def to_source(self, texts: ModelSpec, folder: Path) -> PipelineSource:
        """Return the pipeline as a source.

        Args:
            texts: the requests, and the texts for calibration and evaluation.
        """
        return PipelineSource(self.kind, tuple(_Steps(self.steps, folder).to_values(texts)))


class _Steps:
    """The steps in the order in which a request passes them."""

    def __init__(self, steps: Mapping[str, _Step], folder: Path) -> None:
        by_kind = {_kind_of_step(step): name for name, step in steps.items()}
        self._names = [by_kind[kind] for kind in _KINDS]
        self._folder = folder
        tokenizer, model, softmax = (steps[name] for name in self._names)
        assert isinstance(tokenizer, TokenizerSection)
        assert isinstance(model, StepModelSection)
        assert isinstance(softmax, SoftmaxSection)
        self._tokenizer, self._model, self._softmax = tokenizer, model, softmax

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokeniser's. Raises UnreadableError."""
        path = self._tokenizer_path()
        assert path is not None, "the section was validated"
        return read_vocabulary(path)

    def mistakes(self) -> Iterator[PydanticCustomError]:
        """Yield what does not fit together, each with the key of its step."""
        tokenizer, model, softmax = self._names
        limits = self._model.source.config_limits(self._folder)
        yield from self._tokenizer_mistakes(tokenizer, model, limits)
        labels, count = self._labels(), limits.get("num_labels")
        if not labels:
            rule = f"must be listed: the source of {model} does not tell them here"
            yield wrong(f"{softmax}.labels", rule, _OF_SOURCE)
        elif count is not None and len(labels) != count:
            rule = f"must be as many as the outputs of {model} (num_labels {count})"
            yield wrong(f"{softmax}.labels", rule, labels)
        elif self._softmax.top_k > len(labels):
            rule = f"must be at most the number of labels, {len(labels)}"
            yield wrong(f"{softmax}.top_k", rule, self._softmax.top_k)

    def _tokenizer_mistakes(
        self, step: str, model: str, limits: Mapping[str, int]
    ) -> Iterator[PydanticCustomError]:
        path, key = self._tokenizer_path(), f"{step}.tokenizer"
        if path is None:
            rule = f"source needs a checkpoint directory in {model}.source"
            yield wrong(key, rule, _OF_SOURCE)
            return
        positions = limits.get("max_position_embeddings")
        if positions is not None and self._tokenizer.max_length > positions:
            rule = f"must not be above max_position_embeddings of {model} ({positions})"
            yield wrong(f"{step}.max_length", rule, self._tokenizer.max_length)
        try:
            size = read_vocabulary(path).size
        except UnreadableError as error:
            yield wrong(key, str(error), str(path))
            return
        largest = limits.get("vocab_size")
        if largest is not None and size > largest:
            rule = f"must have at most the tokens of {model} (vocab_size {largest}), has {size}"
            yield wrong(key, rule, str(path))

    def _tokenizer_path(self) -> Path | None:
        given = self._tokenizer.tokenizer
        if given == _OF_SOURCE:
            given = self._model.source.checkpoint or ""
            if not (given and is_there(self._folder / given)):
                return None
        path = (self._folder / given).resolve()
        return path / TOKENIZER_FILE if path.is_dir() else path

    def _labels(self) -> tuple[str, ...]:
        """Return the labels; none where they are those of a source that does not tell them."""
        if self._softmax.labels != _OF_SOURCE:
            return tuple(self._softmax.labels)
        named = self._model.source.configuration(self._folder).get("id2label")
        if not isinstance(named, Mapping) or not all(str(n) in named for n in range(len(named))):
            return ()
        return tuple(str(named[str(n)]) for n in range(len(named)))

    def to_values(self, texts: ModelSpec) -> Iterator[ModelSpec]:
        """Yield the steps as models."""
        path = self._tokenizer_path()
        assert path is not None, "the section was validated"
        outputs = tuple(self._tokenizer.outputs)
        tokenizer = TokenizerSource(path, self._tokenizer.max_length, outputs)
        labels, output = self._labels(), self._model.output
        logits = TensorSpec(output, "FP32", (len(labels),), *_LOGITS)
        tokens = tuple(
            TensorSpec(name, "INT64", (LENGTH,), _TENSORS[name], _TENSORS[name]) for name in outputs
        )
        lengths = LengthDistribution((tokenizer.max_length,), (1.0,))
        names = iter(self._names)

        yield ModelSpec(
            next(names),
            tokenizer,
            texts.payloads,
            texts.calibration,
            texts.evaluation,
            _EXACT,
            outputs,
        )
        yield ModelSpec(
            next(names),
            self._model.source.to_value(self._folder),
            Payloads(tokens, lengths),
            texts.calibration,
            texts.evaluation,
            self._model.accuracy.to_value(self._folder),
            (output,),
            texts.calibration_percentile,
            Texts(texts.payloads, tokenizer),
        )
        drawn = DataSet(None, texts.evaluation.samples, texts.evaluation.seed)
        yield ModelSpec(
            next(names),
            SoftmaxSource(labels, self._softmax.top_k),
            Payloads((logits,)),
            drawn,
            drawn,
            _EXACT,
            PIPELINE_OUTPUTS,
        )
