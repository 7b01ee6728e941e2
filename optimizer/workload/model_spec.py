"""A model to serve: its source, its requests, and how its accuracy is judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from optimizer.errors import UsageError
from optimizer.workload.streams import Payloads

AccuracyEvidence = Literal["task", "dataset", "synthetic"]
"""The basis of an accuracy figure: a task metric, a user's data, or generated inputs."""

USUAL_PERCENTILE = 99.999
"""On trained MiniLM more accurate than 100: outliers (1 in 100,000) do not widen the range."""


@dataclass(frozen=True)
class TransformersSource:
    """A `transformers` model: a checkpoint, or an architecture with seeded random weights.

    Attributes:
        class_name: class of the `transformers` package, such as "BertForSequenceClassification".
        checkpoint: directory or hub name; None for random weights.
        config: keyword arguments of the architecture's configuration, as JSON text.
        seed: random seed of the weights.
    """

    class_name: str
    checkpoint: str | None = None
    config: str = "{}"
    seed: int = 0


@dataclass(frozen=True)
class OnnxSource:
    """An ONNX file with its external data beside it; the first axis is the batch."""

    path: Path


@dataclass(frozen=True)
class Call:
    """A call of a model by a model of the Python backend.

    Attributes:
        count: mean number of calls for each request of the caller.
    """

    model: str
    count: float = 1.0


Calls = tuple[tuple[str, tuple[Call, ...]], ...]
"""Calls in their order, by the calling model's name in the repository."""


@dataclass(frozen=True)
class RepositorySource:
    """A model of an existing Triton repository, served by any backend as it is.

    Attributes:
        repository: folder of the repository.
        model: name of the model's folder in it.
        version: that requests name; None for the newest that is served.
        completions: names of models, this one or its steps, and the text of their complete
            config.pbtxt, where the file leaves out what a server completes.
        calls: of other models by this one and by its steps; None where a request has to show them.
    """

    repository: Path
    model: str
    version: int | None = None
    completions: tuple[tuple[str, str], ...] = ()
    calls: Calls | None = ()

    @property
    def completed(self) -> str:
        """Text of the model's complete config.pbtxt; empty where the file is complete."""
        return dict(self.completions).get(self.model, "")

    @property
    def own_calls(self) -> tuple[Call, ...]:
        """Calls of other models by the model itself."""
        return dict(self.calls or ()).get(self.model, ())

    def step(self, name: str) -> RepositorySource:
        """Return the source of a model that this one is composed of."""
        return replace(self, model=name, version=None)

    @property
    def folder(self) -> Path:
        """The model's folder."""
        return self.repository / self.model


@dataclass(frozen=True)
class TokenizerSource:
    """The first step of a generated pipeline: texts become tokens of one length.

    Attributes:
        path: tokenizer.json of the tokenizers package.
        max_length: tokens that texts are truncated and padded to, special tokens included.
        outputs: of "input_ids", "attention_mask" and "token_type_ids", those that the model takes.
    """

    path: Path
    max_length: int
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class SoftmaxSource:
    """The last step of a generated pipeline: the most probable labels, with their probabilities.

    Attributes:
        labels: one for each output of the model.
        top_k: how many labels are returned.
    """

    labels: tuple[str, ...]
    top_k: int = 1


PIPELINE_OUTPUTS = ("label", "score")
"""Outputs of a generated pipeline: texts, and FP32 probabilities."""


@dataclass(frozen=True)
class PipelineSource:
    """A pipeline that is generated from a tokeniser, a model and a softmax with labels.

    Attributes:
        kind: an ensemble, or a Python model that calls the steps.
        steps: in the order in which a request passes them.
        max_batch_size: of the pipeline itself: the inferences in one request.
    """

    kind: Literal["ensemble", "bls"]
    steps: tuple[ModelSpec, ...]
    max_batch_size: int = 1


Source = (
    TransformersSource
    | OnnxSource
    | RepositorySource
    | TokenizerSource
    | SoftmaxSource
    | PipelineSource
)


@dataclass(frozen=True)
class DataSet:
    """Inputs for calibration or evaluation.

    Attributes:
        file: .npz with one array per input tensor, shape [samples, ...], .jsonl with one JSON
            object of the inputs' values a row, or another file or directory of requests.
        samples: number of samples.
        seed: random seed of generated inputs.
        tensors: the inputs as JSON text, a list of rows by input tensor. Without a file and
            tensors, inputs are generated from the workload's distribution, or are requests of its
            file.
    """

    file: Path | None
    samples: int
    seed: int
    tensors: str | None = None

    @property
    def generated(self) -> bool:
        """Whether the inputs are generated."""
        return self.file is None and self.tensors is None


@dataclass(frozen=True)
class TaskMetric:
    """A metric of the model's task, such as accuracy or F1 on labelled samples.

    Attributes:
        file, function: Python function of (inputs by name, outputs), arrays over all evaluation
            samples, that returns a number; higher is better.
        minimum: least number that it must return.
    """

    file: Path
    function: str
    minimum: float


@dataclass(frozen=True)
class OutputLimits:
    """The accuracy that an output must reach against the reference.

    Attributes:
        min_argmax_agreement: share of samples with the same largest value, 0 to 1; for integers,
            truth values and texts the share of equal elements.
        min_cosine: mean cosine similarity, -1 to 1; for integers, truth values and texts the mean
            share of equal elements of a sample.
        max_abs_error: largest absolute difference of any value; None does not judge it.
    """

    min_argmax_agreement: float
    min_cosine: float
    max_abs_error: float | None = None


@dataclass(frozen=True)
class AccuracyLimits(OutputLimits):
    """The accuracy that a served artefact must reach: that of every output.

    Attributes:
        outputs: limits of single outputs, in place of the common ones.
        int8_on_generated_data: whether INT8 of trained weights may be recommended if it was
            calibrated or judged on generated inputs.
    """

    metric: TaskMetric | None = None
    int8_on_generated_data: bool = False
    outputs: tuple[tuple[str, OutputLimits], ...] = ()

    def of(self, output: str) -> OutputLimits:
        """Return the limits of one output."""
        return dict(self.outputs).get(output, self)


_Output = TypeVar("_Output")


def chosen_outputs(outputs: Mapping[str, _Output], names: Sequence[str]) -> dict[str, _Output]:
    """Return the outputs that are served: the named ones, all where none is named.

    Args:
        outputs: the model's own that are tensors, by name.
        names: see `ModelSpec.outputs`.

    Raises:
        UsageError: where the model lacks one of them, or has none at all.
    """
    if not outputs:
        raise UsageError("the model must have an output that is a tensor, and has none")
    for name in names:
        if name not in outputs:
            raise UsageError(f"the model has no output {name!r}; it has {', '.join(outputs)}")
    return {name: outputs[name] for name in names or outputs}


@dataclass(frozen=True)
class Texts:
    """The texts that a step before a model turns into its requests."""

    payloads: Payloads
    tokenizer: TokenizerSource


@dataclass(frozen=True)
class ModelSpec:
    """One model of the space file, or a step of a generated pipeline.

    Attributes:
        outputs: names of the outputs that are served and judged; empty for all.
        calibration_percentile: percentage of an activation's values in its INT8 range.
        texts: that the calibration and evaluation inputs are made from; None for a model whose
            inputs are no tokens of a generated pipeline.
    """

    name: str
    source: Source
    payloads: Payloads
    calibration: DataSet
    evaluation: DataSet
    accuracy: AccuracyLimits
    outputs: tuple[str, ...] = ()
    calibration_percentile: float = USUAL_PERCENTILE
    texts: Texts | None = None

    @property
    def version(self) -> str:
        """Version of the model that requests name; empty for the newest that is served."""
        source = self.source
        given = source.version if isinstance(source, RepositorySource) else None
        return "" if given is None else str(given)

    @property
    def accuracy_evidence(self) -> AccuracyEvidence:
        """The basis of the model's accuracy figures."""
        if self._is_drawn(self.evaluation):
            return "synthetic"
        return "task" if self.accuracy.metric is not None else "dataset"

    @property
    def trained(self) -> bool:
        """Whether the weights are trained; those of given files are taken to be."""
        source = self.source
        return not isinstance(source, TransformersSource) or source.checkpoint is not None

    def int8_is_a_guess(self, *, calibrated: bool) -> bool:
        """Return whether INT8 of trained weights rests on generated inputs that nobody allowed.

        Args:
            calibrated: whether the INT8 in question takes ranges from the calibration inputs.
        """
        drawn = self._is_drawn(self.evaluation) or (calibrated and self._is_drawn(self.calibration))
        return self.trained and drawn and not self.accuracy.int8_on_generated_data

    def _is_drawn(self, inputs: DataSet) -> bool:
        """Return whether inputs have values that are drawn, and not those of real requests."""
        payloads = self.texts.payloads if self.texts is not None else self.payloads
        return inputs.generated and not payloads.recorded
