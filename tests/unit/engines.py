"""Values that the tests of engines share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from optimizer.artifacts.engines.build_locations import Folders
from optimizer.artifacts.engines.recipe import Recipe, input_shapes, recipe_for
from optimizer.configuration.hardware import Gpu
from optimizer.configuration.hosting import EngineSettings
from optimizer.configuration.releases import EngineFacts
from optimizer.configuration.runtimes.spec import Precision
from optimizer.configuration.serving_config import EngineProfile
from optimizer.errors import BuildFailure
from optimizer.workload.request_sizes import LengthDistribution
from optimizer.workload.streams import Payloads, TensorSpec

A10G = Gpu("GPU-1c5d", "NVIDIA A10G", (8, 6), 23028)
LOCAL = EngineSettings("local", "", A10G, workspace_mib=4096, timeout_seconds=60.0)
PAYLOADS = Payloads(
    (
        TensorSpec("input_ids", "INT64", (None,), 0, 99),
        TensorSpec("attention_mask", "INT64", (None,), 1, 1),
    ),
    LengthDistribution((16, 128), (0.9, 0.1)),
)
PROFILE = EngineProfile(optimal_batch_size=8, max_batch_size=32)


def recipe(precision: Precision = "fp16", settings: EngineSettings = LOCAL) -> Recipe:
    """One engine of a small BERT on an A10G."""
    shapes = input_shapes(PAYLOADS, PROFILE)
    return recipe_for(precision, shapes, settings, "10.16.1.11-NVIDIA-A10G.cache")


def without_workspace(settings: EngineSettings = LOCAL) -> EngineSettings:
    """Settings that leave a kernel all of the GPU's memory."""
    return replace(settings, workspace_mib=None)


@dataclass
class FakeLocation:
    """A build location that extends the timing cache and writes a plan, or fails."""

    versions: Mapping[str, str]
    writes: bool = True
    empty: bool = False
    dies: bool = False

    def identity(self) -> Mapping[str, str]:
        return self.versions

    def run(
        self, recipe: Recipe, folders: Folders, on_progress: Callable[[str], None]
    ) -> EngineFacts:
        assert (folders.graph / recipe.onnx).is_file()
        timings = folders.timings / recipe.timing_cache
        earlier = timings.read_text() if timings.exists() else ""
        timings.with_suffix(".cache.lock").touch()
        timings.write_text("half of" if self.dies else earlier + "a kernel ")
        if self.dies:
            raise BuildFailure("killed")
        if self.writes:
            content = "" if self.empty else recipe.to_json()
            (folders.plans / recipe.plan).write_text(content)
        return EngineFacts("10.16.1.11", A10G.name, A10G.compute_capability)
