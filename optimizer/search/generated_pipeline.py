"""A generated pipeline as the accuracy gate serves it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from optimizer.configuration.model_space import EmptySpaceError
from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import (
    ArtifactSpec,
    Batching,
    ModelServing,
    ServerOptions,
)
from optimizer.search.gate_server import STEP_DELAY_US, DeployedPipeline
from optimizer.study.gated_artifact import GatedArtifact
from optimizer.triton.session import ModelFiles


def generated_pipeline(
    spec: ArtifactSpec,
    space: SearchSpace,
    files: Mapping[ArtifactSpec, ModelFiles],
    gated: Sequence[GatedArtifact],
) -> DeployedPipeline | None:
    """Return a generated pipeline, each of its steps with its largest batches.

    Args:
        spec: of the model that joins the steps.
        files: of the steps' artefacts that passed.
        gated: the steps' artefacts.

    Returns:
        None where a step has no artefact left.
    """
    left = space.without([result.spec for result in gated if result.dropped is not None])
    left = left.without_batches({r.spec: r.failing.size for r in gated if r.failing is not None})

    def largest_batches(model: ModelServing) -> ModelServing:
        largest = left.use_of(model.artifact).max_batch_sizes[-1]
        if largest == space.limits.request_size:
            return model
        batching = Batching(max_queue_delay_us=STEP_DELAY_US)
        return replace(model, max_batch_size=largest, batching=batching)

    try:
        config = left.config(left.baseline).part(spec.model)
    except EmptySpaceError:
        return None
    models = tuple(map(largest_batches, config.models))
    return DeployedPipeline(
        replace(config, models=models, server=ServerOptions()),
        {model.name: files[model.artifact] for model in models if model.artifact in files},
        max(model.max_batch_size for model in models),
    )
