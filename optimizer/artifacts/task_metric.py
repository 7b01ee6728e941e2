"""A metric of the model's own task, computed by the user's Python function."""

from __future__ import annotations

import runpy
from collections.abc import Sequence

import numpy as np

from optimizer.errors import UsageError, cause_text
from optimizer.workload.model_spec import TaskMetric
from optimizer.workload.streams import Tensors, stack, with_batch_axis


def evaluate_metric(
    metric: TaskMetric, requests: Sequence[Tensors], outputs: Tensors, *, batched: bool = True
) -> float:
    """Call the user's function with all samples.

    Args:
        requests: of one inference and equal shapes; the function gets their tensors with an axis of
            samples in front.
        outputs: served outputs by name, shape [samples, ...]; a model's only output is passed as
            the array itself.
        batched: whether the requests have a batch axis, which becomes that of the samples.

    Raises:
        UsageError: when the file, the function or its result cannot be used.
    """
    where = f"{metric.file}:{metric.function}"
    try:
        defined = runpy.run_path(str(metric.file))
        if metric.function not in defined:
            raise UsageError(f"{where}: the file defines no such function")
        given = next(iter(outputs.values())) if len(outputs) == 1 else outputs
        samples = requests if batched else map(with_batch_axis, requests)
        result = defined[metric.function](stack(list(samples)), given)
    except UsageError:
        raise
    except Exception as error:  # whatever the user's own code raises
        raise UsageError(f"{where}: {cause_text(error)}") from error
    if not isinstance(result, int | float | np.integer | np.floating) or not np.isfinite(result):
        raise UsageError(f"{where}: must return a finite number, got {result!r}")
    return float(result)
