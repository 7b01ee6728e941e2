"""Which model is served, where it comes from and how its accuracy is judged. Pure values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from optimizer.workload.streams import Payloads

AccuracyEvidence = Literal["task", "dataset", "synthetic"]
"""What an accuracy figure rests on: a task metric, a user's data, or generated inputs."""

USUAL_PERCENTILE = 99.999
"""Better than all values on trained MiniLM: one value in 100,000 does not stretch the range."""


@dataclass(frozen=True)
class TransformersSource:
    """A `transformers` model: a checkpoint, or an architecture with seeded random weights.

    Attributes:
        class_name: class of the `transformers` package, such as "BertForSequenceClassification".
        checkpoint: directory or hub name; None for random weights.
        config: keyword arguments of the architecture's configuration, as JSON text.
        seed: of the random weights.
    """

    class_name: str
    checkpoint: str | None = None
    config: str = "{}"
    seed: int = 0


@dataclass(frozen=True)
class OnnxSource:
    """An ONNX file; external data lies beside it. Its first axis is the batch."""

    path: Path


@dataclass(frozen=True)
class DataSet:
    """Inputs for calibration or evaluation.

    Attributes:
        file: .npz with one array per input tensor, shape [samples, ...], or .jsonl with one JSON
            object of the inputs' values a row.
        samples: how many are used.
        seed: of the generated ones.
        tensors: inputs themselves, as JSON text: a list of rows by input tensor. Without these
            and a file, inputs are generated from the workload's own distribution.
    """

    file: Path | None
    samples: int
    seed: int
    tensors: str | None = None

    @property
    def generated(self) -> bool:
        """Whether the inputs are drawn, and no person's data."""
        return self.file is None and self.tensors is None


@dataclass(frozen=True)
class TaskMetric:
    """A figure of the model's own task, such as accuracy or F1 on labelled samples.

    Attributes:
        file, function: a Python function of (inputs by name, outputs), arrays over all evaluation
            samples, that returns a number; higher is better.
        minimum: the least that it must return.
    """

    file: Path
    function: str
    minimum: float


@dataclass(frozen=True)
class AccuracyLimits:
    """What a served artefact must reach against the FP32 reference on held-out inputs.

    Attributes:
        min_argmax_agreement: share of samples whose largest output is the same one, 0 to 1.
        min_cosine: smallest mean cosine similarity of the outputs, -1 to 1.
        max_abs_error: largest absolute difference of any output; None does not judge it.
        metric: of the task, None without one.
        int8_on_generated_data: whether INT8 of trained weights may be recommended though it was
            calibrated or judged on generated inputs.
    """

    min_argmax_agreement: float
    min_cosine: float
    max_abs_error: float | None = None
    metric: TaskMetric | None = None
    int8_on_generated_data: bool = False


@dataclass(frozen=True)
class ModelSpec:
    """One model of the space file.

    Attributes:
        output: name of the tensor that it answers with.
        calibration_percentile: share of an activation's values that its INT8 range holds, in %.
    """

    name: str
    source: TransformersSource | OnnxSource
    payloads: Payloads
    calibration: DataSet
    evaluation: DataSet
    accuracy: AccuracyLimits
    output: str = "logits"
    calibration_percentile: float = USUAL_PERCENTILE

    @property
    def accuracy_evidence(self) -> AccuracyEvidence:
        """What this model's accuracy figures rest on."""
        if self.evaluation.generated:
            return "synthetic"
        return "task" if self.accuracy.metric is not None else "dataset"

    @property
    def trained(self) -> bool:
        """Whether its weights mean something, as far as can be known."""
        source = self.source
        return isinstance(source, OnnxSource) or source.checkpoint is not None

    @property
    def int8_is_a_guess(self) -> bool:
        """Whether INT8 of trained weights would rest on generated inputs, and nobody allowed it."""
        generated = self.calibration.generated or self.evaluation.generated
        return self.trained and generated and not self.accuracy.int8_on_generated_data
