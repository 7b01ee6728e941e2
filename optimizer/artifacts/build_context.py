"""What lies ready for whoever builds an artefact of one model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from optimizer.artifacts.cache import ArtifactCache
from optimizer.artifacts.graphs.precision_graphs import PrecisionGraphs
from optimizer.configuration.hosting import EngineSettings
from optimizer.workload.model_spec import ModelSpec

Tell = Callable[[str], None]
"""Is told, in a few words, how far a build is; not always on the thread that builds."""


def in_silence(_: str) -> None:
    """A `Tell` for whoever does not want to know."""


@dataclass(frozen=True)
class BuildContext:
    """The model, the cache, and what builds of engines need.

    Attributes:
        engines: how engines are built; None where there is no GPU to build them on.
    """

    model: ModelSpec
    cache: ArtifactCache
    engines: EngineSettings | None = None
    tell: Tell = in_silence

    @cached_property
    def graphs(self) -> PrecisionGraphs:
        """The model's ONNX graphs."""
        return PrecisionGraphs(self.model, self.cache)
