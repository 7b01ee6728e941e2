"""What the prepare phase says of artefacts, without a server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from optimizer.artifacts.accuracy import Accuracy
from optimizer.artifacts.build_results import ModelArtifact
from optimizer.configuration.hardware import Gpu, Hardware
from optimizer.configuration.runtimes.spec import Precision
from optimizer.configuration.serving_config import ArtifactSpec
from optimizer.errors import SpaceChangedError
from optimizer.search import prepare
from optimizer.search.prepare import PreparePhase, refusal
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Event, Note
from optimizer.study.gated_artifact import GatedArtifact, ready_event, to_json
from optimizer.workload.model_spec import DataSet, ModelSpec, OnnxSource
from tests.unit.test_gpu_spaces import TWO_T4, gpu_space, models
from tests.unit.tiny_bert import MODEL, artifact

SPEC = ArtifactSpec("bert", "onnxruntime", "python", "int8")
ARTIFACT = ModelArtifact(SPEC, Path("files"), "ab" * 32, "onnxruntime 1", 2.0, True)
ACCURACY = Accuracy(0.98, 0.99, 0.98, 0.1, 64)


def phase(folder: Path, watched: list[Event]) -> PreparePhase:
    """A phase whose server and builds are never asked."""
    absent = cast(Any, None)
    return PreparePhase(StudyDirectory(folder / "study"), absent, absent, watched.append)


@pytest.mark.parametrize(("share", "text"), [(0.874, "INT8 covers 87% of the"), (None, None)])
def test_the_share_of_int8_is_said_and_kept(share: float | None, text: str | None) -> None:
    gated = GatedArtifact(SPEC, "ab", 0.0, ACCURACY, 100.0, None, int8_share=share)
    detail = ready_event(gated).detail
    assert (f", {text} multiply-accumulates" in detail) if text else ("INT8" not in detail)
    assert to_json(gated)["int8_share"] == share


@pytest.mark.parametrize(("share", "warned"), [(0.49, True), (0.5, False), (None, False)])
def test_little_int8_is_warned_of(tmp_path: Path, share: float | None, warned: bool) -> None:
    watched: list[Event] = []
    phase(tmp_path, watched)._warn_of_low_int8_share(replace(ARTIFACT, int8_share=share))
    notes = [event for event in watched if isinstance(event, Note)]
    assert len(notes) == warned
    for note in notes:
        assert note.warning
        assert note.text.startswith("bert/onnxruntime/int8: INT8 covers 49% of the multiply-acc")


def test_a_study_begun_with_an_earlier_recipe_goes_on_only_with_the_same_file(
    tmp_path: Path,
) -> None:
    resumed = phase(tmp_path, [])
    resumed._refuse_changed_file(ARTIFACT, ARTIFACT.sha256)
    message = "has changed since study study was started .*start a new study"
    with pytest.raises(SpaceChangedError, match=message):
        resumed._refuse_changed_file(ARTIFACT, "cd" * 32)


def test_bf16_of_openvino_is_not_built_where_the_processor_lacks_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = replace(SPEC, runtime="openvino", precision="bf16")
    model = cast(ModelSpec, None)  # only INT8 depends on the model
    monkeypatch.setattr(prepare, "cpu_flags", lambda: {"avx2"})
    assert str(refusal(spec, model, Hardware(4, 8000))).endswith("OpenVINO would compute in FP32")
    gpu = Gpu("GPU-1", "NVIDIA A10G", (8, 6), 23028)
    assert refusal(spec, model, Hardware(4, 8000, (gpu,))) is None
    monkeypatch.setattr(prepare, "cpu_flags", lambda: {"avx2", "avx512f"})
    assert refusal(spec, model, Hardware(4, 8000)) is None


@pytest.mark.parametrize(
    ("precision", "given", "needed"),
    [
        ("int8", (), "calibration and evaluation data"),
        ("int8", ("evaluation",), "calibration and evaluation data"),
        ("int8", ("calibration", "evaluation"), None),
        ("int8_attention", ("evaluation",), "calibration and evaluation data"),
        ("int8_dynamic", (), "evaluation data"),
        ("int8_dynamic", ("calibration",), "evaluation data"),
        # Dynamic quantisation needs no calibration.
        ("int8_dynamic", ("evaluation",), None),
        ("bf16", (), None),
    ],
)
def test_int8_of_trained_weights_needs_real_inputs(
    precision: Precision, given: tuple[str, ...], needed: str | None
) -> None:
    real = DataSet(Path("rows.npz"), 4, 0)
    model = replace(
        MODEL,
        source=OnnxSource(Path("model.onnx")),
        **dict.fromkeys(given, real),  # type: ignore[arg-type]
    )
    reason = refusal(artifact("onnxruntime", precision), model, Hardware(2, 4096))
    if needed is None:
        assert reason is None
    else:
        assert reason is not None
        assert f"give {needed}, or set accuracy.int8_on_generated_data" in reason


def test_configurations_on_gpus_that_the_machines_memory_does_not_hold_are_excluded(
    tmp_path: Path,
) -> None:
    """A process with PyTorch takes about 4 GB of the machine beside what it takes of the GPU."""
    machine = replace(TWO_T4, memory_mib=16_000)
    space = gpu_space(machine, runtime=("pytorch",), instance_count=(1, 2))
    [spec] = space.artifacts
    watched: list[Event] = []
    gated = [GatedArtifact(spec, instance_mib=1000.0, host_mib=4000.0)]
    fitting = phase(tmp_path, watched)._within_memory(space, gated)
    assert [model.instance_count for model in models(fitting)] == [2], "one on each of two GPUs"
    [note] = watched
    assert isinstance(note, Note)
    assert note.text == (
        "1 of 2 configurations are excluded: their instances (up to 4000 MiB each) do not fit in "
        "14400 MiB of the machine's memory"
    )
