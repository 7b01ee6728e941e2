"""A metric of the user's own, and what the gate makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from optimizer.artifacts.accuracy import Accuracy, misses
from optimizer.artifacts.task_metric import evaluate_metric
from optimizer.errors import UsageError
from optimizer.workload.model_spec import AccuracyLimits, TaskMetric
from optimizer.workload.streams import Tensors

REQUESTS: list[Tensors] = [{"x": np.array([[n, n]])} for n in range(4)]
OUTPUTS = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
LABELLED = """
import numpy as np

LABELS = np.array([1, 0, 1, 1])

def accuracy(inputs, outputs):
    assert inputs["x"].shape == (4, 2)
    return (outputs.argmax(axis=-1) == LABELS).mean()
"""


def metric(folder: Path, text: str = LABELLED, function: str = "accuracy") -> TaskMetric:
    path = folder / "metrics.py"
    path.write_text(text)
    return TaskMetric(path, function, minimum=0.7)


def test_it_sees_all_samples_and_all_answers(tmp_path: Path) -> None:
    assert evaluate_metric(metric(tmp_path), REQUESTS, OUTPUTS) == 0.75


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("x = 1", "the file defines no such function"),
        ("def accuracy(inputs, outputs): return 1 / 0", "ZeroDivisionError: division by zero"),
        ("def accuracy(inputs, outputs): return 'good'", "must return a finite number, got 'good'"),
        ("def accuracy(inputs, outputs): return float('nan')", "must return a finite number"),
        ("def accuracy(inputs): return 1", "TypeError"),
        ("import nowhere_to_be_found", "ModuleNotFoundError"),
        ("def accuracy(:", "SyntaxError"),
    ],
)
def test_what_is_wrong_with_it_is_said_with_its_place(tmp_path: Path, text: str, rule: str) -> None:
    with pytest.raises(UsageError, match=rule) as caught:
        evaluate_metric(metric(tmp_path, text), REQUESTS, OUTPUTS)
    assert str(caught.value).startswith(f"{tmp_path}/metrics.py:accuracy: ")


@pytest.mark.parametrize(("figure", "missed"), [(0.7, False), (0.69, True), (-1.0, True)])
def test_what_misses_the_metric_leaves(tmp_path: Path, figure: float, missed: bool) -> None:
    limits = AccuracyLimits(0.9, 0.9, metric=metric(tmp_path))
    found = misses(Accuracy(1.0, 1.0, 1.0, 0.0, 4, metric=figure), limits)
    assert found == ([f"accuracy must be at least 0.7, got {figure}"] if missed else [])
