"""The graph of composed models: what is refused, and the form that earlier studies have."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from optimizer.configuration.model_graph import ComposedModel, ModelGraph, Step, in_sequence
from optimizer.study.directory import StudyDirectory
from optimizer.study.searched_space import read_searched, write_searched

STORED = Path(__file__).parent / "stored_pipeline"
"""Written when a graph was ensembles with names of steps."""


def of(name: str, *steps: Step) -> ComposedModel:
    return ComposedModel(name, "bls", steps)


@pytest.mark.parametrize(
    ("graph", "rule"),
    [
        (ModelGraph((of("a", Step("b")), of("b", Step("a")))), "step 'b' is no model before"),
        (ModelGraph((of("c", Step("a")),)), "'c' is none of the models"),
        (ModelGraph((of("a", Step("c")),)), "step 'c' is no model before"),
        (ModelGraph((of("a", Step("b", calls=0.0)),)), "step 'b' must be called, got calls 0"),
        (ModelGraph((of("a", Step("b", (1,))),)), "'a': none of the steps b can be the first"),
        (ModelGraph((of("a", Step("b", (0,))),)), "'a': none of the steps b can be the first"),
    ],
)
def test_a_graph_that_does_not_fit_its_models_is_refused(graph: ModelGraph, rule: str) -> None:
    with pytest.raises(ValueError, match=f"graph: {rule}"):
        graph.check(["a", "b"])


def test_models_are_composed_of_the_steps_of_their_steps() -> None:
    graph = ModelGraph((of("b", Step("a")), of("c", Step("b"), Step("b"))))
    graph.check(["a", "b", "c"])
    assert graph.below("c") == {"a", "b"}
    assert not graph.below("a")
    assert graph.names == {"b", "c"}
    assert graph.step_names == {"a", "b"}
    assert not graph.ensemble_names


def test_the_ensembles_of_an_earlier_study_are_read(tmp_path: Path) -> None:
    shutil.copytree(STORED, tmp_path / "study")
    directory = StudyDirectory(tmp_path / "study")
    steps = in_sequence(("tokenizer", "classifier", "labeller"))
    expected = ModelGraph((ComposedModel("text_classifier", "ensemble", steps),))
    searched = read_searched(directory)
    assert searched.search_space.graph == expected
    [record] = directory.trials.read_all().values()
    assert record.config.graph == expected
    assert searched.search_space.position_of(record.config) is not None
    write_searched(directory, searched)
    assert read_searched(directory) == searched
