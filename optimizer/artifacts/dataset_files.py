"""Inputs for calibration and evaluation, from a file or from the space file itself.

They are padded to the workload's longest length as requests are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from optimizer.errors import Mistake
from optimizer.files.request_checks import Arrays, Expected, refuse, typed_rows
from optimizer.files.request_files import read_rows, rows_of_objects
from optimizer.workload.streams import Payloads, Tensors


def rows_from_file(path: Path, samples: int, payloads: Payloads) -> list[Tensors]:
    """Read the first `samples` rows of a file or directory; see `read_rows`.

    Returns:
        Requests of batch 1 and equal shapes.

    Raises:
        UsageError: every mistake of the file, with the row or tensor, the rule and the value.
    """
    rows = read_rows(path, Expected.in_data_set(payloads), samples)
    return _requests(rows.rows, payloads, str(path))


def rows_from_tensors(text: str, samples: int, payloads: Payloads, source: str) -> list[Tensors]:
    """Return the first `samples` rows of a JSON object of lists of rows, by input tensor.

    Args:
        source: file or key that holds them, for messages.

    Raises:
        UsageError: every mistake, as `rows_from_file`.
    """
    columns: dict[str, list[object]] = json.loads(text)
    rule = f"must have at least {samples} rows"
    too_short = {name: len(rows) for name, rows in columns.items() if len(rows) < samples}
    refuse(source, [Mistake(name, rule, str(count)) for name, count in too_short.items()])
    objects = [{name: values[n] for name, values in columns.items()} for n in range(samples)]
    rows = rows_of_objects(objects, Expected.in_data_set(payloads), samples, source)
    return _requests(rows, payloads, source)


def _requests(rows: Sequence[Arrays], payloads: Payloads, source: str) -> list[Tensors]:
    """Return rows as requests of one inference, which have one shape."""
    of_types = typed_rows(rows, payloads.tensors)
    # Every tensor has its values, so nothing is drawn.
    requests = payloads.sample(len(rows), np.random.default_rng(0), rows=of_types)
    for spec in payloads.tensors:
        shapes = sorted({request[spec.name].shape for request in requests})
        if len(shapes) > 1:
            rule = f"must have one size in every row along {', '.join(spec.free)}"
            batch_axes = 1 if payloads.batched else 0
            sizes = " and ".join(str(list(shape[batch_axes:])) for shape in shapes[:2])
            refuse(source, [Mistake(spec.name, rule, sizes)])
    return requests
