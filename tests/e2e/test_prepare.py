"""What the prepare phase leaves out, and why, with a real server."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optimizer.artifacts.build_context import ReportProgress, no_progress
from optimizer.artifacts.build_messages import Job
from optimizer.artifacts.build_process import BuildProcess
from optimizer.artifacts.build_results import ModelArtifact
from optimizer.artifacts.cache import ArtifactCache, CacheEntry
from optimizer.commands.run_context import open_space
from optimizer.configuration.hardware import Gpu
from optimizer.configuration.runtimes.spec import Precision
from optimizer.configuration.serving_config import ArtifactSpec
from optimizer.errors import EverythingFailedError, UsageError
from optimizer.files.shipped import shipped
from optimizer.search.prepare import PreparePhase, refusal
from optimizer.search.prepared import Prepared
from optimizer.space_file.reader import Space
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Event, Note
from optimizer.triton.session import ServingSession
from optimizer.workload.model_spec import ModelSpec
from tests.e2e import tiny
from tests.e2e.conftest import Built
from tests.e2e.embedded import embedded_session
from tests.sampling import sampled

pytestmark = pytest.mark.timeout(300)

METRIC = """
def agreement(inputs, outputs):
    assert inputs["input_ids"].shape == (16, 16)
    assert outputs.shape == (16, 3)
    return 0.5
"""


@pytest.fixture
def session(tmp_path: Path) -> Iterator[ServingSession]:
    with embedded_session(tmp_path) as session:
        yield session


def prepared(
    space: Space, session: ServingSession, built: Built, folder: Path
) -> tuple[Prepared, list[str]]:
    """What the phase leaves, and the notes that it gave."""
    notes: list[Event] = []
    with BuildProcess(ArtifactCache(built.cache), folder / "build.log", threads=2) as builds:
        phase = PreparePhase(StudyDirectory(folder / "study"), builds, session, notes.append)
        found = phase.run(space.models, space.search_space)
    return found, [note.text for note in notes if isinstance(note, Note)]


def end_the_process(cache: ArtifactCache, report_progress: ReportProgress) -> None:
    """A job that ends as a crash of a library, or the kernel's out-of-memory killer, does."""
    os.kill(os.getpid(), signal.SIGKILL)


class CrashingBuildProcess(BuildProcess):
    """Crashes in the export to ONNX, or in the build of one runtime's artefacts."""

    crash = "export"

    def export_graph(self, model: ModelSpec) -> CacheEntry:
        if self.crash == "export":
            self._run(Job("ONNX export of bert", end_the_process))
        return super().export_graph(model)

    def build(
        self, spec: ArtifactSpec, model: ModelSpec, on_progress: ReportProgress = no_progress
    ) -> ModelArtifact:
        if spec.runtime == self.crash:
            self._run(Job(spec.label, end_the_process))
        return super().build(spec, model, on_progress)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("crash", "kept"),
    sampled([("export", {"pytorch"}), ("openvino", {"pytorch", "onnxruntime"})], every=2),
)
def test_a_crash_of_one_build_drops_what_is_made_from_it_alone(
    tmp_path: Path, session: ServingSession, built: Built, crash: str, kept: set[str]
) -> None:
    runtimes = ["pytorch", "onnxruntime", "openvino"]
    content = tiny.space(parameters={"runtime": runtimes, "batching": False})
    space = open_space(tiny.write_space(tmp_path, content))
    with CrashingBuildProcess(
        ArtifactCache(built.cache), tmp_path / "build.log", threads=2
    ) as builds:
        builds.crash = crash
        phase = PreparePhase(StudyDirectory(tmp_path / "study"), builds, session, print)
        found = phase.run(space.models, space.search_space)
    assert {each.spec.runtime for each in found.gated if each.dropped is None} == kept
    for each in found.gated:
        assert each.dropped is None or "the build was killed by SIGKILL" in each.dropped


@pytest.mark.slow
def test_a_model_whose_attention_needs_another_kernel_is_exported_all_the_same(
    tmp_path: Path, session: ServingSession
) -> None:
    content = tiny.space(parameters={"runtime": ["pytorch", "onnxruntime"], "batching": False})
    model = content["models"]["bert"]
    model["output"] = "last_hidden_state"
    model["source"] = {
        "class": "T5EncoderModel",
        "config": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
                   "vocab_size": 1000},
    }  # fmt: skip
    space = open_space(tiny.write_space(tmp_path, content))
    with BuildProcess(
        ArtifactCache(tmp_path / "cache"), tmp_path / "build.log", threads=2
    ) as builds:
        phase = PreparePhase(StudyDirectory(tmp_path / "study"), builds, session, print)
        found = phase.run(space.models, space.search_space)
    reasons = {each.spec.runtime: each.dropped for each in found.gated}
    assert reasons == {"pytorch": None, "onnxruntime": None}


def with_metric(minimum: float) -> dict[str, Any]:
    content = tiny.space(parameters={"batching": False})
    accuracy = {"metric": {"function": "metrics.py:agreement", "minimum": minimum}}
    content["models"]["bert"]["accuracy"] |= accuracy
    return content


def test_the_memory_of_one_instance_tells_how_many_fit(
    tmp_path: Path, session: ServingSession, built: Built
) -> None:
    content = tiny.space(
        parameters={"batching": False, "instance_count": [1, 2], "intra_op_threads": [1]}
    )
    space = open_space(tiny.write_space(tmp_path, content))
    found, notes = prepared(space, session, built, tmp_path)
    [gated] = found.gated
    assert gated.instance_mib is not None
    assert 20 < gated.instance_mib < 2000, "a process with ONNX Runtime and a tiny model"
    assert len(found.space) == 2
    assert not any("do not fit" in note for note in notes)
    # A machine in which one and a half of them fit.
    hardware = replace(space.search_space.hardware, memory_mib=int(gated.instance_mib * 1.5 / 0.9))
    small = replace(space, search_space=replace(space.search_space, hardware=hardware))
    found, notes = prepared(small, session, built, tmp_path)
    config = found.space.config(found.space.at(0))
    assert len(found.space) == 1
    assert config.models[0].instance_count == 1
    assert any(note.startswith("1 of 2 configurations are excluded") for note in notes)
    hardware = replace(hardware, memory_mib=10)
    none = replace(space, search_space=replace(space.search_space, hardware=hardware))
    with pytest.raises(EverythingFailedError, match="the instances fit in 9 MiB of memory"):
        prepared(none, session, built, tmp_path)


@pytest.mark.parametrize(("minimum", "dropped"), [(0.5, False), (0.6, True)])
def test_the_users_metric_judges_what_was_served(
    tmp_path: Path, session: ServingSession, built: Built, minimum: float, dropped: bool
) -> None:
    (tmp_path / "metrics.py").write_text(METRIC)
    space = open_space(tiny.write_space(tmp_path, with_metric(minimum)))
    if dropped:
        with pytest.raises(EverythingFailedError, match=r"agreement must be at least 0\.6, got 0"):
            prepared(space, session, built, tmp_path)
        return
    found, _ = prepared(space, session, built, tmp_path)
    accuracy = found.gated[0].accuracy
    assert accuracy is not None
    assert accuracy.metric == 0.5


def test_a_metric_that_fails_ends_the_run_and_not_the_artefact(
    tmp_path: Path, session: ServingSession, built: Built
) -> None:
    (tmp_path / "metrics.py").write_text(METRIC.replace("0.5", "None"))
    space = open_space(tiny.write_space(tmp_path, with_metric(0.5)))
    with pytest.raises(UsageError, match=r"metrics\.py:agreement: must return a finite number"):
        prepared(space, session, built, tmp_path)


def test_int8_of_trained_weights_needs_real_inputs(
    tmp_path: Path, session: ServingSession, built: Built
) -> None:
    graph = built.files[built.spec("onnxruntime", "fp32")].artifact / "model.onnx"
    content = tiny.space(parameters={"precision": ["fp32", "int8"], "batching": False})
    model = content["models"]["bert"]
    model["source"] = {"onnx": str(graph)}
    space = open_space(tiny.write_space(tmp_path, content))
    found, _ = prepared(space, session, built, tmp_path)
    reasons = {gated.spec.precision: gated.dropped for gated in found.gated}
    assert reasons["fp32"] is None
    assert str(reasons["int8"]).startswith("INT8 of trained weights is recommended on real inputs")
    assert len(found.space) == 1
    model["accuracy"]["int8_on_generated_data"] = True
    allowed = open_space(tiny.write_space(tmp_path, content))
    assert refusal(_spec("int8"), allowed.models[0], allowed.search_space.hardware) is None


def test_what_the_gpu_cannot_do_is_not_built() -> None:
    space = open_space(shipped("search_spaces/quickstart.yaml"))
    t4 = Gpu("GPU-0", "Tesla T4", (7, 5), 15360)
    hardware = replace(space.search_space.hardware, gpus=(t4,))
    reason = refusal(_spec("bf16"), space.models[0], hardware)
    assert reason == "bf16 needs compute capability 8.0, Tesla T4 has 7.5"
    assert refusal(_spec("fp16"), space.models[0], hardware) is None
    v100 = replace(t4, name="Tesla V100", compute_capability=(7, 0))
    reason = refusal(_spec("fp16"), space.models[0], replace(hardware, gpus=(v100,)))
    assert reason == "tensorrt needs compute capability 7.5, Tesla V100 has 7.0"


def _spec(precision: Precision) -> ArtifactSpec:
    return ArtifactSpec("bert", "tensorrt", "tensorrt", precision)
