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


def ensemble(name: str, *steps: str) -> ComposedModel:
    return ComposedModel(name, "ensemble", tuple(map(Step, steps)))


@pytest.mark.parametrize(
    ("composed", "loads"),
    [
        ((), {"a": (), "b": (), "c": (), "d": ()}),
        # Triton loads the steps of ensembles, also of ensembles within, and no others.
        ((ensemble("d", "a", "b"),), {"c": (), "d": ("a", "b")}),
        ((ensemble("c", "a"), ensemble("d", "c", "b")), {"d": ("a", "b", "c")}),
        ((of("d", Step("a"), Step("b")),), {"a": (), "b": (), "c": (), "d": ()}),
        # A BLS model in an ensemble, an ensemble that is called by a BLS model, and nested ones.
        ((of("c", Step("a")), ensemble("d", "c", "b")), {"a": (), "d": ("b", "c")}),
        ((ensemble("c", "a"), of("d", Step("c"), Step("b"))), {"b": (), "c": ("a",), "d": ()}),
        ((of("c", Step("a")), of("d", Step("c"))), {"a": (), "b": (), "c": (), "d": ()}),
        # A model that is called by both is loaded once.
        ((of("c", Step("a")), ensemble("d", "c", "a")), {"b": (), "d": ("a", "c")}),
    ],
)
def test_a_server_is_asked_for_what_no_ensemble_brings(
    composed: tuple[ComposedModel, ...], loads: dict[str, tuple[str, ...]]
) -> None:
    graph = ModelGraph(composed)
    graph.check(["a", "b", "c", "d"])
    assert list(graph.loads(["a", "b", "c", "d"])) == list(loads.items())


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
