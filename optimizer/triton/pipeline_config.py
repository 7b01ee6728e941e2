"""The config.pbtxt of the model that joins the steps of a generated pipeline."""

from __future__ import annotations

import json

from tritonclient.grpc import model_config_pb2

from optimizer.triton.model_config import add_tensors
from optimizer.workload.model_spec import (
    PIPELINE_OUTPUTS,
    ModelSpec,
    PipelineSource,
    SoftmaxSource,
)
from optimizer.workload.streams import OutputTensor


def pipeline_outputs(source: PipelineSource) -> tuple[OutputTensor, ...]:
    """Return the outputs of a pipeline: those of its last step."""
    last = source.steps[-1].source
    assert isinstance(last, SoftmaxSource), "a generated pipeline ends with a softmax"
    label, score = PIPELINE_OUTPUTS
    shape = (last.top_k,)
    return OutputTensor(label, "BYTES", shape), OutputTensor(score, "FP32", shape)


def pipeline_config(model: ModelSpec, source: PipelineSource) -> model_config_pb2.ModelConfig:
    """Return the configuration of the model that joins the steps.

    Args:
        model: the pipeline; the inputs of each step have the names of outputs before it.
    """
    config = model_config_pb2.ModelConfig(name=model.name, max_batch_size=source.max_batch_size)
    add_tensors(config, model.payloads, pipeline_outputs(source))
    if source.kind == "ensemble":
        config.platform = "ensemble"
        _add_scheduling(config, model, source)
    else:
        config.backend = "python"
        config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_CPU, count=1)
        config.parameters["steps"].string_value = json.dumps(list(map(_call, source.steps)))
    return config


def _call(step: ModelSpec) -> dict[str, object]:
    """Return a step as the model of the template `bls` reads it."""
    inputs = [tensor.name for tensor in step.payloads.tensors]
    return {"model": step.name, "inputs": inputs, "outputs": list(step.outputs)}


def _add_scheduling(
    config: model_config_pb2.ModelConfig, model: ModelSpec, source: PipelineSource
) -> None:
    tensors = {tensor.name: tensor.name for tensor in model.payloads.tensors}
    for step in source.steps:
        added = config.ensemble_scheduling.step.add(model_name=step.name, model_version=-1)
        for tensor in step.payloads.tensors:
            added.input_map[tensor.name] = tensors[tensor.name]
        last = step is source.steps[-1]
        tensors = {name: name if last else f"{step.name}.{name}" for name in step.outputs}
        for name, passed_on in tensors.items():
            added.output_map[name] = passed_on
