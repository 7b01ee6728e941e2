"""Engines by our builder's own code and NVIDIA's builder, and what its log tells of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from unittest.mock import patch

from optimizer.artifacts.build_context import BuildContext
from optimizer.artifacts.build_process import BuildProcess
from optimizer.artifacts.cache import ArtifactCache
from optimizer.artifacts.engines.builder import TensorRtBuilder
from optimizer.artifacts.graphs.onnx_graph import OnnxGraph, label
from optimizer.configuration.hardware import Gpu
from optimizer.configuration.hosting import EngineSettings
from optimizer.configuration.runtimes.spec import Precision
from optimizer.configuration.serving_config import ArtifactSpec, EngineProfile
from tests.e2e import tensorrt_rtx
from tests.e2e.engine_models import CONVOLUTIONAL, MODELS, model_spec

GPUS = {"T4": (7, 5), "A100": (8, 0), "A10G": (8, 6), "L4": (8, 9)}
"""Compute capabilities."""

Gpus = tuple[str, ...]
"""GPUs that one build is for, which takes no longer than for one of them."""

_T4: Gpus = ("T4",)
_AMPERE_ON: Gpus = ("A100", "A10G", "L4")
_BUILDS: Sequence[tuple[Precision, Gpus]] = (
    ("fp32", _AMPERE_ON),  # TensorRT has FP32 products for a T4, TensorRT for RTX has none
    ("fp16", _T4 + _AMPERE_ON),
    ("bf16", _AMPERE_ON),  # a T4 has no BF16
)
_INT8: Sequence[tuple[Precision, Gpus]] = (("int8", _T4 + _AMPERE_ON),)
_INT8_OF_CONVOLUTIONS: Sequence[tuple[Precision, Gpus]] = (("int8", _T4), ("int8", _AMPERE_ON))
"""An engine has only what all of its GPUs have, and a T4 has no INT8 convolutions there."""

ENGINES: Sequence[tuple[str, Precision, Gpus]] = tuple(
    (name, precision, gpus)
    for name in MODELS
    for precision, gpus in (
        *_BUILDS,
        *(_INT8_OF_CONVOLUTIONS if name in CONVOLUTIONAL else _INT8),
    )
)
"""The engines of each model, each for several GPUs."""

_PRODUCTS = {"Conv", "Gemm", "MatMul"}


@dataclass(frozen=True)
class BuiltEngine:
    """What the builder made of one graph.

    Attributes:
        attentions: layers that are a whole attention; `int8_attentions` of them in INT8.
        products: nodes that multiply by constant weights; `int8_products` of them in INT8.
        may_overflow: whether the builder warns of averages in FP16.
    """

    cpu_seconds: float
    plan_bytes: int
    attentions: int
    int8_attentions: int
    products: int
    int8_products: int
    may_overflow: bool


@dataclass(frozen=True)
class EngineBench:
    """Builds engines into an artefact cache.

    Attributes:
        folder: for temporary files.
    """

    cache: ArtifactCache
    builds: BuildProcess
    folder: Path

    def build(self, name: str, precision: Precision, gpus: Gpus) -> BuiltEngine:
        """Build an engine of a model as `run` does on a machine with the first of the GPUs.

        Raises:
            BuildFailure: where we refuse the graph before the build, or NVIDIA's code in it.
        """
        model = model_spec(name, Path(mkdtemp(dir=self.folder)))
        self.builds.export_graph(model)
        gpu = Gpu("GPU-0", " and ".join(gpus), GPUS[gpus[0]], 15360)
        settings = EngineSettings("local", "", gpu, workspace_mib=4096)
        context = BuildContext(model, self.cache, settings)
        sizes = EngineProfile(4, 8) if model.payloads.batched else EngineProfile(1, 1)
        spec = ArtifactSpec(model.name, "tensorrt", "tensorrt", precision, sizes)
        with self._nvidia_builder(gpus):
            engine = TensorRtBuilder().entry(spec, context).path
        log = (engine / tensorrt_rtx.LOG_FILE).read_text()
        layers = list(tensorrt_rtx.layers(log))
        products = _weight_products(context.graphs.entry("fp32").path / "model.onnx")
        in_int8 = {node for each in layers if each.multiplies_int8 for node in each.nodes}
        return BuiltEngine(
            tensorrt_rtx.cpu_seconds(log),
            (engine / "model.plan").stat().st_size,
            sum(each.is_attention for each in layers),
            sum(each.is_attention and each.reads_int8 for each in layers),
            len(products),
            len(products & in_int8),
            "may cause overflow" in log,
        )

    @contextmanager
    def _nvidia_builder(self, gpus: Gpus) -> Iterator[None]:
        """Have this process and its children find NVIDIA's builder as `tensorrt`."""
        packages = self.folder / "-".join(gpus)
        if not packages.exists():
            tensorrt_rtx.install(packages, [GPUS[gpu] for gpu in gpus])
        # Not replaced: packages that are imported meanwhile may add folders of their own.
        sys.path.insert(0, str(packages))
        try:
            with patch.dict(os.environ, {"PYTHONPATH": os.pathsep.join(sys.path)}):
                yield
        finally:
            sys.path.remove(str(packages))


@contextmanager
def engine_bench(folder: Path, cache: Path) -> Iterator[EngineBench]:
    """Start the process that exports graphs; `cache` is the folder of the artefact cache."""
    artifacts = ArtifactCache(cache)
    with BuildProcess(artifacts, folder / "build.log", threads=1) as builds:
        yield EngineBench(artifacts, builds, folder)


def _weight_products(path: Path) -> set[str]:
    """Return the names of the nodes that multiply by constant weights."""
    graph = OnnxGraph(path)
    return {
        label(node)
        for node in graph.nodes
        if node.op_type in _PRODUCTS and node.input[1] in graph.weights
    }
