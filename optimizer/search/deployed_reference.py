"""The reference of a model in a repository: the outputs of the server as it is deployed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from optimizer.artifacts.build_results import (
    OpenedModel,
    PreparedModel,
    Reference,
)
from optimizer.artifacts.datasets import model_inputs, rows_by_shape
from optimizer.artifacts.references import fp32_outputs, judged_positions
from optimizer.configuration.serving_config import ServingConfig
from optimizer.triton.deployed_config import check_inputs, deployed_outputs, read_deployed
from optimizer.triton.session import ModelFiles, ServingSession
from optimizer.workload.model_spec import ModelSpec
from optimizer.workload.streams import Tensors

_CALL_SECONDS = 120.0


def deployed_reference(
    session: ServingSession,
    model: ModelSpec,
    deployed: ServingConfig,
    files: Mapping[str, ModelFiles],
    lengths: Sequence[int],
) -> PreparedModel:
    """Serve a model as it is deployed and send the evaluation inputs one by one.

    Args:
        deployed: the configuration as deployed, of the model and of the steps of an ensemble.
        files: of each model of the configuration, by name.
        lengths: in tokens, that requests are padded to besides the longest.

    Raises:
        UsageError: when the requests do not fit the model's configuration.
        TrialFailure: when it cannot be served, or an output is not finite.
    """
    _, config = read_deployed(files[model.name].artifact)
    check_inputs(config, model.payloads)
    outputs = deployed_outputs(config, model.outputs)
    shapes = rows_by_shape(model_inputs(model), lengths, model.payloads)
    served = session.serve(deployed, files)
    names, batched = [output.name for output in outputs], model.payloads.batched

    def run(request: Tensors) -> Tensors:
        answers = served.control.infer(model.name, [request], names, _CALL_SECONDS, batched=batched)
        return answers if batched else {name: values[0] for name, values in answers.items()}

    size = sum(own.size_bytes for own in files.values())
    opened = OpenedModel(run, outputs, size)
    references = []
    for each in shapes:
        values = fp32_outputs(f"{model.name} as deployed", opened, each.rows, batched=batched)
        judged = judged_positions(each.rows, outputs, values, batched=batched)
        references.append(Reference(each.length, each.rows, values, judged, each.sizes))
    session.retire(wait=True)
    return PreparedModel(model.name, outputs, tuple(references), size, built=True, seconds=0.0)
