"""What the prepare phase leaves to the phases that follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ArtifactSpec
from optimizer.study.gated_artifact import (
    GatedArtifact,
)
from optimizer.study.searched_space import StepRequests
from optimizer.triton.session import ModelFiles
from optimizer.workload.streams import Workload


@dataclass(frozen=True)
class Prepared:
    """The result of the prepare phase.

    Attributes:
        space: the space without the dropped artefacts.
        files: model files by artefact.
        gated: every artefact of the space in its order.
        building_seconds: spent on building in all runs of the study; 0 when all was cached.
    """

    space: SearchSpace
    files: Mapping[ArtifactSpec, ModelFiles]
    gated: tuple[GatedArtifact, ...]
    building_seconds: float

    def requests_of_steps(self, workload: Workload) -> tuple[StepRequests, ...]:
        """Return the requests of the steps of generated pipelines, which no stream is to."""
        targets = {stream.target for stream in workload.streams}
        payloads = {
            spec.model: files.payloads
            for spec, files in self.files.items()
            if spec.backend != "repository" and spec.model not in targets
        }
        return tuple(StepRequests(model, own) for model, own in payloads.items())

    def as_served(self, workload: Workload) -> Workload:
        """Return the workload with its requests as the server takes them."""
        payloads = {spec.model: files.payloads for spec, files in self.files.items()}
        streams = (replace(s, payloads=payloads[s.target]) for s in workload.streams)
        return replace(workload, streams=tuple(streams))
