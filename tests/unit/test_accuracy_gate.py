"""The accuracy gate on a session that a function answers: what it asks, what it concludes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from optimizer.artifacts.build_results import ModelArtifact, PreparedModel, Reference
from optimizer.configuration.model_graph import ComposedModel, ModelGraph, in_sequence
from optimizer.configuration.serving_config import (
    ArtifactSpec,
    ArtifactUse,
    ModelServing,
    ServingConfig,
)
from optimizer.errors import LoadTestFailure, TrialFailure
from optimizer.measurement.model_memory import ModelMemory
from optimizer.search.accuracy_gate import AccuracyGate, GateResult
from optimizer.search.gate_server import DeployedPipeline
from optimizer.study.events import Event, Note
from optimizer.study.gated_artifact import GatedShapes, GatePlan
from optimizer.triton.session import ModelFiles, ServingSession
from optimizer.workload.model_spec import AccuracyLimits, DataSet, ModelSpec, OnnxSource, TaskMetric
from optimizer.workload.request_sizes import LengthDistribution
from optimizer.workload.streams import OutputTensor, Payloads, Tensors, TensorSpec
from tests.unit.fake_session import Answer, FakeSession

PAYLOADS = Payloads(
    (TensorSpec("x", "FP32", (None,), minimum=-1, maximum=1),),
    LengthDistribution((2, 4), (1.0, 1.0)),
)
DATA = DataSet(None, 12, 0)
MODEL = ModelSpec(
    "sums", OnnxSource(Path("sums.onnx")), PAYLOADS, DATA, DATA, AccuracyLimits(0.9, 0.95), ("y",)
)
ARTIFACT = ModelArtifact(
    ArtifactSpec("sums", "onnxruntime", "python", "fp32"), Path("files"), "ab", "a test", 0.0, True
)
PLAN = GatePlan((4, 2), (1, 4, 8, 16))


def sums(batch: Tensors) -> NDArray[Any]:
    """Two outputs that go with the values of a row alone."""
    x = batch["x"].astype(np.float64)
    return np.stack([x.sum(axis=1), np.square(x).sum(axis=1) - 1.0], axis=1)


def references() -> tuple[Reference, ...]:
    rng = np.random.default_rng(0)
    made = []
    for length in (4, 2):
        rows: list[Tensors] = [
            {"x": rng.uniform(-1, 1, (1, length)).astype(np.float32)} for _ in range(12)
        ]
        made.append(Reference(length, rows, {"y": np.concatenate([sums(row) for row in rows])}))
    return tuple(made)


PREPARED = PreparedModel("sums", (OutputTensor("y", "FP32", (2,)),), references(), 100, False, 0.0)


def judged(
    answer: Answer,
    plan: GatePlan = PLAN,
    model: ModelSpec = MODEL,
    prepared: PreparedModel = PREPARED,
    **settings: Any,
) -> tuple[GateResult, FakeSession, list[Event]]:
    session, events = FakeSession(answer, **settings), list[Event]()
    gate = AccuracyGate(cast(ServingSession, session), "KIND_CPU", 2, events.append)
    return gate.judge(ARTIFACT, model, prepared, plan), session, events


def when(wrong: Callable[[NDArray[Any]], bool], then: Answer) -> Answer:
    """Answer rightly unless the batch is as `wrong` says."""
    return lambda batch: then(batch) if wrong(batch["x"]) else sums(batch)


def zeros(batch: Tensors) -> NDArray[Any]:
    return np.zeros((len(batch["x"]), 2))


def refuses(_: Tensors) -> NDArray[Any]:
    raise LoadTestFailure("sums did not answer: no memory")


def test_every_batch_at_every_length_is_asked_and_one_server_does() -> None:
    asked: set[tuple[int, ...]] = set()

    def answer(batch: Tensors) -> NDArray[Any]:
        asked.add(batch["x"].shape)
        return sums(batch)

    served, session, _ = judged(answer)
    assert {(size, length) for size in (1, 9, 16) for length in (2, 4)} <= asked
    assert served.shapes == GatedShapes((1, 9, 16), (2, 4))
    assert (served.dropped, served.failing) == (None, None)
    assert served.accuracy is not None
    assert served.accuracy.samples == 12
    [config] = session.served
    assert config.models[0].max_batch_size == 16
    assert set(served.served_ms) == {1, 12}
    assert served.memory == ModelMemory(708.0), "after a batch of 8"


def test_the_largest_batch_that_is_right_is_looked_for_downwards() -> None:
    served, session, _ = judged(when(lambda x: len(x) > 4, zeros))
    assert served.failing is not None
    assert served.failing.size == 8
    assert served.failing.reason.startswith("at 4 tokens, 8 of 8 outputs of a batch, ")
    assert served.shapes == GatedShapes((1, 3, 4), (2, 4))
    assert [c.models[0].max_batch_size for c in session.served] == [16, 8, 4]


def test_where_no_batch_is_right_requests_alone_are_left() -> None:
    served, _, _ = judged(when(lambda x: len(x) > 1, zeros))
    assert served.failing is not None
    assert served.failing.size == 4
    assert served.shapes.batch_sizes == (1,)
    assert served.dropped is None


def test_a_batch_that_is_wrong_at_a_shorter_length_only() -> None:
    served, _, _ = judged(when(lambda x: x.shape == (16, 2), zeros))
    assert served.failing is not None
    assert (served.failing.size, served.shapes.batch_sizes) == (16, (1, 5, 8))
    assert served.failing.reason.startswith("at 2 tokens, ")


def test_requests_that_are_merged_wrongly_are_found_though_whole_batches_are_right() -> None:
    """Twelve requests come to a server at once, as under load."""
    served, _, _ = judged(when(lambda x: len(x) in {12, 8}, zeros), plan=GatePlan((4,), (1, 16)))
    assert served.failing is not None
    assert served.failing.reason.startswith("requests merged into batches of up to 16: ")


def test_requests_of_several_shapes_at_once_are_compared_with_those_alone() -> None:
    """Six of the twelve have each length; batches of other tests are of other sizes."""
    served, _, _ = judged(when(lambda x: x.shape == (6, 2), zeros))
    assert served.failing is not None
    assert served.failing.reason.startswith(
        "requests of several shapes at once, at 2 tokens: 6 of 6 outputs of a batch"
    )
    failing, _, _ = judged(when(lambda x: x.shape == (6, 2), refuses))
    assert failing.failing is not None
    assert failing.failing.reason.startswith("requests of several shapes at once: sums did not")


def smallest() -> PreparedModel:
    """The same requests, and others of another dimension's smallest size."""
    rng = np.random.default_rng(1)
    rows: list[Tensors] = [{"x": rng.uniform(-1, 1, (1, 3)).astype(np.float32)} for _ in range(12)]
    outputs: Tensors = {"y": np.concatenate([sums(row) for row in rows])}
    last = Reference(4, rows, outputs, sizes="width 3")
    return replace(PREPARED, references=(*PREPARED.references, last))


def test_the_smallest_sizes_are_judged_as_the_longest_length_is() -> None:
    served, _, _ = judged(sums, prepared=smallest())
    assert served.shapes == GatedShapes((1, 9, 16), (2, 4))
    assert (served.dropped, served.failing) == (None, None)
    wrong, _, _ = judged(when(lambda x: x.shape[1] == 3, zeros), prepared=smallest())
    assert str(wrong.dropped).startswith("accuracy at width 3: ")
    in_a_batch, _, _ = judged(when(lambda x: x.shape == (16, 3), zeros), prepared=smallest())
    assert in_a_batch.failing is not None
    assert in_a_batch.failing.reason.startswith("at width 3, 16 of 16 outputs")


def test_a_batch_that_is_not_answered_is_tried_once_more_on_a_new_server() -> None:
    served, session, events = judged(when(lambda x: len(x) == 16, refuses))
    assert served.failing is not None
    assert served.failing.reason == "batch of 16 at 4 tokens: sums did not answer: no memory"
    assert len(session.failures) == 2
    tried = [event.text for event in events if isinstance(event, Note)]
    assert tried == ["sums/onnxruntime/fp32: sums did not answer: no memory; retrying once"]


def test_a_batch_that_fails_costs_the_figure_of_the_memory_nothing() -> None:
    served, _, _ = judged(when(lambda x: len(x) > 1, refuses))
    assert served.memory == ModelMemory(701.0)
    assert served.shapes.batch_sizes == (1,)


def test_one_failure_that_passes_costs_nothing() -> None:
    failures = iter([True])
    served, _, _ = judged(when(lambda x: len(x) == 16 and next(failures, False), refuses))
    assert (served.dropped, served.failing) == (None, None)


def test_a_length_that_is_not_answered_is_named() -> None:
    with pytest.raises(TrialFailure, match=r"^requests at 2 tokens: sums did"):
        judged(when(lambda x: x.shape[1] == 2, refuses))


@pytest.mark.parametrize("length", [2, 4])
def test_a_length_that_is_answered_wrongly_drops_the_artefact(length: int) -> None:
    served, _, _ = judged(when(lambda x: x.shape[1] == length, zeros))
    assert str(served.dropped).startswith(f"accuracy at {length} tokens: ")
    assert served.accuracy is not None


def test_a_size_that_the_server_did_not_execute_proves_nothing() -> None:
    """As where a cache answers, or the batcher splits what it was sent."""
    served, _, _ = judged(sums, executing=lambda batch: min(batch, 8))
    assert served.failing is not None
    assert served.failing.reason == (
        "batch of 16 at 4 tokens: the server was sent a batch of 16 but executed batches of 8"
    )


def test_requests_of_several_inferences_are_the_smallest_batch() -> None:
    asked: set[int] = set()

    def answer(batch: Tensors) -> NDArray[Any]:
        asked.add(len(batch["x"]))
        return sums(batch)

    served, _, _ = judged(answer, plan=GatePlan((4,), (3, 10, 32), request_size=3))
    assert served.shapes.batch_sizes == (3, 15, 30)
    assert not {1, 2} & asked
    assert all(size % 3 == 0 for size in asked)


def test_a_batch_that_holds_one_request_only_is_none() -> None:
    served, session, _ = judged(sums, plan=GatePlan((4,), (4, 6), request_size=4))
    assert served.shapes.batch_sizes == (4,)
    assert served.failing is None
    assert len(session.served) == 1


def test_the_tasks_metric_judges_whole_requests_only(tmp_path: Path) -> None:
    code = "def share(inputs, outputs):\n    assert inputs['x'].shape[1] == 4\n    return 0.75\n"
    (tmp_path / "metric.py").write_text(code)
    metric = TaskMetric(tmp_path / "metric.py", "share", 0.5)
    limits = replace(MODEL.accuracy, metric=metric)
    served, _, _ = judged(sums, model=replace(MODEL, accuracy=limits))
    assert served.dropped is None
    assert served.accuracy is not None
    assert served.accuracy.metric == 0.75


@pytest.mark.parametrize(("figure", "missed"), [(0.7, False), (0.69, True), (-1.0, True)])
def test_what_misses_the_metric_leaves(tmp_path: Path, figure: float, missed: bool) -> None:
    (tmp_path / "metric.py").write_text(f"def own(inputs, outputs): return {figure}")
    metric = TaskMetric(tmp_path / "metric.py", "own", 0.7)
    limits = replace(MODEL.accuracy, metric=metric)
    served, _, _ = judged(sums, model=replace(MODEL, accuracy=limits))
    reason = f"accuracy at 4 tokens: own must be at least 0.7, got {figure}"
    assert served.dropped == (reason if missed else None)


@pytest.mark.parametrize(
    ("largest", "request_size", "batches"),
    [
        (1, 1, ()),
        (2, 1, (2,)),
        (3, 1, (3,)),
        (4, 1, (4, 3)),
        (64, 1, (64, 33)),
        (10, 4, (8,)),
        (64, 16, (64, 48)),
        (16, 16, ()),
        (6, 4, ()),
    ],
)
def test_planned_batches(largest: int, request_size: int, batches: tuple[int, ...]) -> None:
    assert GatePlan((4,), (largest,), request_size).batches(largest) == batches


def test_lengths_are_those_of_every_way_of_padding() -> None:
    use = ArtifactUse((1, 4), ((), (2,), (3,)))
    assert GatePlan.of(use, PAYLOADS, 1) == GatePlan((4, 3, 2), (1, 4))
    fixed = replace(PAYLOADS, tensors=(TensorSpec("x", "FP32", (8,), minimum=0, maximum=1),))
    assert GatePlan.of(use, fixed, 1).lengths == (4,)


def pipeline() -> DeployedPipeline:
    """The model "sums" as a step of the ensemble "top", after another step."""
    spec = ArtifactSpec("sums", "repository", "repository", "as_deployed")
    models = tuple(
        ModelServing(name, replace(spec, model=name)) for name in ("first", "sums", "top")
    )
    config = ServingConfig(
        models, ModelGraph((ComposedModel("top", "ensemble", in_sequence(("first", "sums"))),))
    )
    files = {m.name: ModelFiles(Path(m.name), PAYLOADS, ()) for m in models}
    return DeployedPipeline(config, files)


def judged_as_step(answer: Answer, plan: GatePlan = PLAN) -> tuple[GateResult, FakeSession]:
    session = FakeSession(answer)
    gate = AccuracyGate(cast(ServingSession, session), "KIND_CPU", 2, lambda _: None)
    own = pipeline()
    artifact = replace(ARTIFACT, spec=own.config.models[1].artifact)
    return gate.judge(artifact, replace(MODEL, name="top"), PREPARED, plan, own), session


def test_a_step_is_judged_by_the_answers_of_its_ensemble() -> None:
    result, session = judged_as_step(sums)
    assert (result.dropped, result.failing, result.memory) == (None, None, ModelMemory())
    assert session.asked == {"top"}
    for config in session.served:
        first, step, top = config.models
        assert step.max_batch_size == 16, "that of the step alone is changed"
        assert (first, top) == (own := pipeline().config).models[::2]
        assert config.graph == own.graph


def test_the_memory_of_a_step_is_what_a_second_instance_adds() -> None:
    result, session = judged_as_step(sums, replace(PLAN, most_instances=3))
    assert result.memory == ModelMemory(50.0)
    *_, last = session.served
    assert [model.instance_count for model in last.models] == [1, 2, 1]
    assert last.models[1].max_batch_size == 8, "of the size at which memory is compared"
    assert result.failing is None


def test_a_second_instance_that_cannot_be_served_is_left_to_the_search() -> None:
    asked = list[int]()

    def answer(batch: Tensors) -> NDArray[Any]:
        asked.append(len(batch["x"]))
        return sums(batch)

    _, session = judged_as_step(answer, replace(PLAN, most_instances=2))
    before = len(asked)
    asked.clear()

    def failing(batch: Tensors) -> NDArray[Any]:
        asked.append(len(batch["x"]))
        # Those of the second instance are the last ones.
        return refuses(batch) if len(asked) > before - 4 else sums(batch)

    result, _ = judged_as_step(failing, replace(PLAN, most_instances=2))
    assert (result.dropped, result.memory) == (None, ModelMemory())
    assert session.served


def test_batches_of_a_step_are_merged_from_single_requests() -> None:
    batches = set[int]()

    def counted(batch: Tensors) -> NDArray[Any]:
        batches.add(len(batch["x"]))
        return sums(batch)

    result, session = judged_as_step(counted)
    assert result.failing is None
    assert session.rows == {1}, "a larger request would be a batch for the other steps too"
    assert {16, 9} <= batches


def test_wrong_batches_of_a_step_leave_the_space_of_that_step() -> None:
    result, _ = judged_as_step(when(lambda x: len(x) > 2, lambda batch: 0 * sums(batch)))
    assert result.failing is not None
    assert result.failing.size == 4
    assert result.dropped is None


def test_engines_are_judged_and_measured_with_the_cuda_graphs_of_the_space() -> None:
    _, session, _ = judged(sums, plan=replace(PLAN, cuda_graphs=True))
    assert all(m.cuda_graphs and m.padding == (2, 4) for c in session.served for m in c.models)
    _, session, _ = judged(sums)
    assert not any(model.cuda_graphs for config in session.served for model in config.models)


def test_an_instance_on_a_gpu_is_measured_in_the_machines_memory_too() -> None:
    served, _, _ = judged(sums, host_mib=4000.0)
    assert served.memory == ModelMemory(708.0, 4000.0)
