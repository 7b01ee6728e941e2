"""Inputs for the calibration of INT8 graphs and for the evaluation of accuracy, without overlap."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from optimizer.artifacts.dataset_files import rows_from_file, rows_from_tensors
from optimizer.artifacts.generated_steps import encoded_texts, opened_tokenizer
from optimizer.errors import UsageError
from optimizer.files.request_payloads import of_most_frequent_shape, rows_of_file
from optimizer.workload.data_types import encoded
from optimizer.workload.model_spec import DataSet, ModelSpec, RepositorySource, Texts
from optimizer.workload.streams import LENGTH, Payloads, Tensors

Purpose = Literal["calibration", "evaluation"]
_SMALLEST_STREAM = 2
_SEED_STREAMS: dict[Purpose, int] = {"calibration": 0, "evaluation": 1}
_TAKEN_IN_A_ROW = 300
"""Number of taken rows, drawn one after the other, after which no others are taken to exist."""

MASK = "attention_mask"
"""Name of transformers' input that marks padding."""


@dataclass(frozen=True)
class ModelInputs:
    """Requests of batch 1 and equal shapes.

    No row is in both lists, unless the payloads have too few different values.

    Attributes:
        calibration: empty for a model of a repository with a file of requests, which needs none.
        smallest: for the evaluation too, of the smallest size in each dimension but the length;
            empty where there is one size, or the evaluation's rows are given.
    """

    calibration: list[Tensors]
    evaluation: list[Tensors]
    smallest: list[Tensors] = field(default_factory=list)


@dataclass(frozen=True)
class ShapedRows:
    """Requests of one shape, on which artefacts are judged.

    Attributes:
        length: that they are padded to.
        sizes: of the other dimensions, for messages; empty for those of the evaluation's rows.
    """

    length: int
    rows: list[Tensors]
    sizes: str = ""

    @property
    def name(self) -> str:
        """A name for files: the length, or "smallest"."""
        return "smallest" if self.sizes else str(self.length)


def model_inputs(model: ModelSpec) -> ModelInputs:
    """Read or draw the inputs that `model` names.

    Where requests have a file, they are taken from it in place of drawn ones.

    Where requests are tokens of texts, the texts are read or drawn.

    Raises:
        UsageError: when given rows do not fit the model's tensors, or a row is in both sets.
    """
    if model.texts is not None:
        return _tokenised(model, model.texts)
    datasets: dict[Purpose, DataSet] = {
        "calibration": model.calibration,
        "evaluation": model.evaluation,
    }
    rows: dict[Purpose, list[Tensors]] = {}
    taken: set[str] = set()
    # Given rows come first, so that drawn ones can avoid them.
    for purpose in sorted(datasets, key=lambda purpose: datasets[purpose].generated):
        dataset = datasets[purpose]
        if dataset.generated:
            rows[purpose] = _generated(purpose, dataset, model, taken)
        else:
            source = str(dataset.file or f"models.{model.name}.{purpose}.tensors")
            rows[purpose] = _given(dataset, source, model.payloads)
            _check_disjoint(source, rows[purpose], taken)
        taken |= {row_digest(row) for row in rows[purpose]}
    return ModelInputs(
        rows["calibration"], rows["evaluation"], _smallest(model, rows["evaluation"])
    )


def _tokenised(model: ModelSpec, texts: Texts) -> ModelInputs:
    """Return the inputs of the tokeniser before a model as the model gets them."""
    own = model_inputs(replace(model, payloads=texts.payloads, texts=None))
    tokenizer = opened_tokenizer(model.name, texts.tokenizer)
    [text] = texts.payloads.tensors
    outputs = texts.tokenizer.outputs
    rows = (
        [encoded_texts(tokenizer, row[text.name], outputs) for row in each]
        for each in (own.calibration, own.evaluation)
    )
    return ModelInputs(*rows)


def cropped(rows: Sequence[Tensors], length: int, payloads: Payloads) -> list[Tensors]:
    """Return requests cut to a shorter length along every length axis.

    A request that is padded in front keeps its end, so that not only padding is left.
    """
    first = 1 if payloads.batched else 0
    axes = {
        spec.name: [axis for axis, size in enumerate(spec.shape, first) if size == LENGTH]
        for spec in payloads.tensors
    }
    return [_cut(row, length, axes) for row in rows]


def rows_by_length(
    evaluation: Sequence[Tensors], lengths: Sequence[int], payloads: Payloads
) -> dict[int, list[Tensors]]:
    """Return the requests at the longest length of the workload, then at `lengths`, descending."""
    longest = payloads.lengths.longest
    descending = [longest, *sorted({*lengths} - {longest}, reverse=True)]
    return {length: cropped(evaluation, length, payloads) for length in descending}


def rows_by_shape(
    inputs: ModelInputs, lengths: Sequence[int], payloads: Payloads
) -> list[ShapedRows]:
    """Return the requests of `rows_by_length`, then those of the smallest sizes."""
    by_length = rows_by_length(inputs.evaluation, lengths, payloads)
    shaped = [ShapedRows(length, rows) for length, rows in by_length.items()]
    if inputs.smallest:
        row = inputs.smallest[0]
        own = payloads.sizes_of({n: v[0] for n, v in row.items()} if payloads.batched else row)
        sizes = ", ".join(f"{name} {size}" for name, size in own.items() if name != LENGTH)
        shaped.append(ShapedRows(payloads.lengths.longest, inputs.smallest, sizes))
    return shaped


def _cut(row: Tensors, length: int, axes: Mapping[str, Sequence[int]]) -> Tensors:
    mask = row.get(MASK)
    kept = slice(length)
    if mask is not None and 0 < mask.ndim <= 2 and not mask[..., :length].any():
        kept = slice(mask.shape[-1] - length, None)
    return {
        # The ellipsis keeps an array without axes an array.
        name: values[
            (*(kept if axis in axes[name] else slice(None) for axis in range(values.ndim)), ...)
        ]
        for name, values in row.items()
    }


def row_digest(row: Tensors) -> str:
    """Return the digest of one request: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, values in sorted(row.items()):
        digest.update(f"{name} {values.dtype} {values.shape}".encode())
        digest.update(encoded(values))
    return digest.hexdigest()


def rows_digest(rows: Sequence[Tensors]) -> str:
    """Return the digest of a list of requests, which depends on their order."""
    return hashlib.sha256("".join(map(row_digest, rows)).encode()).hexdigest()


def _given(dataset: DataSet, source: str, payloads: Payloads) -> list[Tensors]:
    if dataset.file is not None:
        return rows_from_file(dataset.file, dataset.samples, payloads)
    return rows_from_tensors(dataset.tensors or "{}", dataset.samples, payloads, source)


def _generated(
    purpose: Purpose, dataset: DataSet, model: ModelSpec, taken: Set[str]
) -> list[Tensors]:
    """Draw rows that are not taken; of the largest size in each dimension but the length."""
    rng = np.random.default_rng([dataset.seed, _SEED_STREAMS[purpose]])
    payloads = replace(model.payloads, dimensions=model.payloads.largest().dimensions)
    if payloads.file is None:
        return _draw(dataset.samples, payloads, rng, taken)
    if purpose == "calibration" and isinstance(model.source, RepositorySource):
        return []
    rows = _of_file(payloads, rng, taken)
    if purpose == "calibration" and len(rows) > 1:
        rows = rows[1::2]  # the others are left for the evaluation
    return rows[: dataset.samples]


def _smallest(model: ModelSpec, evaluation: Sequence[Tensors]) -> list[Tensors]:
    """Return `ModelInputs.smallest`, as many as the evaluation's rows at most."""
    payloads, dataset = model.payloads, model.evaluation
    smallest = replace(payloads, dimensions=payloads.smallest().dimensions)
    if not dataset.generated or payloads.largest().dimensions == smallest.dimensions:
        return []
    rng = np.random.default_rng([dataset.seed, _SMALLEST_STREAM])
    if payloads.file is None:
        return _draw(dataset.samples, smallest, rng, set())
    rows = rows_of_file(payloads)
    requests = smallest.sample(len(rows), rng, rows=rows)
    fewest = min(map(_elements, requests))
    if fewest == _elements(evaluation[0]):
        return []
    chosen = of_most_frequent_shape([each for each in requests if _elements(each) == fewest])
    return chosen[: dataset.samples]


def _elements(request: Tensors) -> int:
    return sum(values.size for values in request.values())


def _of_file(payloads: Payloads, rng: np.random.Generator, taken: Set[str]) -> list[Tensors]:
    """Return the different requests of the file, of its most frequent shape.

    Those that are taken are left out, unless there are no others.
    """
    rows = rows_of_file(payloads)
    requests = of_most_frequent_shape(payloads.sample(len(rows), rng, rows=rows))
    different = {row_digest(request): request for request in requests}
    others = [request for digest, request in different.items() if digest not in taken]
    return others or list(different.values())


def _draw(
    samples: int, payloads: Payloads, rng: np.random.Generator, taken: Set[str]
) -> list[Tensors]:
    """Draw rows.

    Taken rows are avoided while there are others. Where every request that clients can send is
    taken, no judgement could rest on others.
    """
    rows: list[Tensors] = []
    drawn: list[Tensors] = []
    in_a_row = 0
    while len(rows) < samples and in_a_row < _TAKEN_IN_A_ROW:
        drawn = payloads.sample(samples - len(rows), rng)
        new = [row for row in drawn if row_digest(row) not in taken]
        rows += new
        in_a_row = 0 if new else in_a_row + len(drawn)
    return rows + drawn[: samples - len(rows)]


def _check_disjoint(source: str, rows: list[Tensors], taken: Set[str]) -> None:
    shared = sum(row_digest(row) in taken for row in rows)
    if shared:
        raise UsageError(
            f"{source}: {shared} of {len(rows)} rows are used for calibration and for evaluation;"
            " accuracy must be judged on rows that calibration has not seen"
        )
