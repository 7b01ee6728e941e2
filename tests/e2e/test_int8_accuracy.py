"""INT8 of trained weights through the running server, on texts of 32 and of 512 tokens.

The default limit of the mean cosine, 0.99, holds with a margin.

The figures are printed: pytest -s.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from optimizer.artifacts.build_process import BuildProcess
from optimizer.artifacts.cache import ArtifactCache
from optimizer.commands.run_context import open_space
from optimizer.configuration.hardware import processor_lacks
from optimizer.configuration.runtimes import Runtime
from optimizer.configuration.runtimes.spec import Precision
from optimizer.machine.fingerprint import cpu_flags
from optimizer.search.prepare import PreparePhase
from optimizer.study.directory import StudyDirectory
from optimizer.study.gated_artifact import GatedArtifact
from tests.e2e import minilm, tiny
from tests.e2e.embedded import embedded_session
from tests.sampling import sampled

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def gated(folder: Path, cache: Path, length: int) -> dict[tuple[Runtime, Precision], GatedArtifact]:
    """Return what the prepare phase finds of MiniLM in INT8, by runtime and precision."""
    minilm.write_inputs(folder, length)
    content = minilm.space(length)
    content["parameters"]["precision"] = ["int8", "int8_dynamic"]
    content["models"]["minilm"]["evaluation"]["samples"] = 16
    content["models"]["minilm"]["calibration"]["samples"] = 16
    space = open_space(tiny.write_space(folder, content))
    with (
        embedded_session(folder) as session,
        BuildProcess(ArtifactCache(cache), folder / "build.log", threads=2) as builds,
    ):
        phase = PreparePhase(StudyDirectory(folder / "study"), builds, session, lambda _: None)
        found = phase.run(space.models, space.search_space).gated
    return {(artifact.spec.runtime, artifact.spec.precision): artifact for artifact in found}


# Weights have 7 bits on x86 processors without VNNI.
LEAST_COSINE: dict[tuple[Runtime, Precision], float] = {
    ("onnxruntime", "int8"): 0.992,
    ("openvino", "int8"): 0.992,
    # One scale for all tokens of a batch.
    ("onnxruntime", "int8_dynamic"): 0.98,
    ("openvino", "int8_dynamic"): 0.998,
}


@pytest.mark.parametrize(("length", "least_share"), sampled([(512, 0.8), (32, 0.95)], every=2))
def test_int8_of_trained_weights_is_close_to_fp32(
    tmp_path: Path, artifacts: Path, length: int, least_share: float
) -> None:
    found = gated(tmp_path, artifacts / "models", length)
    assert found.keys() == LEAST_COSINE.keys()
    for runtime, artifact in found.items():
        if reason := processor_lacks(*runtime, cpu_flags()):
            assert artifact.dropped == reason
            continue
        accuracy, share = artifact.accuracy, artifact.int8_share
        assert accuracy is not None, artifact.dropped
        assert share is not None
        print(f"{runtime}, {length} tokens: {accuracy}, {share:.1%} in INT8")
        assert accuracy.mean_cosine >= LEAST_COSINE[runtime], runtime
        assert accuracy.samples == 16
        assert share >= least_share
