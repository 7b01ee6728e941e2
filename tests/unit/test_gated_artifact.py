"""Rows of prepared.json, and what a watcher is told of an artefact."""

from __future__ import annotations

import json
import math
from dataclasses import replace

from optimizer.artifacts.accuracy import Accuracy, FailingBatch
from optimizer.configuration.model_graph import ComposedModel, ModelGraph, in_sequence
from optimizer.configuration.serving_config import ArtifactSpec
from optimizer.measurement.host_share import HostTiming
from optimizer.study.events import ArtifactReady
from optimizer.study.gated_artifact import (
    GatedArtifact,
    GatedShapes,
    GatePlan,
    from_json,
    memory_mib,
    ready_event,
    to_json,
)

SPEC = ArtifactSpec("bert", "onnxruntime", "python", "int8")
RIGHT = GatedArtifact(
    SPEC,
    "ab",
    0.0,
    Accuracy(0.98, 0.997, 0.9, 0.01, 64),
    100.0,
    None,
    GatedShapes((1, 9, 16), (16, 32)),
    None,
    (HostTiming(1, 0.3, 0.009),),
)
FAILING = replace(
    RIGHT, shapes=GatedShapes((1, 5, 8), (16, 32)), failing=FailingBatch(16, "rows are zeros")
)
PLAN = GatePlan((32, 16), (1, 4, 8, 16))


def test_a_row_is_read_as_it_was_written() -> None:
    infinite = replace(RIGHT, accuracy=Accuracy(0.5, 0.5, 0.0, math.inf, 64), dropped="accuracy")
    for result in (RIGHT, FAILING, infinite, replace(RIGHT, accuracy=None)):
        text = json.dumps(to_json(result), allow_nan=False)
        assert from_json(json.loads(text), SPEC) == result


def test_the_shapes_are_told() -> None:
    row = to_json(FAILING)
    assert row["shapes"] == {"batch_sizes": (1, 5, 8), "lengths": (16, 32)}
    assert row["failing_batch"] == {"size": 16, "reason": "rows are zeros"}


def test_a_row_without_shapes_is_none() -> None:
    row = to_json(RIGHT)
    del row["shapes"], row["failing_batch"], row["timings"]
    assert from_json(row, SPEC) is None


def test_what_was_gated_holds_for_the_same_shapes_and_fewer() -> None:
    assert RIGHT.covers(PLAN)
    assert RIGHT.covers(GatePlan((32,), (1,)))
    assert FAILING.covers(PLAN)
    assert replace(RIGHT, dropped="accuracy", shapes=GatedShapes((), ())).covers(PLAN)
    assert not RIGHT.covers(GatePlan((64, 32, 16), (1, 4, 8, 16)))
    assert not RIGHT.covers(GatePlan((32, 16), (1, 64)))
    assert not replace(RIGHT, shapes=None).covers(PLAN)


def test_the_line_of_an_artefact_stays_short() -> None:
    figures = "argmax agreement 0.980, cosine 0.9970"
    assert ready_event(RIGHT) == ArtifactReady(SPEC.label, figures, dropped=False)
    assert ready_event(FAILING).detail == f"{figures}, batches below 16"
    assert ready_event(replace(RIGHT, dropped="too far off")).dropped


def test_the_memory_of_a_pipeline_is_what_its_steps_leave_of_the_whole() -> None:
    graph = ModelGraph((ComposedModel("top", "ensemble", in_sequence(("a", "b", "c"))),))
    specs = {name: replace(SPEC, model=name) for name in ("a", "b", "c", "top", "other")}
    # c never has a second instance, so that it was not measured by itself.
    measured = {"a": 30.0, "b": 50.0, "c": None, "top": 200.0, "other": 10.0}
    by_spec = {specs[name]: mib for name, mib in measured.items()}
    assert {spec.model: mib for spec, mib in memory_mib(by_spec, graph).items()} == {
        "a": 30.0,
        "b": 50.0,
        "top": 120.0,
        "other": 10.0,
    }
    assert memory_mib(by_spec, None)[specs["top"]] == 200.0
