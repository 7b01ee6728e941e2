"""The configuration that a running server returns, as the values that the simulator takes."""

from __future__ import annotations

from tritonclient.grpc import model_config_pb2

from optimizer.configuration.runtimes.spec import Kind
from optimizer.configuration.serving_config import (
    ArtifactSpec,
    Batching,
    InstanceGroup,
    ModelServing,
)
from optimizer.triton.deployed_config import (
    backend_of,
    deployed_values,
    ensemble_steps,
    refusal_of,
)
from optimizer.triton.model_config import read_queue_policy
from optimizer.workload.streams import Payloads, TensorSpec


def untunable(config: model_config_pb2.ModelConfig) -> str | None:
    """Return why a model cannot be simulated by itself, and what to do; None where it can."""
    if config.HasField("ensemble_scheduling"):
        steps = ", ".join(dict.fromkeys(step.model for step in ensemble_steps(config)))
        return f"it is an ensemble, which executes nothing itself; observe its steps, {steps}"
    return refusal_of(config)


def running_model(config: model_config_pb2.ModelConfig) -> ModelServing:
    """Return how a server with this configuration serves the model."""
    values, batcher = deployed_values(config), config.dynamic_batching
    sizes = values["preferred_batch_sizes"]
    return ModelServing(
        name=config.name,
        artifact=ArtifactSpec(config.name, "repository", backend_of(config), "as_deployed"),
        max_batch_size=max(1, config.max_batch_size),
        batching=Batching(
            sizes if isinstance(sizes, tuple) else (),
            int(batcher.max_queue_delay_microseconds),
            read_queue_policy(batcher),
        )
        if config.HasField("dynamic_batching")
        else None,
        groups=tuple(_group(each) for each in config.instance_group) or (InstanceGroup(),),
        cache=bool(config.response_cache.enable),
    )


def _group(group: model_config_pb2.ModelInstanceGroup) -> InstanceGroup:
    kind: Kind = "KIND_GPU" if group.kind == group.KIND_GPU else "KIND_CPU"
    return InstanceGroup(kind, max(1, group.count), tuple(range(len(group.gpus))))


def running_payloads(config: model_config_pb2.ModelConfig) -> Payloads:
    """Return the requests that a configuration takes, whose dimensions alone count."""
    tensors = tuple(
        TensorSpec(
            each.name,
            "FP32",  # whatever it is: the simulator takes the dimensions alone
            tuple(f"{each.name}_{n}" if size < 0 else size for n, size in enumerate(each.dims)),
        )
        for each in config.input
    )
    return Payloads(tensors, batched=config.max_batch_size > 0)
