"""Artefacts that are right at some shapes and wrong at others, on a real server."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optimizer.artifacts.build_context import ReportProgress, no_progress
from optimizer.artifacts.build_process import BuildProcess
from optimizer.artifacts.build_results import ModelArtifact
from optimizer.artifacts.cache import ArtifactCache
from optimizer.commands.run_context import open_space
from optimizer.configuration.serving_config import ArtifactSpec
from optimizer.errors import EverythingFailedError
from optimizer.files.atomic import write_json
from optimizer.search.prepare import PreparePhase
from optimizer.search.prepared import Prepared
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import ArtifactReady, Event, Note
from optimizer.study.gated_artifact import GatedShapes
from optimizer.triton.session import ServingSession
from optimizer.workload.model_spec import ModelSpec
from tests.e2e import tiny
from tests.e2e.embedded import embedded_session
from tests.e2e.faulty_graphs import LENGTHS, write_graph

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingSession]:
    with embedded_session(tmp_path_factory.mktemp("server")) as session:
        yield session


class FaultyBuildProcess(BuildProcess):
    """Builds a graph with a fault in place of the one that was asked for."""

    fault = "none"

    def build(
        self, spec: ArtifactSpec, model: ModelSpec, on_progress: ReportProgress = no_progress
    ) -> ModelArtifact:
        folder = self._log.parent / self.fault.replace(" ", "_")
        folder.mkdir(exist_ok=True)
        write_graph(folder / "model.onnx", self.fault)
        return replace(super().build(spec, model, on_progress), path=folder)


def content(folder: Path, fault: str = "none", **parameters: Any) -> dict[str, Any]:
    """A space of one ONNX model; batches of 4, 8 and 16, or none."""
    made = tiny.space(
        parameters={
            "batching": [False, True],
            "max_batch_size": [4, 8, 16],
            "padding": [list(LENGTHS)],
            **parameters,
        }
    )
    made["models"] = {
        "words": {
            "source": {"onnx": str(write_graph(folder / "source.onnx", fault))},
            "output": "y",
            "inputs": {"ids": {"shape": ["length"], "minimum": 0, "maximum": 99}},
            "lengths": {"weights": dict.fromkeys(LENGTHS, 1.0)},
            "evaluation": {"samples": 20, "seed": 2},
            "accuracy": {"min_argmax_agreement": 0.9, "min_cosine": 0.95},
        }
    }
    return made


Gate = Callable[..., tuple[Prepared, list[Event]]]


@pytest.fixture
def gate(tmp_path: Path, session: ServingSession) -> Gate:
    """Prepare a space whose source is right and whose artefact has a fault."""

    def run(fault: str, **parameters: Any) -> tuple[Prepared, list[Event]]:
        space = open_space(tiny.write_space(tmp_path, content(tmp_path, **parameters)))
        events: list[Event] = []
        with FaultyBuildProcess(
            ArtifactCache(tmp_path / "cache"), tmp_path / "build.log", threads=2
        ) as builds:
            builds.fault = fault
            directory = StudyDirectory(tmp_path / "study")
            phase = PreparePhase(directory, builds, session, events.append)
            return phase.run(space.models, space.search_space), events

    return run


def notes(events: Sequence[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Note)]


def largest_batches(prepared: Prepared) -> set[int]:
    space = prepared.space
    return {space.config(space.at(row)).models[0].max_batch_size for row in range(len(space))}


def test_batches_that_an_artefact_answers_wrongly_leave_the_space(gate: Gate) -> None:
    prepared, events = gate("zeros beyond the eighth row")
    [gated] = prepared.gated
    assert gated.dropped is None
    assert gated.failing is not None
    assert gated.failing.size == 16
    assert gated.failing.reason.startswith(
        "at 16 tokens, 8 of 16 outputs of a batch, the first for request 9, differ from those"
    )
    assert gated.shapes is not None
    assert (gated.shapes.batch_sizes, gated.shapes.lengths) == ((1, 5, 8), LENGTHS)
    assert largest_batches(prepared) == {1, 4, 8}
    [note] = [note for note in notes(events) if "max_batch_size" in note]
    assert note.startswith("words/onnxruntime/fp32: configurations with a max_batch_size of 16")
    [ready] = [event for event in events if isinstance(event, ArtifactReady)]
    assert ready.detail == "argmax agreement 1.000, cosine 1.0000, batches below 16"


@pytest.mark.parametrize(
    ("fault", "least_wrong", "reason"),
    [
        ("rows permuted", 4, "4 of 4 outputs of a batch, the first for request 1"),
        ("first row repeated", 4, "3 of 4 outputs of a batch, the first for request 2"),
        ("odd batches wrong", 3, "3 of 3 outputs of a batch"),
        ("NaN beyond batches of 8", 16, "outputs of a batch of 16 contain NaN or infinity"),
        ("rows mixed", 4, "differ from those of the requests sent alone"),
        (
            "fails beyond batches of 8",
            16,
            "batch of 16 at 16 tokens: words did not answer: InvalidArgument: ",
        ),
    ],
)
def test_every_way_of_batching_wrongly_is_found(
    gate: Gate, fault: str, least_wrong: int, reason: str
) -> None:
    prepared, _ = gate(fault)
    [gated] = prepared.gated
    assert gated.dropped is None
    assert gated.failing is not None
    assert gated.failing.size == least_wrong
    assert reason in gated.failing.reason
    assert largest_batches(prepared) == ({1} if least_wrong < 8 else {1, 4, 8})


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("batch 1 wrong", "accuracy at 16 tokens: argmax agreement must be at least 0.9"),
        ("shorter lengths wrong", "accuracy at 8 tokens: argmax agreement must be at least 0.9"),
        ("length baked in", "could not be served: requests at 8 tokens: words did not answer"),
    ],
)
def test_an_artefact_that_is_wrong_for_single_requests_is_dropped(
    gate: Gate, fault: str, reason: str
) -> None:
    with pytest.raises(EverythingFailedError) as caught:
        gate(fault)
    assert f"words/onnxruntime/fp32: {reason}" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2, "one line for the artefact"


def test_an_artefact_whose_batches_are_all_wrong_is_dropped_where_the_space_has_no_others(
    gate: Gate,
) -> None:
    with pytest.raises(
        EverythingFailedError, match="8 of 16 outputs of a batch, the first for request 9"
    ):
        gate("zeros beyond the eighth row", batching=[True], max_batch_size=[16])


def test_requests_of_several_inferences_are_gated_in_their_own_multiples(
    tmp_path: Path, session: ServingSession
) -> None:
    made = content(tmp_path)
    made["traffic"]["batch_size"] = 4
    space = open_space(tiny.write_space(tmp_path, made))
    with BuildProcess(
        ArtifactCache(tmp_path / "cache"), tmp_path / "build.log", threads=2
    ) as builds:
        phase = PreparePhase(StudyDirectory(tmp_path / "study"), builds, session, lambda _: None)
        prepared = phase.run(space.models, space.search_space)
    shapes = prepared.gated[0].shapes
    assert shapes is not None
    assert shapes.batch_sizes == (4, 12, 16)


def test_a_study_that_was_begun_before_shapes_were_recorded_is_gated_again(
    tmp_path: Path, gate: Gate
) -> None:
    gate("none")
    directory = StudyDirectory(tmp_path / "study")
    old = directory.read_json(directory.prepared)
    for row in old["artifacts"]:
        for key in ("shapes", "failing_batch", "timings"):
            del row[key]
    write_json(directory.prepared, old)
    prepared, events = gate("zeros beyond the eighth row")
    assert largest_batches(prepared) == {1, 4, 8}
    # What was found once is not asked for again.
    again, later = gate("none")
    assert again.gated[0].failing == prepared.gated[0].failing
    assert largest_batches(again) == {1, 4, 8}
    serving = [str(event) for event in later if "for the accuracy gate" in str(event)]
    assert serving == []
    assert any("for the accuracy gate" in str(event) for event in events)


@pytest.mark.parametrize(
    ("fault", "shape", "runtimes"),
    [
        ("rows of data", r"\[2, \d+\]", ["onnxruntime", "openvino"]),
        ("batch reduced", r"\[1, 4\]", ["onnxruntime"]),
    ],
)
def test_an_output_without_a_row_per_request_is_served_without_batches(
    tmp_path: Path, session: ServingSession, fault: str, shape: str, runtimes: list[str]
) -> None:
    made = content(tmp_path, fault, runtime=runtimes)
    space, events = open_space(tiny.write_space(tmp_path, made)), list[Event]()
    with BuildProcess(
        ArtifactCache(tmp_path / "cache"), tmp_path / "build.log", threads=2
    ) as builds:
        directory = StudyDirectory(tmp_path / "study")
        phase = PreparePhase(directory, builds, session, events.append)
        prepared = phase.run(space.models, space.search_space)
    for gated in prepared.gated:
        assert gated.dropped is None
        assert gated.accuracy is not None
        assert gated.accuracy.min_cosine > 0.9999
        assert gated.shapes == GatedShapes((1,), LENGTHS)
    assert largest_batches(prepared) == {1}
    told = [note for note in notes(events) if "max_batch_size of 2 or more are excluded" in note]
    assert len(told) == len(runtimes)
    assert all(re.search(f"output 'y' has no row per request: .*{shape}", note) for note in told)
    [stream] = prepared.as_served(space.workload).streams
    assert stream.payloads.as_served().tensors[0].shape == (1, "length")


def test_a_source_with_a_length_baked_in_names_the_length(
    tmp_path: Path, session: ServingSession
) -> None:
    space = open_space(tiny.write_space(tmp_path, content(tmp_path, "length baked in")))
    with BuildProcess(
        ArtifactCache(tmp_path / "cache"), tmp_path / "build.log", threads=2
    ) as builds:
        phase = PreparePhase(StudyDirectory(tmp_path / "study"), builds, session, lambda _: None)
        with pytest.raises(EverythingFailedError, match="model words: words at 8 tokens: "):
            phase.run(space.models, space.search_space)
