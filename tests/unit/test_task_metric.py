"""A metric of the user's own, and what the gate makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from optimizer.artifacts.task_metric import evaluate_metric
from optimizer.errors import UsageError
from optimizer.workload.model_spec import TaskMetric
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
    assert evaluate_metric(metric(tmp_path), REQUESTS, {"y": OUTPUTS}) == 0.75


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
        evaluate_metric(metric(tmp_path, text), REQUESTS, {"y": OUTPUTS})
    assert str(caught.value).startswith(f"{tmp_path}/metrics.py:accuracy: ")


def test_several_outputs_are_passed_by_name(tmp_path: Path) -> None:
    text = "def accuracy(inputs, outputs): return outputs['y'][0, 1] + outputs['z'].sum()"
    outputs: Tensors = {"y": OUTPUTS, "z": np.full((4, 1), 2.0)}
    assert evaluate_metric(metric(tmp_path, text), REQUESTS, outputs) == 9.0
