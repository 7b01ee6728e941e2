"""Inputs that calibrate INT8 graphs and inputs that judge accuracy: never the same rows."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import Mistake, UsageError
from optimizer.model_spec import DataSet, ModelSpec
from optimizer.workload import NUMPY_TYPES, Payloads, Tensors, TensorSpec

Purpose = Literal["calibration", "evaluation"]
_SEED_STREAMS: dict[Purpose, int] = {"calibration": 0, "evaluation": 1}
_DRAWS_PER_SAMPLE = 100


@dataclass(frozen=True)
class ModelInputs:
    """Requests of batch 1, all of one shape; no row is in both lists."""

    calibration: list[Tensors]
    evaluation: list[Tensors]


def model_inputs(model: ModelSpec) -> ModelInputs:
    """Read or draw the inputs that `model` asks for.

    Raises:
        UsageError: when a file does not fit the model's tensors, or a row is in both sets.
    """
    datasets: dict[Purpose, DataSet] = {
        "calibration": model.calibration,
        "evaluation": model.evaluation,
    }
    rows: dict[Purpose, list[Tensors]] = {}
    taken: set[str] = set()
    # Files first, so that what is drawn can stay clear of them.
    for purpose in sorted(datasets, key=lambda purpose: datasets[purpose].file is None):
        dataset = datasets[purpose]
        if dataset.file is None:
            stream = np.random.default_rng([dataset.seed, _SEED_STREAMS[purpose]])
            rows[purpose] = _draw(dataset.samples, model.payloads, stream, taken)
        else:
            rows[purpose] = read_rows(dataset.file, dataset.samples, model.payloads)
            _check_disjoint(dataset.file, rows[purpose], taken)
        taken |= {row_digest(row) for row in rows[purpose]}
    return ModelInputs(rows["calibration"], rows["evaluation"])


def row_digest(row: Tensors) -> str:
    """Digest of one request: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, values in sorted(row.items()):
        digest.update(f"{name} {values.dtype} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def rows_digest(rows: Sequence[Tensors]) -> str:
    """Digest of a list of requests; their order counts."""
    return hashlib.sha256("".join(map(row_digest, rows)).encode()).hexdigest()


def read_rows(path: Path, samples: int, payloads: Payloads) -> list[Tensors]:
    """Read the first `samples` rows of an .npz with one array [rows, ...] for each input tensor.

    Raises:
        UsageError: every mistake of the file, with the tensor, the rule and the value found.
    """
    arrays = _load(path)
    mistakes = _mistakes(arrays, samples, payloads)
    if mistakes:
        raise UsageError("\n".join([f"{path} cannot be used:", *(f"  {m}" for m in mistakes)]))
    columns = {
        spec.name: arrays[spec.name][:samples].astype(NUMPY_TYPES[spec.data_type])
        for spec in payloads.tensors
    }
    return [
        {name: values[row : row + 1] for name, values in columns.items()} for row in range(samples)
    ]


def _draw(
    samples: int, payloads: Payloads, rng: np.random.Generator, taken: Set[str]
) -> list[Tensors]:
    rows: list[Tensors] = []
    for _ in range(_DRAWS_PER_SAMPLE):
        drawn = payloads.sample(samples - len(rows), rng)
        rows += [row for row in drawn if row_digest(row) not in taken]
        if len(rows) == samples:
            return rows
    raise UsageError(
        f"the payloads have too few different values for {samples} samples that are not"
        " in the other set too"
    )


def _check_disjoint(path: Path, rows: list[Tensors], taken: Set[str]) -> None:
    shared = sum(row_digest(row) in taken for row in rows)
    if shared:
        raise UsageError(
            f"{path}: {shared} of {len(rows)} rows are used for calibration and for evaluation;"
            " accuracy must be judged on rows that calibration has not seen"
        )


def _load(path: Path) -> dict[str, NDArray[Any]]:
    try:
        archive = np.load(path, allow_pickle=False)
        # A .npy file loads as its array.
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise UsageError(f"{path}: must be an .npz file, got one bare array")
        with archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"{path}: must be a readable .npz file of plain arrays: {error}"
        ) from error


def _mistakes(arrays: dict[str, NDArray[Any]], samples: int, payloads: Payloads) -> list[Mistake]:
    names = sorted(spec.name for spec in payloads.tensors)
    unknown = [
        Mistake(name, f"is not an input; the inputs are {', '.join(names)}")
        for name in sorted(arrays.keys() - set(names))
    ]
    longest = payloads.lengths.longest
    of_tensors = [_mistake(arrays, spec, samples, longest) for spec in payloads.tensors]
    return [*unknown, *filter(None, of_tensors)] or _length_mistakes(arrays, payloads)


def _mistake(
    arrays: dict[str, NDArray[Any]], spec: TensorSpec, samples: int, longest: int
) -> Mistake | None:
    if spec.name not in arrays:
        return Mistake(spec.name, "is missing")
    values = arrays[spec.name]
    return _shape_mistake(spec, values, samples, longest) or _value_mistake(spec, values[:samples])


def _length_mistakes(arrays: dict[str, NDArray[Any]], payloads: Payloads) -> list[Mistake]:
    lengths = {spec.name: _lengths(spec, arrays[spec.name]) for spec in payloads.tensors}
    if len({length for own in lengths.values() for length in own}) <= 1:
        return []
    seen = ", ".join(f"{name} {own}" for name, own in lengths.items() if own)
    return [Mistake("lengths", "must be the same in every tensor", seen)]


def _lengths(spec: TensorSpec, values: NDArray[Any]) -> list[int]:
    return [n for n, axis in zip(values.shape[1:], spec.shape, strict=True) if axis is None]


def _shape_mistake(
    spec: TensorSpec, values: NDArray[Any], samples: int, longest: int
) -> Mistake | None:
    wanted = ", ".join("length" if n is None else str(n) for n in spec.shape)
    fits = len(values.shape) == len(spec.shape) + 1 and all(
        n == axis or axis is None for n, axis in zip(values.shape[1:], spec.shape, strict=True)
    )
    if not fits:
        return Mistake(spec.name, f"must have shape [rows, {wanted}]", str(list(values.shape)))
    if len(values) < samples:
        return Mistake(spec.name, f"must have at least {samples} rows", str(len(values)))
    sizes = _lengths(spec, values)
    if any(not 1 <= n <= longest for n in sizes):
        return Mistake(spec.name, f"must be 1 to {longest} long (longest request)", str(sizes))
    return None


def _value_mistake(spec: TensorSpec, values: NDArray[Any]) -> Mistake | None:
    integers = spec.data_type != "FP32"
    if not np.issubdtype(values.dtype, np.integer if integers else np.floating):
        kind = "integers" if integers else "floating-point numbers"
        return Mistake(spec.name, f"must hold {kind}", str(values.dtype))
    allowed = (values >= spec.minimum) & (values <= spec.maximum) | (values == spec.pad)
    if allowed.all():
        return None
    row = int(np.argwhere(~allowed)[0][0])
    rule = f"must be {spec.minimum:g} to {spec.maximum:g}, or {spec.pad:g} as padding"
    return Mistake(spec.name, rule, f"{values[~allowed].flat[0]} in row {row}")
