"""What every builder of artefacts is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from optimizer.artifacts.cache import ArtifactCache
from optimizer.artifacts.precision_graphs import PrecisionGraphs
from optimizer.configuration.hosting import EngineSettings
from optimizer.workload.model_spec import ModelSpec

ReportProgress = Callable[[str], None]
"""Receives a short text on how far a build is; not always on the thread that builds."""


def no_progress(_: str) -> None:
    """Discard a progress text."""


@dataclass(frozen=True)
class BuildContext:
    """The model, the cache, and what builds of engines need.

    Attributes:
        engines: how engines are built; None where there is no GPU to build them on.
    """

    model: ModelSpec
    cache: ArtifactCache
    engines: EngineSettings | None = None
    report_progress: ReportProgress = no_progress

    @cached_property
    def graphs(self) -> PrecisionGraphs:
        """The model's ONNX graphs."""
        return PrecisionGraphs(self.model, self.cache)
