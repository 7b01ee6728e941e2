"""Architectures of `transformers`, each from its space file to load on the real server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from optimizer.artifacts.build_context import ReportProgress
from optimizer.artifacts.build_messages import Job
from optimizer.artifacts.build_process import BuildProcess
from optimizer.artifacts.cache import ArtifactCache
from optimizer.artifacts.precision_graphs import PrecisionGraphs
from optimizer.commands.protocols import protocols
from optimizer.commands.run_context import open_space
from optimizer.configuration.runtimes import onnxruntime_session
from optimizer.load.client import LoadClient
from optimizer.machine.slots import local_slot
from optimizer.search.evaluator import LiveEvaluator
from optimizer.search.level_runner import LevelRunner
from optimizer.search.prepare import PreparePhase
from optimizer.space_file.reader import Space
from optimizer.study.directory import StudyDirectory
from optimizer.study.gated_artifact import GatedShapes
from optimizer.triton.session import ServingSession
from optimizer.workload.model_spec import ModelSpec
from optimizer.workload.streams import OutputTensor, Tensors
from tests.e2e import tiny
from tests.e2e.architectures import Architecture
from tests.e2e.embedded import embedded_session

BATCH = 4
GATED_BATCHES = (1, 3, BATCH)


@dataclass(frozen=True)
class ServedArchitecture:
    """What the server answered.

    Attributes:
        shapes: at which the accuracy gate passed.
        replies, failed: of the load, whose requests have all sizes.
    """

    outputs: tuple[OutputTensor, ...]
    shapes: GatedShapes | None
    replies: int
    failed: int


class ComparingBuildProcess(BuildProcess):
    """Compares graphs with their models too, in the process that has loaded torch."""

    def compare(self, model: ModelSpec) -> None:
        """Compare the exported graph with the model itself.

        Raises:
            BuildFailure: where they differ.
        """
        self._run(Job(f"comparison of {model.name}", partial(_compare, model)))


def _compare(model: ModelSpec, cache: ArtifactCache, report_progress: ReportProgress) -> None:
    """Compare every output at batches 1 and 3, at drawn sizes and at the largest."""
    graphs = PrecisionGraphs(model, cache)
    opened, folder = graphs.source.open(), str(graphs.entry("fp32").path)
    _check_attention(Path(folder) / "model.onnx")
    names = [output.name for output in opened.outputs]
    run = onnxruntime_session.open_session(folder, names, "fp32", 1, None)
    for payloads in (model.payloads, model.payloads.largest()):
        for batch in (1, 3):
            [tensors] = payloads.sample(1, np.random.default_rng(batch), batch_size=batch)
            own_tokens = _pad(tensors)
            expected: Mapping[str, NDArray[Any]] = opened.run(tensors)
            for output, array in zip(opened.outputs, run(tensors), strict=True):
                own = expected[output.name]
                assert np.std(own) > 0, f"{output.name} is constant: it shows nothing"
                scale = float(np.abs(own).max())
                judged = own_tokens if own.shape[:2] == own_tokens.shape else ...
                np.testing.assert_allclose(array[judged], own[judged], atol=1e-4 * scale, rtol=1e-4)
                pairs = zip(output.shape, array.shape[1:], strict=True)
                assert all(declared in (-1, size) for declared, size in pairs)


def _pad(tensors: Tensors) -> NDArray[np.bool_]:
    """Mask the end of the first text of a batch; return which tokens are no padding."""
    mask = tensors.get("attention_mask", np.ones((0, 0), np.int64))
    if mask.ndim == 2:
        mask[:1, -2:] = 0
    return mask.astype(bool)


def _check_attention(path: Path) -> None:
    """Check that masks are added, not looked up, and that all inputs name the batch alike."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.value_info}
    assert not any(node.op_type == "IsNaN" for node in graph.node)
    # The last token of each text may be looked up, by an index of [batch, 2].
    assert all(ranks[n.input[1]] == 2 for n in graph.node if n.op_type == "GatherND")
    first = {value.type.tensor_type.shape.dim[0].dim_param for value in graph.input}
    assert first == {"batch"}


@dataclass(frozen=True)
class ArchitectureBench:
    """One server, one load client and one process for builds, for all architectures in turn."""

    folder: Path
    session: ServingSession
    builds: ComparingBuildProcess
    client: LoadClient

    def serve(self, architecture: Architecture) -> ServedArchitecture:
        """Prepare, gate and load one architecture as `run` does.

        Raises:
            OptimizerError: where the class is refused.
        """
        with TemporaryDirectory(dir=self.folder) as folder:
            space = open_space(tiny.write_space(Path(folder), _content(architecture)))
            directory = StudyDirectory(Path(folder) / "study")
            phase = PreparePhase(directory, self.builds, self.session, lambda _: None)
            prepared = phase.run(space.models, space.search_space)
            self.builds.compare(space.models[0])
            [gated] = prepared.gated
            evaluator = replace(self._evaluator(space), files=prepared.files)
            result = evaluator.saturate(
                prepared.space.config(prepared.space.baseline), local_slot()
            )
            [level] = result.valid_measurement.levels
            outputs = prepared.files[gated.spec].outputs
            sent = sum(stream.sent for stream in level.streams)
            return ServedArchitecture(outputs, gated.shapes, sent - level.errors, level.errors)

    def _evaluator(self, space: Space) -> LiveEvaluator:
        slot, rng = local_slot(), np.random.default_rng(0)
        levels = LevelRunner(self.client, space.workload, slot, rng, lambda _: None)
        timing = protocols(space, slot)
        return LiveEvaluator(self.session, levels, space.workload, {}, timing, lambda _: None)


def _content(architecture: Architecture) -> dict[str, Any]:
    """The space of one configuration, which batches, with a gate as strict as FP32 allows."""
    parameters = {"batching": True, "max_batch_size": BATCH}
    content = tiny.space(parameters=parameters, measurement={"saturation_seconds": 0.3})
    accuracy = {"min_argmax_agreement": 0.99, "min_cosine": 0.99999}
    evaluation = {"samples": 8, "seed": 2}
    section = {**architecture.section, "accuracy": accuracy, "evaluation": evaluation}
    return {**content, "models": {"tiny": section}}


@contextmanager
def architecture_bench(folder: Path, cache: Path) -> Iterator[ArchitectureBench]:
    """Start what all architectures share; `cache` is the folder of the artefact cache."""
    with (
        embedded_session(folder) as session,
        ComparingBuildProcess(ArtifactCache(cache), folder / "build.log", threads=1) as builds,
        LoadClient(local_slot().client_cores) as client,
    ):
        yield ArchitectureBench(folder, session, builds, client)
